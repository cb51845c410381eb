"""Pictures: the rows of a bench beside their limits, and the curves of runs.

python -m tests.benchmarks.plot bars all.json all.png
python -m tests.benchmarks.plot curves RUN [RUN ...] errors.png      # errors of training and evaluation by epoch

In: the JSON of launch.bench; run folders, whose metrics.jsonl has every point that W&B has. Needs matplotlib.
"""

import json
import sys
from pathlib import Path

from launch.command import Parser, run
from pipeline.bench.plot import bars, curves


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("what", choices=("bars", "curves"))
    parser.add_argument("sources", nargs="+", type=Path, metavar="FILE|RUN")
    parser.add_argument("out", type=Path, metavar="PICTURE.png")
    args = parser.parse_args(argv)
    if args.what == "curves":
        curves(args.sources, args.out)
        return 0
    facts = json.loads(args.sources[0].read_text())
    bars(facts["rows"], facts["machine"], args.out)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
