"""The same photos in every form that a contestant reads.

In: class folders, or a folder of splits of which `train` is taken. Out: under work/SIZE/: `images` (class folders),
`packed`, `packed_short256`, `packed_raw256` (launch.pack), `ffcv_jpeg.beton`, `ffcv_raw.beton`. SIZE is `original` (the
photos as they are) or `500x375` (all encoded again at that size, ImageNet's commonest). What is there already is kept.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from pipeline.bench.surroundings import PEERS, environment
from pipeline.data.manifest import VERSION
from pipeline.errors import UserError

SIZES = ("original", "500x375")
LONG_PX, SHORT_PX, QUALITY = 500, 375, 90
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
PACK_WORDS = {"packed": [], "packed_short256": ["--short-side", "256"], "packed_raw256": ["--raw", "256"]}
FFCV_FORMS = {"ffcv_jpeg": "jpeg", "ffcv_raw": "raw"}


class NotPrepared(Exception):
    """Why one form is not there; the others are not concerned."""


def class_folders(photos: Path) -> Path:
    """The folder of class folders in `photos`. Raises UserError if it has none with images in it."""
    if not photos.is_dir():
        raise UserError(f"--photos {photos} is no folder. Give a folder of class folders, or of train/ with them")
    folder = photos / "train" if (photos / "train").is_dir() else photos
    if not any(photos_in(folder)):
        raise UserError(f"--photos {photos} has no class folders with images: CLASS/1.jpg or train/CLASS/1.jpg")
    return folder.resolve()


def photos_in(folder: Path) -> Iterable[Path]:
    """The images CLASS/NAME below `folder`."""
    return (path for path in folder.glob("*/*") if path.suffix.lower() in EXTENSIONS)


def claim(work: Path, images: Path) -> None:
    """Raises UserError if `work` holds the forms of other photos, or of another version of our index."""
    mark, source = work / "photos.txt", f"{images} with index version {VERSION}"
    if mark.exists() and mark.read_text().strip() != source:
        raise UserError(f"--work {work} was made from {mark.read_text().strip()}. Give another folder, or delete it")
    work.mkdir(parents=True, exist_ok=True)
    mark.write_text(f"{source}\n")


def prepare(
    form: str, size: str, images: Path, work: Path, ffcv_python: str | None, say: Callable[[str], None]
) -> Path:
    """Where the photos lie in `form` and `size`, made if need be. Raises NotPrepared with the reason."""
    folder = work / size
    folder.mkdir(parents=True, exist_ok=True)
    if size != "original":
        images = _reencoded(images, folder / "images", say)
    if form == "images":
        return images
    out = folder / form / "train" if form in PACK_WORDS else folder / f"{form}.beton"
    if (out / "manifest.json").exists() or out.is_file():
        return out
    if form in PACK_WORDS:
        words = [sys.executable, "-m", "launch.pack", str(images), str(folder / form), *PACK_WORDS[form]]
    elif ffcv_python is None or shutil.which(ffcv_python) is None:
        raise NotPrepared(f"not installed: no Python of FFCV at --ffcv-python {ffcv_python or '(not given)'}")
    else:
        writer = PEERS / "loaders" / "ffcv_write.py"
        words = [ffcv_python, str(writer), str(images), str(out), FFCV_FORMS[form]]
    say(f"preparing {out}")
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode or not out.exists():
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise NotPrepared(f"not prepared: {lines[-1]}")
    return out


def _reencoded(images: Path, out: Path, say: Callable[[str], None]) -> Path:
    if out.exists():
        return out
    say(f"preparing {out}")
    temporary = out.with_name("images.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    sources = sorted(photos_in(images))
    targets = [temporary / source.parent.name / f"{source.name}.jpg" for source in sources]
    for folder in {target.parent for target in targets}:
        folder.mkdir(parents=True)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as processes:
        list(processes.map(_reencode, sources, targets, chunksize=16))
    temporary.rename(out)
    return out


def _reencode(source: Path, target: Path) -> None:
    from PIL import Image

    image = Image.open(source).convert("RGB")
    size = (SHORT_PX, LONG_PX) if image.height > image.width else (LONG_PX, SHORT_PX)
    image.resize(size, Image.Resampling.LANCZOS).save(target, "JPEG", quality=QUALITY)
