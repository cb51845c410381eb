"""Look at every sample of a set of shards, or of several, and say what is wrong, before a run finds out.

    python -m launch.lint data/photos/train                  # a packed set: its index is checked too
    python -m launch.lint data/photos                        # all sets in it, and the images that they share
    python -m launch.lint 'wds/imagenet1k-train-*.tar'       # plain WebDataset shards, before they are indexed
    python -m launch.lint data/photos/train --forget         # after mending: empty the quarantine of what is fine now

Every image is decoded as training decodes it. Results go to lint.html (to read) and lint.json (for programs); images
that cannot be decoded also go to quarantine.tsv, whose rows training leaves out. Exit code: 0 without errors (warnings
do not count), 1 with errors, 2 for a mistake in the command.
"""

import os
import sys
import time
from pathlib import Path

from launch.command import Parser, imported_for_pool, run
from launch.progress import meter
from pipeline.errors import UserError
from pipeline.wording import counted

CLEAN, ERRORS = 0, 1


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)

    with imported_for_pool("pipeline.linting.lint", "run the same command again, it starts afresh") as linting:
        from pipeline.linting import summary

        if args.workers < 1:
            raise UserError(f"--workers {args.workers}: give 1 or more")
        start_s = time.monotonic()
        linted = linting.lint(args.shards, args.out, args.workers, meter, args.forget)
        wall_s, images = time.monotonic() - start_s, sum(of_set.report["num_images"] for of_set in linted)
        pace = f"{images / wall_s:.0f} images/s with {counted(args.workers, 'process', 'processes')}"
        print(f"{counted(images, 'image')} in {wall_s:.1f} s: {pace}")
        for line in (line for of_set in linted for line in summary.lines(of_set)):
            print(line)
        return ERRORS if any(of_set.report["counts"]["error"] for of_set in linted) else CLEAN


def _parser() -> Parser:
    parser = Parser(prog="python -m launch.lint", description=__doc__)
    parser.add_argument(
        "shards", metavar="SHARDS", nargs="+", help="a packed set's folder, a folder of .tar shards, a .tar, a glob"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the results (default: beside the shards)")
    parser.add_argument("--forget", action="store_true", help="remove quarantined images that are fine now")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cores, help=f"processes (default: all cores, {cores})")
    return parser


if __name__ == "__main__":
    sys.exit(run(main))
