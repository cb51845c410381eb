"""What a GPU's decoders make of a set beside the CPU's: python -m tests.benchmarks.decoding SET [ways|torn]

In: a packed set of JPEGs. Out: two Markdown tables. (1) How far pixels lie from the CPU's, in levels of 255, images/s
and busy CPU cores (which tell whether the GPU decodes), with colour planes enlarged smoothly, as libjpeg-turbo does it,
and plainly, DALI's default; of windows and of whole images; for each `data.hw_decoder_load`. (2) For each kind of
damage and each `data.hw_decoder_load`, whether the row was lost, alone in its batch and amid 63 sound photos: the
answer must not depend on the device, the load or the neighbours.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import Data
from pipeline.data.crops import whole
from pipeline.data.decoding.dali import Decoder
from pipeline.data.decoding.decoder import Workers, decode
from pipeline.data.index import load
from pipeline.data.loader import Batch, order_of, train_batches
from pipeline.data.output import Normal, Output
from pipeline.data.request import Request
from pipeline.data.storage.reader import Reader
from pipeline.runtime import RankInfo

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

    def mended(self, sample: int, image: np.ndarray) -> None:
        return None

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
        request = Request(ids, np.ones(ROWS, bool), images, windows)
        told = Told()
        asked = iter([request.row(WHERE) if alone else request])
        output = Output(64, square=True, normal=Normal((0, 0, 0), (1, 1, 1)))
        for _ in decode(asked, Decoder(False, False, load), [output], Workers(on, on.type == "cuda", 4, 1), told):
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
def colour_planes(smooth: bool) -> Iterator[None]:
    """With `jpeg_fancy_upsampling` on or off, whatever pipeline.data.decoding.dali would choose."""
    from nvidia.dali import fn

    usual = {name: getattr(fn.decoders, name) for name in ("image", "image_slice")}

    def chosen(decoder: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **options: decoder(*given, **options | {"jpeg_fancy_upsampling": smooth})

    for name, decoder in usual.items():
        setattr(fn.decoders, name, chosen(decoder))
    try:
        yield
    finally:
        for name, decoder in usual.items():
            setattr(fn.decoders, name, decoder)


def ways(folder: Path, device: torch.device, num_batches: int = 8, rows: int = 64) -> Iterator[str]:
    """Table 1, line by line."""
    yield "| colour planes | decodes | load | mean difference | worst photo | above 16 levels | images/s | CPU cores |"
    yield "|---|---|---|---|---|---|---|---|"
    plain = Data(recipe="inception", pca_std=0)
    cpu = list(_pixels(folder, plain, torch.device("cpu"), rows, num_batches))
    for smooth, whole_, load_ in product((True, False), (False, True), LOADS):
        data = plain.model_copy(update={"decode_whole": whole_, "hw_decoder_load": load_})
        with colour_planes(smooth):
            gpu = list(_pixels(folder, data, device, rows, num_batches)) if load_ == LOADS[1] else []
            rate, cores = _rate(folder, data, device)
        cells = ["", "", ""]
        if gpu:
            apart = [(ours - theirs).abs() for ours, theirs in zip(cpu, gpu, strict=True)]
            of_photos = torch.cat([difference.mean(dim=(1, 2, 3)) for difference in apart])
            far = float(torch.stack([(difference > 16).float().mean() for difference in apart]).mean())
            cells = [f"{of_photos.mean():.3f}", f"{of_photos.max():.3f}", f"{far:.1e}"]
        names = ["smooth" if smooth else "plain", "whole" if whole_ else "window", f"{load_:g}"]
        yield f"| {' | '.join([*names, *cells, f'{rate:,.0f}', f'{cores:.1f}'])} |"


def _pixels(folder: Path, data: Data, device: torch.device, rows: int, num_batches: int) -> Iterator[torch.Tensor]:
    """In 0..255, on the CPU."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    for batch in _batches(folder, data, device, rows, num_batches):
        yield 255 * (batch.images.cpu() * std + mean)


def _rate(folder: Path, data: Data, device: torch.device, most_rows: int = 256) -> tuple[float, float]:
    """Images/s in batches of `most_rows`, or of the whole set if it is smaller, and the CPU cores that were busy."""
    rows = min(most_rows, load(str(folder)).num_samples)
    warm_up, num_batches = 5, 60 if device.type == "cuda" else 5
    start = busy = 0.0
    for number, _ in enumerate(_batches(folder, data, device, rows, warm_up + num_batches)):
        if number == warm_up - 1:
            start, busy = time.perf_counter(), time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - start
    return num_batches * rows / took, (time.process_time() - busy) / took


def _batches(folder: Path, data: Data, device: torch.device, rows: int, num_batches: int) -> Iterator[Batch]:
    index = load(str(folder))
    return train_batches(
        index,
        data,
        order_of(index, data, rows, 0),
        rank_info=RankInfo(0, 1, 0, 1),
        device=device,
        micro_steps=1,
        steps=range(0, num_batches),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path, help="a packed set, with 64 JPEGs at least")
    parser.add_argument("part", nargs="*", help="which table (default: both)")
    args = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    parts = {"ways": ways, "torn": torn}
    for part in args.part or parts:
        for line in parts[part](args.set, device):
            print(line, flush=True)
        print(flush=True)


if __name__ == "__main__":
    main()
