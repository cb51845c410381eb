"""Score a classifier, or the average of several, on a packed set.

    python -m launch.evaluate runs/vgg16                                # centre and ten crops of its validation set
    python -m launch.evaluate runs/vgg16 --views dense@256-384-512,150+dense --best
    python -m launch.evaluate runs/a runs/b runs/c --views ten             # an ensemble: softmax outputs are averaged
    python -m launch.evaluate torchvision:vgg16 --data data/imagenet/validation
    python -m launch.evaluate torchvision:alexnet=alexnet.pth --data data/photos/test data.resize_px=288
    python -m launch.evaluate package.module:factory=weights.safetensors --data data/photos/test data.std=[0.5,0.5,0.5]

A SOURCE is a run folder, a checkpoint's folder, a file that launch.export wrote, torchvision:NAME (published weights),
or NETWORK=FILE. Settings of the data section may follow: resize_px (test scale), crop_px, interpolation, antialias,
mean, std; torchvision's weights bring their own. Prints a table, writes evaluation.json, and logs to Weights & Biases.
One process, or several under torchrun, give the same counts.

views: centre, five, ten, 50 (a 5 x 5 grid, mirrored), 150 (50 at three scales), dense (the network as a convolution
over the whole image); @ names scales, dense@384 or dense@256-384-512; + averages views, 150+dense.
"""

import argparse
import json
import sys
from pathlib import Path

from launch.command import Parser, run
from launch.progress import meter


def main(argv: list[str] | None = None) -> int:
    words = _parser().parse_intermixed_args(argv)  # settings may stand anywhere
    from pipeline.evaluation import arguments

    sources, settings = arguments.sort_words(words.sources, words.views)
    changes = [*_flags(words), *settings]
    arguments.check_files(words.out, words.save_predictions)
    arguments.check_views(words.views.split(","))
    arguments.check_settings(changes)
    names, index = arguments.read_names(words.classes), arguments.local_set(words.data)

    from pipeline.evaluation import results, scoring

    prepared = scoring.prepare(sources, changes, words.best, words.data, index, names)
    place = results.placed(prepared, words.out)
    if result := scoring.score(prepared, meter, _warn):
        results.write(result, place, words.save_predictions, print)
    return 0


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


def _flags(words: argparse.Namespace) -> list[str]:
    views = json.dumps([view.strip() for view in words.views.split(",")])
    flags = {"evaluation.micro_batch": words.micro_batch, "data.max_bad_images": words.max_bad_images}
    return [f"evaluation.views={views}", *(f"{key}={value}" for key, value in flags.items() if value is not None)]


def _parser() -> Parser:
    parser = Parser(prog="python -m launch.evaluate", description=__doc__)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="see above; settings, as data.resize_px=384, too")
    parser.add_argument("--views", default="centre,ten", help="see above (default: %(default)s)")
    parser.add_argument("--data", help="packed set, folder or URL, to score on (default: the run's data.validation)")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="names of the network's outputs, one a line")
    parser.add_argument(
        "--save-predictions", type=Path, metavar="FILE", help="write what was said of each image: .csv or .parquet"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="where the result goes (default: the run's folder)"
    )
    parser.add_argument("--micro-batch", type=int, help="images per process at once (default: evaluation.micro_batch)")
    parser.add_argument(
        "--max-bad-images",
        type=int,
        help="images that may be left out, at most (default: the run's data.max_bad_images)",
    )
    parser.add_argument("--best", action="store_true", help="score the run's best checkpoint instead of its last one")
    return parser


if __name__ == "__main__":
    sys.exit(run(main, as_rank=True))
