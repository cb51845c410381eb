"""Measure what this machine makes of this project: every part beside its limit. Rules: tests/benchmarks/README.md.

python -m launch.bench all --photos photos --json all.json --plot all.png    # the four parts below, one after another
python -m launch.bench step                                    # the device's limits, a training step, DeepSpeed's price
python -m launch.bench loader --photos photos                  # our data loader, its peers, decoding alone
python -m launch.bench train --photos photos --model vgg16     # training from shards, its peers, both limits
python -m launch.bench evaluate --set data/photos/validation   # views against the network and decoding
python -m launch.bench startup                                 # start, memory and order at 1.28 M images

On a GPU where there is one, else on the CPU. Tables are Markdown. --json writes all figures, --plot a picture.
Ctrl-C and SIGTERM cut a part (but startup) short: it still writes what its whole rounds gave, and how many there were.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.command import Parser, run, told_when_interrupted
from pipeline.evaluation.predictions import require_file

WORK = Path("data/bench")
PARTS = ("step", "loader", "train", "evaluate")
CORES = len(os.sched_getaffinity(0))
# As launch/environment.sh sets them for training on a CPU; glibc reads them when a process starts.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


def main(argv: list[str] | None = None) -> int:
    args = vars(_parser().parse_args(argv))
    if not shutil.which("nvidia-smi") and not KEEP_MEMORY.keys() <= os.environ.keys():
        command = [sys.executable, "-m", "launch.bench", *(sys.argv[1:] if argv is None else argv)]
        os.execve(sys.executable, command, KEEP_MEMORY | os.environ)
    what, to_json, plot = args.pop("what"), args.pop("json"), args.pop("plot")
    settings = {name: value for name, value in args.items() if value is not None}
    if to_json:
        require_file("--json", to_json)
    if plot:
        from pipeline.bench.plot import require

        require_file("--plot", plot)
        require(plot)
    if what == "all":
        from pipeline.bench.suite import measure as suite

        with told_when_interrupted():
            suite(settings, to_json, plot, _say)
        return 0
    from pipeline.bench.machine import machine
    from pipeline.bench.rows import finish

    measure = _measures(what)  # imports before the signals are caught: NumPy's makes an ImportError of an interrupt
    with told_when_interrupted():
        rows, details = measure(settings)
        finish(rows, {what: details}, machine(), to_json, plot, _say)
    return 0


def _measures(what: str) -> Callable[[dict[str, Any]], tuple[list, dict]]:
    """The part of that name, as a function of what the command line asks for."""
    if what == "startup":
        from pipeline.bench.startup import measure as startup

        return lambda settings: ([], startup(settings["work"] / "startup", settings["repeats"], _say))
    if what == "step":
        from pipeline.bench.step import Steps
        from pipeline.bench.step import measure as step

        return lambda settings: step(Steps(**settings), _say)
    if what == "evaluate":
        from pipeline.bench.evaluation import Race
        from pipeline.bench.evaluation import measure as views

        return lambda settings: views(Race(**settings), _say)
    from pipeline.bench.contest import Contest, contest

    return lambda settings: contest(Contest(kind=what, **settings), _say)


def _parser() -> Parser:
    parser = Parser(prog="python -m launch.bench", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True, metavar=f"all|{'|'.join(PARTS)}|startup")
    every = commands.add_parser("all", help="the four parts below, one after another")
    step = commands.add_parser("step", help="the device's limits, a training step, and the step without DeepSpeed")
    loader = commands.add_parser("loader", help="images a second of our data loader and its peers, in turns")
    train = commands.add_parser("train", help="images a second of training from shards, its peers and limits, in turns")
    evaluate = commands.add_parser("evaluate", help="images a second of each view, the network alone, decoding alone")
    startup = commands.add_parser("startup", help="index, first batch, memory and order at 1.28 M images and more")

    for command in (every, loader, train):
        command.add_argument(
            "--photos", type=Path, required=True, metavar="FOLDER", help="class folders, or train/ of them"
        )
        command.add_argument("--cores", type=int, default=CORES, help=f"threads or workers (default: all, {CORES})")
        command.add_argument("--ffcv-python", metavar="PATH", help="the Python that FFCV is installed in")
    for command in (loader, train):
        command.add_argument("--sizes", type=_words, metavar="A,B", help="original, 500x375 (default: both)")
        command.add_argument("--contestants", type=_words, metavar="A,B,...", help="default: all that can run here")
        command.add_argument("--images", type=int, metavar="N", help="a turn's images at least (loader: 2000)")
        command.add_argument("--batch", type=int, metavar="N", help="images at once (loader: 64; train: by the device)")
        command.add_argument(
            "--min-turn-s", type=float, metavar="S", help="a turn's length at least, about (default: 1)"
        )
    train.add_argument("--model", metavar="NAME", help="network, as model.name (default: alexnet)")

    from_config = "networks, as model.name"
    every.add_argument(
        "--networks", type=_words, metavar="A,B", help=f"{from_config} (default: alexnet,vgg16; without a GPU alexnet)"
    )
    step.add_argument(
        "--networks", type=_words, metavar="A,B", help=f"{from_config} (default: alexnet_2012,alexnet,vgg16,vgg19)"
    )
    step.add_argument("--batches", type=_numbers, metavar="N,M", help="images at once (default: some for the device)")
    step.add_argument("--min-turn-s", type=float, metavar="S", help="a turn's length at least, about (default: 1)")
    step.add_argument("--compile", action="store_true", help="with train.compile too")
    step.add_argument("--alternatives", action="store_true", help="with each choice of pipeline/engine.py undone, too")
    evaluate.add_argument("--set", required=True, metavar="SET", help="a packed set")
    evaluate.add_argument("--model", metavar="NAME", help="network, as model.name (default: alexnet)")
    evaluate.add_argument("--views", type=_words, metavar="A,B", help="default: centre,ten,dense")
    evaluate.add_argument("--images", type=int, metavar="N", help="a turn's images at most (default: 256)")
    evaluate.add_argument("--bf16", action="store_true", help="bf16 autocast on a CPU too; a GPU has it always")
    startup.add_argument("--repeats", type=_count, default=5, metavar="N", help="of each measurement (default: 5)")

    for command, rounds in ((every, 5), (step, 5), (loader, 7), (train, 7), (evaluate, 5)):
        command.add_argument(
            "--rounds", type=int, default=rounds, metavar="N", help=f"turns of each (default: {rounds})"
        )
    for command in (every, loader, train, startup):
        command.add_argument("--work", type=Path, default=WORK, metavar="FOLDER", help=f"made sets (default: {WORK})")
    for command in (every, step, loader, train, evaluate, startup):
        command.add_argument("--json", type=Path, metavar="FILE", help="all figures")
        command.add_argument("--plot", type=Path, metavar="FILE.png", help="a picture of the summary")
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: give 1 or more")
    return number


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(run(main))
