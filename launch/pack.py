"""Pack photos into WebDataset shards with an index, or index shards that exist.

    python -m launch.pack photos data/photos --holdout 0.1              # photos/cat/1.jpg, photos/dog/2.jpg, ...
    python -m launch.pack photos data/photos                            # photos/train/cat/1.jpg, photos/val/cat/2.jpg
    python -m launch.pack ~/imagenet data/imagenet                      # ILSVRC2012_img_train.tar, ..._val.tar, devkit
    python -m launch.pack ~/imagenet data/imagenet512 --short-side 512  # smaller, and faster to decode
    python -m launch.pack ~/imagenet data/imagenet-raw --raw 256        # pixels: no decoding at all
    python -m launch.pack 'wds/imagenet1k-*.tar' data/imagenet          # index only, the shards stay as they are
    python -m launch.pack 'hf/train-{0000..0015}.tar' data/cars --label json:label --image image.jpg
    python -m launch.pack 's3://bucket/imagenet/*.tar' data/imagenet    # the same: each is fetched once, and not kept

JPEG, PNG and WebP keep their bytes; what DALI may decode otherwise than Pillow (other formats, 16 bits, CMYK, ...)
becomes PNG without loss. Files that are no images or cannot be decoded are left out and listed in OUT/rejected.tsv.
Stopped at any time, the same command goes on.
"""

import argparse
import glob
import os
import sys
from pathlib import Path

from launch.command import Parser, imported_for_pool, run
from launch.progress import meter
from pipeline import hints
from pipeline.errors import UserError


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)

    says = "run the same command again, it goes on with the shards that are there"
    with imported_for_pool("pipeline.packing.pack", says) as pack:
        options = pack.Options(
            split=args.split,
            holdout=args.holdout,
            classes=args.classes,
            val_labels=args.val_labels,
            label=args.label,
            image=args.image,
            seed=args.seed,
            shard_images=args.shard_images,
            short_side=args.short_side,
            quality=args.quality,
            raw=args.raw,
        )
        if args.workers < 1:
            raise UserError(f"--workers {args.workers}: give 1 or more")
        if args.more:
            sources = [args.source, str(args.out), *args.more][:-1]
            raise UserError(_expanded(sys.argv[1:] if argv is None else argv, sources))
        from pipeline.packing.report import lines

        for line in lines(pack.pack(args.source, args.out, options, args.workers, _say, meter), args.out):
            _say(line)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m launch.pack", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="folder of images or archives, or .tar shards (URLs too)")
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder for the packed sets")
    parser.add_argument("more", nargs="*", default=[], help=argparse.SUPPRESS)  # to say what is wrong with them
    parser.add_argument(
        "--holdout", type=float, metavar="SHARE", help="share of each class that goes to validation, e.g. 0.1"
    )
    parser.add_argument("--split", choices=["train", "validation", "test"], help="the set to make, if SOURCE has one")
    parser.add_argument("--classes", type=Path, metavar="FILE_OR_SET", help="class list: one a line, or a packed set's")
    parser.add_argument(
        "--val-labels", type=Path, metavar="FILE", help="ImageNet: WordNet ids, or LOC_val_solution.csv"
    )
    parser.add_argument(
        "--label", metavar="EXT", help="of shards: what holds the label, e.g. json:label or txt (default: cls)"
    )
    parser.add_argument("--image", metavar="EXT,EXT", help="of shards: what holds the image, e.g. image.jpg,img")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle and the holdout (default: 0)")
    parser.add_argument(
        "--shard-images", type=int, metavar="N", help="images per shard (default: 1000, small sets less)"
    )
    parser.add_argument("--short-side", type=int, metavar="PX", help="shrink larger images to this short side, as JPEG")
    parser.add_argument("--raw", type=int, metavar="PX", help="store pixels: short side PX, central square (e.g. 256)")
    parser.add_argument("--quality", type=int, metavar="Q", help="JPEG quality for --short-side, 1..100 (default: 90)")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cores, help=f"processes (default: all cores, {cores})")
    return parser


def _expanded(argv: list[str], sources: list[str]) -> str:
    """What to say of several: most often the shell has replaced a pattern by the files that match."""
    told = f"{len(sources)} words before OUT, and SOURCE is one. If the shell expanded a pattern, quote it: "
    first, common = sources[0], max(map(len, sources))
    while common and any(source[:common] != first[:common] for source in sources):
        common -= 1
    pattern = f"{first[:common]}*{Path(first).suffix}"
    if set(glob.glob(pattern)) != set(sources):  # from braces, or a choice of files
        return f"{told}'{Path(first).parent}/train-{{0000..0007}}.tar', for example, or give a folder of these alone"
    words = [pattern if word == first else word for word in argv if word == first or word not in sources]
    return told + hints.command("launch.pack", *words)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(run(main))
