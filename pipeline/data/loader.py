"""Batches for training and evaluation: order, windows, reader and DALI graph, joined.

In: an index, the config's data section, a rank, the steps wanted. Out: `Batch`es of images on the device with labels.
A batch is always full; rows that only pad it carry label -1 and id -1, so no rank ever takes a step more than another.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.config import Data
from pipeline.data import windows
from pipeline.data.dali import Request, decode
from pipeline.data.index import Index
from pipeline.data.order import Order, rank_part, sequential_batch
from pipeline.data.reader import Reader
from pipeline.errors import UserError
from pipeline.runtime import Place


@dataclass(frozen=True)
class Batch:
    """images float32 [n, 3, px, px]; labels and ids int64 [n], -1 where a row is padding; wait_s spent waiting."""

    images: torch.Tensor
    labels: torch.Tensor
    ids: np.ndarray
    wait_s: float


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
) -> Iterator[Batch]:
    """This rank's micro-batches of the steps first_step .. last_step - 1, `micro_steps` a step."""
    rows = order.global_batch // place.world // micro_steps
    choose = window_recipe(index, data)
    reader = Reader(index)

    def requests() -> Iterator[Request]:
        for step in range(first_step, last_step):
            mine = rank_part(order.batch(step), place.rank, place.world)
            for ids in mine.reshape(micro_steps, rows):
                seen = choose(index.height[ids], index.width[ids], ids, seed, order.epoch(step))
                yield Request(ids, index.label[ids].astype(np.int64), reader.read(ids), seen)

    return _batches(requests(), data, rows, data.crop_px, place, device)


def eval_batches(index: Index, data: Data, *, place: Place, device: torch.device, micro_batch: int) -> Iterator[Batch]:
    """This rank's share of every sample, once: the central square of each image at `resize_px`, to cut views from."""
    rows = min(micro_batch, -(-index.num_samples // place.world))
    global_batch = rows * place.world
    reader = Reader(index)

    def requests() -> Iterator[Request]:
        for step in range(-(-index.num_samples // global_batch)):
            ids = rank_part(sequential_batch(step, index.num_samples, global_batch), place.rank, place.world)
            read = np.maximum(ids, 0)  # padding decodes sample 0, and nobody looks
            labels = np.where(ids < 0, -1, index.label[read]).astype(np.int64)
            seen = windows.centre_square(index.height[read], index.width[read], read)
            yield Request(ids, labels, reader.read(read), seen)

    return _batches(requests(), data, rows, data.resize_px, place, device)


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


def _batches(requests, data: Data, rows: int, px: int, place: Place, device: torch.device) -> Iterator[Batch]:
    decoded = decode(
        requests,
        rows=rows,
        px=px,
        mean=data.mean,
        std=data.std,
        device=device,
        on_gpu=decodes_on_gpu(data, device),
        threads=data.threads or max(1, len(os.sched_getaffinity(0)) // place.local_world),
        prefetch=data.prefetch,
    )
    while True:
        start = time.perf_counter()
        pair = next(decoded, None)
        if pair is None:
            return
        request, images = pair
        labels = torch.from_numpy(request.labels).to(device, non_blocking=True)
        yield Batch(images, labels, request.ids, time.perf_counter() - start)


def decodes_on_gpu(data: Data, device: torch.device) -> bool:
    """Whether DALI decodes on the GPU. Raises UserError when the config wants one and there is none."""
    if data.decoder == "gpu" and device.type != "cuda":
        raise UserError("data.decoder=gpu, but this process has no GPU. Use data.decoder=auto or cpu")
    return device.type == "cuda" and data.decoder != "cpu"
