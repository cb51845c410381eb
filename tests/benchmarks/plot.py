"""Pictures: the rows of a bench beside their limits, and the curves of runs.

python -m tests.benchmarks.plot bars all.json all.png
python -m tests.benchmarks.plot curves RUN [RUN ...] errors.png      # errors of training and evaluation by epoch

In: the JSON of launch.bench; run folders, whose metrics.jsonl has every point that W&B has. Needs matplotlib.
"""

import argparse
import json
from pathlib import Path

from launch.command import run_command
from pipeline.bench.plot import bars, curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bars", "curves"))
    parser.add_argument("sources", nargs="+", type=Path, metavar="FILE|RUN")
    parser.add_argument("out", type=Path, metavar="PICTURE.png")
    args = parser.parse_args()
    if args.what == "curves":
        curves(args.sources, args.out)
        return
    facts = json.loads(args.sources[0].read_text())
    bars(facts["rows"], facts["machine"], args.out)


if __name__ == "__main__":
    run_command(main)
