"""Exact evaluation: every image of a set scored once, at any number of ranks, over one or more views and networks.

In: networks with their preprocessing, an index, the names of views. Out: `Outcomes`. Softmax outputs are averaged over
the crops of a view, its scales, and the networks of an ensemble (Krizhevsky et al. 2012, section 4.1; Simonyan and
Zisserman 2014, section 3.2). On a CPU in fp32 the result's bits depend on neither the number of ranks nor the batch:
the network is always given `ROWS_ON_CPU` rows, because matrix products round otherwise at another number of rows.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from models.dense import Dense
from pipeline.config import Data
from pipeline.data.index import Index
from pipeline.data.loader import eval_batches
from pipeline.data.output import Output
from pipeline.errors import UserError
from pipeline.evaluation.outcomes import Accumulator, Outcomes
from pipeline.runtime import Runtime
from pipeline.views import ViewCrop, crop_origin, parse, view_crops

ROWS_ON_CPU = 32  # of a forward pass, always
ROWS_ON_GPU = 256  # at most: ten times the micro-batch of a VGG would need tens of GB
WHOLE_ON_GPU = 16  # whole images of one size, and their mirror images


@dataclass(frozen=True)
class ScoredModel:
    """A network on the device, in evaluation mode, and how its images are prepared: crop_px, resize_px, interpolation,
    antialias, mean and std of `data`; `corners` as in `views.crop_origin`."""

    network: nn.Module
    data: Data
    corners: str


@torch.inference_mode()
def evaluate(
    scored_models: Sequence[ScoredModel],
    index: Index,
    data: Data,
    views: Sequence[str],
    *,
    labels: np.ndarray | None = None,
    runtime: Runtime,
    micro_batch: int,
    bf16: bool,
    progress: Callable[[int], None] = lambda done: None,
) -> Outcomes:
    """What became of every image in each view, the same on all ranks; with several scored_models, of their average.

    `data` says how images are read. `labels` int64 [N] are the network's outputs, by default the index's labels.
    `progress` is told how many images are done. All views share one pass, in which each image is decoded once and each
    crop scored once. Called by all ranks together. Raises RuntimeError if an image was left out or counted twice,
    UserError for a dense view of a network that has no dense form.
    """
    scorers = [_Scorer(of_model, views, runtime.device, bf16) for of_model in scored_models]
    outputs = sorted({output for scorer in scorers for output in scorer.outputs})
    labels = index.label.astype(np.int64) if labels is None else labels
    table, done = Accumulator(labels, list(views), runtime.device), 0
    for batch in eval_batches(index, data, outputs, rank_info=runtime, device=runtime.device, micro_batch=micro_batch):
        progress(min(done, len(labels)))
        done += len(batch.ids) * runtime.world
        rows = np.flatnonzero(batch.ids >= 0)  # the others are padding
        if not len(rows):
            continue
        images = {output: [some[row] for row in rows] for output, some in zip(outputs, batch.images, strict=True)}
        probabilities = [scorer.probabilities(images) for scorer in scorers]
        equal = [1 / len(probabilities)] * len(probabilities)
        averaged = [_mean([of_model[number] for of_model in probabilities], equal) for number in range(len(views))]
        ids, places = (torch.from_numpy(of).to(runtime.device, non_blocking=True) for of in (batch.ids[rows], rows))
        table.add(ids, batch.valid[places], averaged)
    return table.reduced()


def require_views(network: nn.Module, data: Data, views: Sequence[str]) -> Dense | None:
    """The dense form of a network in evaluation mode, if `views` need one. Raises UserError if it has none."""
    if not any(part.kind == "dense" for view in views for part in parse(view)):
        return None
    try:
        return Dense(network, data.crop_px)
    except ValueError as error:
        raise UserError(f"view dense: {error}. Leave the dense views out") from None


class _Scorer:
    """One scored_model, and the crops of its views."""

    def __init__(self, scored_model: ScoredModel, views: Sequence[str], device: torch.device, bf16: bool):
        data = scored_model.data
        self.network, self.device, self.bf16, self.crop_px = scored_model.network, device, bf16, data.crop_px
        self.corners = scored_model.corners
        self.views = [view_crops(view, data.scales()) for view in views]
        all_crops = dict.fromkeys(crop for view in self.views for crop, _ in view)
        self.crops = sorted((crop for crop in all_crops if crop.place != "dense"), key=lambda crop: crop.mirrored)
        self.whole = sorted({crop.scale_px for crop in all_crops if crop.place == "dense"})
        scales = sorted({crop.scale_px for crop in all_crops})
        self.output = {px: Output(px, data.interpolation, data.antialias) for px in scales}
        self.outputs = list(self.output.values())
        mean, std = 255 * torch.tensor(data.mean), 255 * torch.tensor(data.std)
        self.scale, self.offset = (1 / std).to(device), (-mean / std).to(device)
        self.dense = require_views(scored_model.network, data, views)

    def probabilities(self, images: dict[Output, list[torch.Tensor]]) -> list[torch.Tensor]:
        """Float64 [n, classes] of each view."""
        by_crop = self._of_crops(images)
        for px in self.whole:
            by_crop |= self._of_whole(px, images[self.output[px]])
        return [_mean([by_crop[crop] for crop, _ in view], [weight for _, weight in view]) for view in self.views]

    def _of_crops(self, images: dict[Output, list[torch.Tensor]]) -> dict[ViewCrop, torch.Tensor]:
        if not self.crops:
            return {}
        # Mirrored ones last, so that they are neighbours.
        asked = [(crop, image) for crop in self.crops for image in images[self.output[crop.scale_px]]]
        size = ROWS_ON_GPU if self.device.type == "cuda" else ROWS_ON_CPU
        probabilities = torch.cat([self._forward(asked[start : start + size]) for start in range(0, len(asked), size)])
        return dict(zip(self.crops, probabilities.view(len(self.crops), -1, probabilities.shape[1]), strict=True))

    def _forward(self, asked: Sequence[tuple[ViewCrop, torch.Tensor]]) -> torch.Tensor:
        """Probabilities float64 [len(asked), classes]."""
        px = self.crop_px
        rows = []
        for crop, image in asked:
            top, left = crop_origin(crop, *image.shape[:2], px, self.corners)
            rows.append(image[top : top + px, left : left + px])
        pixels = torch.stack(rows)
        first = next((number for number, (crop, _) in enumerate(asked) if crop.mirrored), len(asked))
        if first < len(asked):
            pixels[first:] = pixels[first:].flip(2)
        missing = ROWS_ON_CPU - len(asked)
        if self.device.type == "cpu" and missing > 0:
            pixels = torch.cat([pixels, pixels.new_zeros(missing, px, px, 3)])
        return self._scores(self.network, pixels).softmax(dim=1)[: len(asked)]

    def _of_whole(self, px: int, images: list[torch.Tensor]) -> dict[ViewCrop, torch.Tensor]:
        """Class scores are averaged over the map, softmax outputs over the image and its mirror image (section 3.2)."""
        assert self.dense is not None
        probabilities: dict[int, torch.Tensor] = {}  # of an image, float64 [2, classes]
        with _without_tuning():
            for numbers in self._alike(images):
                plain = torch.stack([images[number] for number in numbers])
                scores = self._scores(self.dense, torch.cat([plain, plain.flip(2)])).mean(dim=(2, 3))
                both = scores.softmax(dim=1).view(2, len(numbers), -1)
                probabilities |= {number: both[:, place] for place, number in enumerate(numbers)}
        stacked = torch.stack([probabilities[number] for number in range(len(images))], dim=1)
        return {ViewCrop(px, "dense", False): stacked[0], ViewCrop(px, "dense", True): stacked[1]}

    def _alike(self, images: list[torch.Tensor]) -> list[list[int]]:
        """The numbers of images in groups of one size: on a CPU one by one, so that no image's bits depend on
        others."""
        if self.device.type == "cpu":
            return [[number] for number in range(len(images))]
        groups: dict[torch.Size, list[int]] = {}
        for number, image in enumerate(images):
            groups.setdefault(image.shape, []).append(number)
        return [some[at : at + WHOLE_ON_GPU] for some in groups.values() for at in range(0, len(some), WHOLE_ON_GPU)]

    def _scores(self, network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        """Float64 scores of uint8 [n, height, width, 3]."""
        width = pixels.shape[2]  # whole rows, since along three colours alone nothing is fast on a CPU
        rows = pixels.flatten(2).float().mul_(self.scale.repeat(width)).add_(self.offset.repeat(width))
        images = rows.view(pixels.shape).permute(0, 3, 1, 2)  # channels_last
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return network(images).double()  # so that no probability is 0


def _mean(probabilities: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """The weighted mean of tensors [n, classes]. One product and one sum at a time: both are rounded alike wherever an
    element lies, which fused or vectorised reductions (and a logsumexp) are not."""
    total = torch.zeros_like(probabilities[0])
    for each, weight in zip(probabilities, weights, strict=True):
        total += each * weight
    return total


@contextmanager
def _without_tuning():
    """cuDNN would try all its algorithms anew for every image size."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
