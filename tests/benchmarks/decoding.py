"""What a GPU makes of colour planes and of torn files, beside the CPU: python -m tests.benchmarks.decoding SET

In: a packed set of JPEGs. Out: two Markdown tables. (1) How far pixels lie from the CPU's, in levels of 255, with
colour planes enlarged as libjpeg-turbo does it and not, and images/s of both. (2) For each kind of damage and each
`data.hw_decoder_load`, whether the row was lost, alone in its batch and amid 63 sound photos: the answer must not
depend on the load or the neighbours. A file without any header comes last: amid others it can crash DALI 2.4.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch

from pipeline.config import Data
from pipeline.data.dali import Decoder
from pipeline.data.decode import decode
from pipeline.data.index import load
from pipeline.data.loader import Batch, order_of, train_batches
from pipeline.data.reader import Reader
from pipeline.data.request import Request
from pipeline.data.windows import whole
from pipeline.runtime import Place

ROWS, WHERE = 64, 7
LOADS = (0.0, 0.65, 1.0)
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut at 30 %": lambda image: image[: len(image) * 3 // 10],
    "cut at 90 %": lambda image: image[: len(image) * 9 // 10],
    "last 100 bytes missing": lambda image: image[:-100],
    "end marker missing": lambda image: image[:-2],
    "second half zeros": lambda image: image[: len(image) // 2] + bytes(len(image) - len(image) // 2),
    "1,000 bytes in the middle overwritten": lambda image: (
        image[: len(image) // 2] + b"\x55" * 1000 + image[len(image) // 2 + 1000 :]
    ),
    "header only": lambda image: image[:700],
    "no JPEG": lambda image: b"\xff\xd8 this is no jpeg",
}


class Told:
    """Remembers who was called bad."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def suspects(self, ids: np.ndarray) -> np.ndarray:
        return np.zeros(len(ids), bool)

    def add(self, ids: np.ndarray, reasons: list[str]) -> None:
        self.ids += ids.tolist()


def torn(folder: Path, device: torch.device) -> Iterator[str]:
    """Table 2, line by line."""
    index = load(str(folder))
    ids = np.arange(ROWS)
    encoded = Reader(index).read(ids)
    windows = whole(index.height[ids], index.width[ids])

    def verdict(damage: Callable[[bytes], bytes], on: torch.device, load: float, alone: bool) -> str:
        images = list(encoded)
        images[WHERE] = np.frombuffer(damage(images[WHERE].tobytes()), np.uint8)
        request = Request(ids, np.zeros(ROWS, np.int64), images, windows)
        told = Told()
        pairs = decode(
            iter([request.row(WHERE) if alone else request]),
            decoder=Decoder(False, False, load),
            px=64,
            mean=(0, 0, 0),
            std=(1, 1, 1),
            interpolation="bilinear",
            antialias=True,
            device=on,
            on_gpu=on.type == "cuda",
            threads=4,
            prefetch=1,
            bad=told,
        )
        for _ in pairs:
            pass
        return "lost" if told.ids == [WHERE] else "kept" if not told.ids else f"{told.ids} lost"

    yield f"| damage | CPU | {' | '.join(f'GPU, load {load:g}: alone, amid others' for load in LOADS)} |"
    yield "|---" * (2 + len(LOADS)) + "|"
    for name, damage in DAMAGES.items():
        cells = [verdict(damage, torch.device("cpu"), 0, alone=False)]
        for load_ in LOADS:
            cells.append(", ".join(verdict(damage, device, load_, alone) for alone in (True, False)))
        yield f"| {name} | {' | '.join(cells)} |"


@contextmanager
def planes_enlarged_plainly() -> Iterator[None]:
    """DALI's own default."""
    from nvidia.dali import fn

    decoders, usual = fn.decoders, fn.decoders.image_slice

    def plain(*args, **options):
        options.pop("jpeg_fancy_upsampling", None)
        return usual(*args, **options)

    decoders.image_slice = plain
    try:
        yield
    finally:
        decoders.image_slice = usual


def chroma(folder: Path, device: torch.device, num_batches: int = 16, rows: int = 64) -> str:
    """Table 1."""
    lines = ["| colour planes | mean difference | worst photo | above 16 levels | images/s |", "|---|---|---|---|---|"]
    data = Data(recipe="inception", pca_std=0)
    cpu = list(_pixels(folder, data, torch.device("cpu"), rows, num_batches))
    ways = {"as libjpeg-turbo": nullcontext(), "plainly, DALI's default": planes_enlarged_plainly()}
    for name, way in ways.items():
        with way:
            gpu = list(_pixels(folder, data, device, rows, num_batches))
            rate = _rate(folder, data, device)
        apart = [(ours - theirs).abs() for ours, theirs in zip(cpu, gpu, strict=True)]
        of_photos = torch.cat([difference.mean(dim=(1, 2, 3)) for difference in apart])
        far = float(torch.stack([(difference > 16).float().mean() for difference in apart]).mean())
        lines.append(f"| {name} | {of_photos.mean():.3f} | {of_photos.max():.3f} | {far:.2e} | {rate:,.0f} |")
    return "\n".join(lines)


def _pixels(folder: Path, data: Data, device: torch.device, rows: int, num_batches: int) -> Iterator[torch.Tensor]:
    """In 0..255, on the CPU."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    for batch in _batches(folder, data, device, rows, num_batches):
        yield 255 * (batch.images.cpu() * std + mean)


def _rate(folder: Path, data: Data, device: torch.device, rows: int = 256) -> float:
    warm_up, num_batches = 5, 40
    start = 0.0
    for number, _ in enumerate(_batches(folder, data, device, rows, warm_up + num_batches)):
        if number == warm_up - 1:
            start = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return num_batches * rows / (time.perf_counter() - start)


def _batches(folder: Path, data: Data, device: torch.device, rows: int, num_batches: int) -> Iterator[Batch]:
    index = load(str(folder))
    return train_batches(
        index,
        data,
        order_of(index, data, rows, 0),
        0,
        place=Place(0, 1, 0, 1),
        device=device,
        micro_steps=1,
        first_step=0,
        last_step=num_batches,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path, help="a packed set, with 64 JPEGs at least")
    folder = parser.parse_args().set
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    print(f"{chroma(folder, device)}\n", flush=True)
    for line in torn(folder, device):
        print(line, flush=True)


if __name__ == "__main__":
    main()
