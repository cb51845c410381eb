"""Batches for training and evaluation: order, windows, reader and DALI graph, joined.

In: an index, the config's data section, a rank, the steps wanted. Out: `Batch`es of images on the device with targets.
A batch is always full; rows that only pad it have id -1 and are not valid, so no rank takes a step more than another.
"""

import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from pipeline.config import Data
from pipeline.data import windows
from pipeline.data.decoding.dali import Decoder
from pipeline.data.decoding.decoder import decode, render
from pipeline.data.index import Index
from pipeline.data.order import Order, machine_part, rank_part, sequential_batch
from pipeline.data.quarantine import Refuse, refuse
from pipeline.data.rendering import Rendering
from pipeline.data.request import Request, shown
from pipeline.data.source import Source
from pipeline.errors import UserError
from pipeline.runtime import Place

T = TypeVar("T")


@dataclass(frozen=True)
class Rendered:
    """images[r][n] is row n in rendering r: uint8 [height, width, 3] on the device, valid until the next batch is asked
    for; the rest as in `Batch`."""

    images: list[list[torch.Tensor]]
    targets: torch.Tensor
    valid: torch.Tensor
    ids: np.ndarray

    @property
    def labels(self) -> torch.Tensor:
        """As earlier versions had them, for scripts that read sets: -1 where a row is not valid."""
        return torch.where(self.valid, self.targets, -1)


@dataclass(frozen=True)
class Batch:
    """images float32 [n, 3, px, px]; targets, which are labels int64 [n]; valid bool [n], false where a row is padding
    or its image could not be decoded; ids int64 [n], -1 where a row is padding."""

    images: torch.Tensor
    targets: torch.Tensor
    valid: torch.Tensor
    ids: np.ndarray


def order_of(index: Index, data: Data, global_batch: int, seed: int) -> Order:
    """The training order that the config names. Raises UserError if the set is smaller than a batch."""
    if data.shuffle == "global":
        return Order(index.num_samples, global_batch, seed)
    sizes = np.array([shard.num_samples for shard in index.shards])
    return Order(index.num_samples, global_batch, seed, sizes, data.window_shards)


def train_batches(
    index: Index,
    data: Data,
    order: Order,
    seed: int,
    *,
    place: Place,
    device: torch.device,
    micro_steps: int,
    first_step: int,
    last_step: int,
    run: Path | None = None,
    too_many_bad: Refuse = refuse,
) -> Iterator[Batch]:
    """This rank's micro-batches of the steps first_step .. last_step - 1, `micro_steps` a step.

    `run` is the folder whose bad_images.tsv the ranks share; `too_many_bad` is told of more than `data.max_bad_images`,
    and by default raises UserError. Raises UserError for a remote shard that cannot be fetched.
    """
    steps = range(first_step, last_step)
    source = Source(
        index,
        data,
        steps,
        lambda step: rank_part(order.batch(step), place.rank, place.world),
        lambda step: machine_part(order.batch(step), place),
        run,
        too_many_bad,
    )
    requests = train_requests(source, data, order, seed, micro_steps)
    decoded = decode(
        requests,
        px=data.crop_px,
        mean=data.mean,
        std=data.std,
        interpolation=data.interpolation,
        antialias=data.antialias,
        **_how(source, data, place, device),
    )
    return (Batch(images, *_uploaded(request, device)) for request, images in _closing(decoded, source))


def train_requests(source: Source, data: Data, order: Order, seed: int, micro_steps: int) -> Iterator[Request]:
    """What `train_batches` asks its decoder for."""
    index, choose = source.index, window_recipe(source.index, data)
    for step, mine in source.walk():
        for ids in np.split(mine, micro_steps):
            yield source.request(ids, choose(index.height[ids], index.width[ids], ids, seed, order.epoch(step)))


def eval_batches(
    index: Index,
    data: Data,
    renderings: Sequence[Rendering],
    *,
    place: Place,
    device: torch.device,
    micro_batch: int,
    samples: np.ndarray | None = None,
) -> Iterator[Rendered]:
    """This rank's share of every sample (or of `samples`, ids [n]), once: whole images in each of `renderings`, to cut
    views from. Each image is decoded once."""
    samples = np.arange(index.num_samples) if samples is None else samples
    rows = min(micro_batch, -(-len(samples) // place.world))
    global_batch = rows * place.world
    steps = range(-(-len(samples) // global_batch))

    def batch(step: int) -> np.ndarray:
        numbers = sequential_batch(step, len(samples), global_batch)
        return np.where(numbers < 0, -1, samples[numbers])

    source = Source(
        index,
        data,
        steps,
        lambda step: rank_part(batch(step), place.rank, place.world),
        lambda step: machine_part(batch(step), place),
    )
    requests = (
        source.request(ids, windows.whole(index.height[shown(ids)], index.width[shown(ids)]))
        for _, ids in source.walk()
    )
    rendered = render(requests, renderings=renderings, **_how(source, data, place, device))
    return (Rendered(images, *_uploaded(request, device)) for request, images in _closing(rendered, source))


def window_recipe(index: Index, data: Data):
    """The config's recipe as one function of (heights, widths, ids, seed, epoch)."""
    settings: dict = {"pca": _pca(index, data)}
    if data.recipe == "alexnet":
        settings |= {"crop_px": data.crop_px, "resize_px": data.resize_px}
    elif data.recipe == "vgg":
        settings |= {"crop_px": data.crop_px, "scale_px": data.scale_px}
    else:
        settings |= {"area": data.area, "aspect": data.aspect}
    recipe = getattr(windows, data.recipe)

    def choose(heights, widths, ids, seed, epoch) -> windows.Windows:
        return recipe(heights, widths, ids, seed, epoch, **settings)

    return choose


def _pca(index: Index, data: Data):
    if data.pca_std == 0:
        return None
    if data.pca == "imagenet":
        return windows.IMAGENET_EIGENVALUES, windows.IMAGENET_EIGENVECTORS, data.pca_std
    if index.rgb_covariance is None:
        raise UserError(
            f"data.pca=shards, but {index.folder} was indexed without RGB statistics. Use data.pca=imagenet, or pack "
            f"the images with launch.pack"
        )
    return *windows.pca_of(index.rgb_covariance), data.pca_std


def _how(source: Source, data: Data, place: Place, device: torch.device) -> dict[str, Any]:
    """What the decoder must know beside what to decode, in training and evaluation."""
    return {
        "decoder": Decoder(source.index.is_raw, data.decode_whole, data.hw_decoder_load),
        "device": device,
        "on_gpu": decodes_on_gpu(data, device.type),
        "threads": data.threads or max(1, len(os.sched_getaffinity(0)) // place.local_world),
        "prefetch": data.prefetch,
        "bad": source.bad,
    }


def _closing(decoded: Generator[tuple[Request, T], None, None], source: Source) -> Iterator[tuple[Request, T]]:
    """`decoded`, and what it rests on closed at its end."""
    try:
        yield from decoded
    finally:
        decoded.close()
        source.close()


def _uploaded(request: Request, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Targets and `valid` on the device, ids."""
    targets, valid = (
        torch.from_numpy(column).to(device, non_blocking=True) for column in (request.labels, request.valid)
    )
    return targets, valid, request.ids


def decodes_on_gpu(data: Data, device_type: str) -> bool:
    """Whether DALI decodes on the GPU. Raises UserError when the config wants one and there is none."""
    if data.decoder == "gpu" and device_type != "cuda":
        raise UserError("data.decoder=gpu, but this process has no GPU. Use data.decoder=auto or cpu")
    return device_type == "cuda" and data.decoder != "cpu"
