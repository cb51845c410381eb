"""Batches for training and evaluation: order, windows, reader and DALI graph, joined.

In: an index, the config's data section, a rank, the steps wanted. Out: `Batch`es of images on the device with targets.
A batch is always full; rows that only pad it have id -1 and are not valid, so no rank takes a step more than another.
"""

import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import own
from pipeline.config import Data
from pipeline.data import crops
from pipeline.data.bad_images import TooManyBad, raise_too_many
from pipeline.data.decoding.dali import Decoder
from pipeline.data.decoding.decoder import Workers, decode
from pipeline.data.fields import Labels, Targets
from pipeline.data.geometry import Crops, Placements
from pipeline.data.index import Index
from pipeline.data.order import Order, machine_part, rank_part, sequential_batch
from pipeline.data.output import Normal, Output
from pipeline.data.request import Request, clamp_padding
from pipeline.data.source import Source
from pipeline.errors import UserError
from pipeline.runtime import RankInfo


@dataclass(frozen=True)
class Batch:
    """images float32 [n, 3, px, px]; the task's targets; valid bool [n], false where a row is padding or its image
    could not be decoded; ids int64 [n], -1 where a row is padding."""

    images: torch.Tensor
    targets: torch.Tensor
    valid: torch.Tensor
    ids: np.ndarray


@dataclass(frozen=True)
class WholeImages:
    """images[k][n] is row n in output k: uint8 [height, width, 3] on the device, valid until the next batch is asked
    for; the rest as in `Batch`."""

    images: list[list[torch.Tensor]]
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
    *,
    steps: range,
    micro_steps: int,
    rank_info: RankInfo,
    device: torch.device,
    task: Targets | None = None,
    run: Path | None = None,
    too_many_bad: TooManyBad = raise_too_many,
) -> Iterator[Batch]:
    """This rank's micro-batches of `steps`, `micro_steps` a step.

    Targets are those of `task`, by default labels. `run` is the folder whose bad_images.tsv the ranks share;
    `too_many_bad` is told of more than `data.max_bad_images`, and by default raises UserError. Raises UserError for a
    remote shard that cannot be fetched.
    """
    source = Source(
        index,
        data,
        steps,
        lambda step: rank_part(order.batch(step), rank_info.rank, rank_info.world),
        lambda step: machine_part(order.batch(step), rank_info),
        run,
        too_many_bad,
    )
    requests = train_requests(source, data, order, micro_steps, task or Labels())
    return _train_batches(_decoded(requests, [train_output(data)], source, data, rank_info, device), device)


def _train_batches(decoded: Iterator[tuple[Request, list[Any]]], device: torch.device) -> Iterator[Batch]:
    for request, (images,) in decoded:
        assert request.targets
        targets = request.targets.result().to(device, non_blocking=True)
        yield Batch(images, targets, _upload(request.valid, device), request.ids)


def train_output(data: Data) -> Output:
    """What the network sees in training."""
    return Output(data.crop_px, data.interpolation, data.antialias, square=True, normal=Normal(data.mean, data.std))


def train_requests(source: Source, data: Data, order: Order, micro_steps: int, task: Targets) -> Iterator[Request]:
    """What `train_batches` asks its decoder for. Targets are made on a thread meanwhile."""
    index, choose, output = source.index, recipe(source.index, data), train_output(data)
    with ThreadPoolExecutor(data.threads or 1) as pool:  # starts no more than it has work for
        for step, mine in source.walk():
            for ids in np.split(mine, micro_steps):
                seen = choose(index.height[ids], index.width[ids], ids, order.seed, order.epoch(step))
                placements = Placements(seen, output.sizes(seen.height, seen.width))
                targets = pool.submit(task.targets, source.values(task.fields, ids), placements)
                yield replace(source.request(ids, seen), targets=targets)


def eval_batches(
    index: Index,
    data: Data,
    outputs: Sequence[Output],
    *,
    rank_info: RankInfo,
    device: torch.device,
    micro_batch: int,
    samples: np.ndarray | None = None,
) -> Iterator[WholeImages]:
    """This rank's share of every sample (or of `samples`, ids [n]), once: whole images in each of `outputs`, to cut
    views from. Each image is decoded once."""
    samples = np.arange(index.num_samples) if samples is None else samples
    rows = min(micro_batch, -(-len(samples) // rank_info.world))
    global_batch = rows * rank_info.world
    steps = range(-(-len(samples) // global_batch))

    def batch(step: int) -> np.ndarray:
        numbers = sequential_batch(step, len(samples), global_batch)
        return np.where(numbers < 0, -1, samples[numbers])

    source = Source(
        index,
        data,
        steps,
        lambda step: rank_part(batch(step), rank_info.rank, rank_info.world),
        lambda step: machine_part(batch(step), rank_info),
    )
    requests = (
        source.request(ids, crops.whole(index.height[clamp_padding(ids)], index.width[clamp_padding(ids)]))
        for _, ids in source.walk()
    )
    decoded = _decoded(requests, outputs, source, data, rank_info, device)
    return (WholeImages(images, _upload(request.valid, device), request.ids) for request, images in decoded)


def recipe(index: Index, data: Data) -> crops.Recipe:
    """The config's recipe as one function of (heights, widths, ids, seed, epoch)."""
    if data.recipe not in crops.RECIPES:
        return _own_recipe(index, data)
    choose, names = crops.RECIPES[data.recipe]
    return partial(choose, pca=_pca(index, data), **{name: getattr(data, name) for name in names})


def _own_recipe(index: Index, data: Data) -> crops.Recipe:
    """A user's own, whose windows are looked at: one that reaches beyond its image would end DALI's graph."""
    function = partial(own.find("data.recipe", data.recipe), crop_px=data.crop_px, pca=_pca(index, data))

    def choose(heights: np.ndarray, widths: np.ndarray, ids: np.ndarray, seed: int, epoch: int) -> Crops:
        seen = crops.pack(**vars(function(heights, widths, ids, seed, epoch)))
        inside = (seen.top >= 0) & (seen.left >= 0) & (seen.height > 0) & (seen.width > 0)
        inside &= (seen.top + seen.height <= heights) & (seen.left + seen.width <= widths)
        if not inside.all():
            row = int(inside.argmin())
            window = f"{seen.width[row]} x {seen.height[row]} px from left {seen.left[row]} and top {seen.top[row]}"
            raise UserError(
                f"data.recipe={data.recipe}: the window of sample {ids[row]}, {window}, does not lie in its image of "
                f"{widths[row]} x {heights[row]} px"
            )
        return seen

    return choose


def _pca(index: Index, data: Data):
    if data.pca_std == 0:
        return None
    if data.pca == "imagenet":
        return crops.IMAGENET_EIGENVALUES, crops.IMAGENET_EIGENVECTORS, data.pca_std
    if index.rgb_covariance is None:
        raise UserError(
            f"data.pca=shards, but {index.folder} was indexed without RGB statistics. Use data.pca=imagenet, or pack "
            f"the images with launch.pack"
        )
    return *crops.pca_of(index.rgb_covariance), data.pca_std


def _decoded(
    requests: Iterator[Request],
    outputs: Sequence[Output],
    source: Source,
    data: Data,
    rank_info: RankInfo,
    device: torch.device,
) -> Iterator[tuple[Request, list[Any]]]:
    """The requests with their images in each of the outputs. What they rest on is closed at the end."""
    decoder = Decoder(source.index.is_raw, data.decode_whole, data.hw_decoder_load)
    threads = data.threads or max(1, len(os.sched_getaffinity(0)) // rank_info.local_world)
    workers = Workers(device, decodes_on_gpu(data, device.type), threads, data.prefetch)
    return _closing(decode(requests, decoder, outputs, workers, source.bad), source)


def _closing(
    decoded: Generator[tuple[Request, list[Any]], None, None], source: Source
) -> Iterator[tuple[Request, list[Any]]]:
    try:
        yield from decoded
    finally:
        decoded.close()
        source.close()


def _upload(column: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(column).to(device, non_blocking=True)


def decodes_on_gpu(data: Data, device_type: str) -> bool:
    """Whether DALI decodes on the GPU. Raises UserError when the config wants one and there is none."""
    if data.decoder == "gpu" and device_type != "cuda":
        raise UserError("data.decoder=gpu, but this process has no GPU. Use data.decoder=auto or cpu")
    return device_type == "cuda" and data.decoder != "cpu"
