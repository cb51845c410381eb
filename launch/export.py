"""Export a classifier: its weights as safetensors, and beside them a JSON of what they are.

    python -m launch.export runs/vgg16 vgg16.safetensors [--best]

`python -m launch.evaluate vgg16.safetensors --data SET` scores it. Plain torch loads it into torchvision's network, or,
where torchvision has none such, into that of models.build: the lines that do it are printed. The JSON holds the
network's name and settings, its classes in the order of the outputs, how images are prepared, and where it comes from.
SOURCE is what launch.evaluate takes.
"""

import sys
from pathlib import Path

from launch.command import Parser, run
from pipeline import hints
from pipeline.errors import UserError


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m launch.export", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="a run folder, a checkpoint's folder, torchvision:NAME, ...")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors", help="the file to write; OUT.json comes beside it")
    parser.add_argument("--best", action="store_true", help="the run's best checkpoint instead of its last one")
    words = parser.parse_args(argv)
    if words.out.suffix != ".safetensors":
        raise UserError(f"{words.out}: give a name that ends in .safetensors")

    from pipeline.evaluation import classifier
    from pipeline.evaluation.export import export

    beside, loading = export(classifier.read(words.source, [], words.best), words.out)
    print(f"{words.out} and {beside.name}\n{loading}")
    print(f"score it with: {hints.command('launch.evaluate', words.out, '--data', 'PACKED_SET')}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
