"""Draws the demo's data set: `python -m launch.draw OUT` (see pipeline/packing/synthetic.py)."""

import sys
from pathlib import Path

from launch.command import Parser, run
from pipeline.packing.synthetic import Drawing, draw


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m launch.draw", description="Draws a ten-class data set of shapes.")
    parser.add_argument("out", type=Path, help="folder to make; gets train/<class>/*.jpg and validation/<class>/*.jpg")
    parser.add_argument("--train", type=int, default=Drawing.train, help="training images (default: %(default)s)")
    parser.add_argument(
        "--validation", type=int, default=Drawing.validation, help="validation images (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=Drawing.seed, help="other pictures (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes; changes no byte (default: one per core)")
    args = parser.parse_args(argv)
    draw(args.out, Drawing(args.train, args.validation, args.seed), args.workers)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
