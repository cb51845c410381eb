"""Measure what this project claims; the tables are Markdown, the raw figures JSON. Rules: tests/benchmarks/README.md.

python -m launch.bench loader --photos photos                                 # our data loader against its peers
python -m launch.bench loader --photos photos --contestants ours,dali_reader --rounds 3
python -m launch.bench startup                                                # start, memory and order at 1.28 M images
python -m launch.bench evaluate --set data/photos/validation --model vgg16    # views against the network and decoding
"""

import argparse
import os
from pathlib import Path

from launch.command import run_command
from pipeline.errors import UserError

WORK = Path("data/bench")


def main() -> None:
    args = _parser().parse_args()
    if args.what == "startup":
        from tests.benchmarks.startup import measure

        if args.repeats < 1:
            raise UserError(f"--repeats {args.repeats}: give 1 or more")
        measure(args.work / "startup", args.repeats, args.out, _say)
        return

    wanted = {name: value for name, value in vars(args).items() if name != "what" and value is not None}
    if args.what == "evaluate":
        from tests.benchmarks.evaluation import Race
        from tests.benchmarks.evaluation import measure as measure_views

        measure_views(Race(**wanted), _say)
        return

    from tests.benchmarks.loader import Contest, contest

    contest(Contest(**wanted), _say)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="loader|startup|evaluate")
    loader = commands.add_parser("loader", help="images a second of our data loader and its peers, in turns")
    loader.add_argument("--photos", type=Path, required=True, metavar="FOLDER", help="class folders, or train/ of them")
    loader.add_argument("--sizes", type=_words, metavar="A,B", help="original, 500x375 (default: both)")
    loader.add_argument("--contestants", type=_words, metavar="A,B,...", help="default: all")
    loader.add_argument("--rounds", type=int, metavar="N", help="turns of each (default: 7)")
    loader.add_argument("--images", type=int, metavar="N", help="a turn's images at least (default: 2000)")
    loader.add_argument("--min-turn-s", type=float, metavar="S", help="a turn's length at least, about (default: 1)")
    cores = len(os.sched_getaffinity(0))
    loader.add_argument("--cores", type=int, default=cores, help=f"threads or workers (default: all, {cores})")
    loader.add_argument("--ffcv-python", metavar="PATH", help="the Python that FFCV is installed in")
    startup = commands.add_parser("startup", help="index, first batch, memory and order at 1.28 M images and more")
    startup.add_argument("--repeats", type=int, default=5, metavar="N", help="of each measurement (default: 5)")
    for command in (loader, startup):
        command.add_argument("--work", type=Path, default=WORK, metavar="FOLDER", help=f"made sets (default: {WORK})")
    evaluate = commands.add_parser("evaluate", help="images a second of each view, the network alone, decoding alone")
    evaluate.add_argument("--set", required=True, metavar="SET", help="a packed set")
    evaluate.add_argument("--model", metavar="NAME", help="network, as model.name (default: alexnet)")
    evaluate.add_argument("--views", type=_words, metavar="A,B", help="default: centre,ten,dense")
    evaluate.add_argument("--rounds", type=int, metavar="N", help="turns of each (default: 5)")
    evaluate.add_argument("--images", type=int, metavar="N", help="a turn's images at most (default: 256)")
    evaluate.add_argument("--bf16", action="store_true", help="bf16 autocast, as on a GPU by default")
    for command in (loader, startup, evaluate):
        command.add_argument("--out", type=Path, metavar="FILE", help="raw figures, as JSON")
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_command(main)
