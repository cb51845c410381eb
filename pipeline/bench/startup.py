"""`launch.bench startup`: what a set of ImageNet's size costs before the first step, and what its order costs in each.

In: nothing but a folder to work in; 1,281,167 rows in 1,282 shards are made up there. The index is a real one. The
shards are sparse files of the right sizes: real JPEG bytes stand where the first batches read, holes everywhere else.
Indexing is measured on 10,000 real samples. Out: a Markdown table and JSON. Each figure comes from fresh processes
(startup_child.py) after one that is not counted, so files are in the page cache.
"""

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.bench.surroundings import environment
from pipeline.data.manifest import VERSION, Shard
from pipeline.packing import indexing

NUM_SAMPLES, NUM_CLASSES, PER_SHARD = 1_281_167, 1000, 1000
GLOBAL_BATCH = 256
SEED = 0
STEPS_ON_DISK = 8  # whose images are written; the first batch and what is prefetched behind it need fewer
HUGE = 10**9
HUGE_STEPS = 2000
NUM_INDEXED = 10_000
# Sizes in pixels around ImageNet's commonest.
PHOTO_PX = ((500, 375), (375, 500), (500, 333), (333, 500), (500, 400), (400, 300), (640, 480), (500, 500))


def measure(work: Path, repeats: int, say: Callable[[str], None]) -> dict[str, object]:
    """Make the sets, measure, say the table. All figures, a list each."""
    photos = drawn_photos()
    big = work / f"imagenet_sized_{VERSION}"
    if not (big / "manifest.json").exists():
        say(f"making {big}: {NUM_SAMPLES:,} rows")
        make_big(big, photos)
    source = work / "to_index"
    if not source.exists():
        say(f"making {source}: {NUM_INDEXED:,} images")
        make_tars(source, photos)
    figures: dict[str, list[float]] = {}

    def add(measured: dict[str, float]) -> None:
        for name, value in measured.items():
            figures.setdefault(name, []).append(value)

    for name in ("load", "first_batch", "order", "huge_order"):
        say(f"measuring {name}")
        child(name, big)
        for _ in range(repeats):
            add(child(name, big))
    say("measuring indexing")
    index_tars(source, work / "indexed")
    for _ in range(repeats):
        add(index_tars(source, work / "indexed"))
    say(f"\n{table(figures)}\n")
    return {"repeats": repeats, "figures": figures}


def table(figures: dict[str, list[float]]) -> str:
    """Markdown: median and range of each figure."""
    lines = ["| what | median | min..max | n |", "|---|---|---|---|"]
    for name, values in figures.items():
        cells = (f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}" for value in (min(values), max(values)))
        median = statistics.median(values)
        shown = f"{median:,.4g}" if abs(median) < 1000 else f"{median:,.0f}"
        lines.append(f"| {name} | {shown} | {'..'.join(cells)} | {len(values)} |")
    return "\n".join(lines)


def drawn_photos() -> list[bytes]:
    """JPEG files of about ImageNet's sizes, 110 KB on average: coarse and fine noise."""
    from PIL import Image

    rng = np.random.default_rng(SEED)
    photos = []
    for width, height in PHOTO_PX:
        layers = [
            np.asarray(Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)).resize((width, height)), np.float32)
            for h, w in ((6, 8), (height // 3, width // 3))
        ]
        stream = io.BytesIO()
        Image.fromarray((0.5 * layers[0] + 0.5 * layers[1]).astype(np.uint8)).save(stream, "JPEG", quality=90)
        photos.append(stream.getvalue())
    return photos


def make_big(folder: Path, photos: list[bytes]) -> None:
    """The set of ImageNet's size; row i's image is photo i modulo their number."""
    from pipeline.data.order import Order

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = np.arange(NUM_SAMPLES)
    size = np.array([len(photo) for photo in photos])[rows % len(photos)]
    # In the tar: a header, the image in blocks of 512 bytes, a header and a block for the label.
    member = 512 + -(-size // 512) * 512 + 1024
    end = np.cumsum(member)
    first = rows // PER_SHARD * PER_SHARD  # row of the shard
    offset = end - member + 512 - (end - member)[first]
    width, height = np.array(PHOTO_PX)[rows % len(photos)].T
    shards = []
    for number, start in enumerate(range(0, NUM_SAMPLES, PER_SHARD)):
        part = slice(start, min(start + PER_SHARD, NUM_SAMPLES))
        name = f"shard-{number:06d}.tar"
        num_bytes = int(member[part].sum()) + 1024
        with open(folder / name, "wb") as file:
            file.truncate(num_bytes)
        columns = {"offset": offset[part], "size": size[part], "height": height[part], "width": width[part]}
        columns |= {"label": rows[part] % NUM_CLASSES}
        lists: dict[str, list] = {column: values.tolist() for column, values in columns.items()}
        lists["key"] = [f"{row:08d}".encode() for row in rows[part]]
        shards.append((Shard(name, num_bytes, f"{number:064x}", len(lists["key"])), lists))
    order = Order(NUM_SAMPLES, GLOBAL_BATCH, SEED)
    for row in np.concatenate([order.batch(step) for step in range(STEPS_ON_DISK)]).tolist():
        with open(folder / shards[row // PER_SHARD][0].name, "r+b") as file:
            os.pwrite(file.fileno(), photos[row % len(photos)], int(offset[row]))
    indexing.write(folder, shards, [f"class-{label}" for label in range(NUM_CLASSES)])


def make_tars(folder: Path, photos: list[bytes]) -> None:
    """Plain WebDataset shards, complete."""
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for start in range(0, NUM_INDEXED, PER_SHARD):
        with tarfile.open(temporary / f"shard-{start // PER_SHARD:06d}.tar", "w") as tar:
            for row in range(start, min(start + PER_SHARD, NUM_INDEXED)):
                label = str(row % NUM_CLASSES).encode()
                for extension, content in (("jpg", photos[row % len(photos)]), ("cls", label)):
                    info = tarfile.TarInfo(f"{row:08d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    temporary.rename(folder)


def index_tars(source: Path, out: Path) -> dict[str, float]:
    """Images a second of `launch.pack` on shards that exist, by the wall time of its whole process."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    _run([sys.executable, "-m", "launch.pack", f"{source.absolute()}/*.tar", str(out.absolute())])
    seconds = time.perf_counter() - start
    return {"launch.pack on 10,000 samples in shards, images/s, start of the program included": NUM_INDEXED / seconds}


def child(name: str, folder: Path) -> dict[str, float]:
    """Figures of one measurement in a process of its own."""
    start = time.time()
    words = [sys.executable, "-m", "pipeline.bench.startup_child", name, str(folder.absolute()), str(start)]
    return json.loads(_run(words).splitlines()[-1])


def _run(words: list[str]) -> str:
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout
