"""What a user may bring along without a change to this package: a crop recipe, a task, a tracker, a network."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from pipeline.config import Config
from pipeline.data.fields import Values
from pipeline.data.geometry import Crops, Placement
from pipeline.data.index import Index
from pipeline.data.loader import eval_batches
from pipeline.data.output import Output
from pipeline.runtime import Runtime
from pipeline.tracking.points import Point
from pipeline.tracking.sink import Sink


def corner(heights, widths, ids, seed, epoch, *, crop_px: int, pca=None) -> Crops:
    """The upper left corner, mirrored at odd ids in even epochs, with less red."""
    side = np.minimum(np.minimum(heights, widths), crop_px)
    zero = np.zeros(len(ids))
    colour = np.tile(np.float32([-0.25, 0, 0]), (len(ids), 1))
    return Crops(zero, zero, side, side, (ids + epoch) % 2 == 1, colour)


class Mirrored:
    """Has the image been mirrored? Outputs are logits float32 [n, 1], targets float32 [n]."""

    fields = ()
    num_counts = 3

    def __init__(self, config: Config):
        self.config = config

    def targets(self, values: Values, placements: Sequence[Placement]) -> torch.Tensor:
        return torch.tensor([float(placement.flip) for placement in placements])

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        each = F.binary_cross_entropy_with_logits(outputs[:, 0], targets, reduction="none")
        return torch.where(valid, each, 0).mean()

    def counts(self, outputs: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        wrong = ((outputs[:, 0] > 0) != (targets > 0)) & valid
        return torch.stack([valid.sum(), wrong.sum(), self.loss(outputs, targets, valid) * len(valid)]).double()

    def scores(self, counts: torch.Tensor) -> dict[str, float]:
        seen, wrong, loss = counts.tolist()
        return {"mirrored_error": wrong / seen, "loss": loss / seen}

    def require(self, network: nn.Module) -> None:
        pass

    def evaluate(
        self, network: nn.Module, index: Index, *, runtime: Runtime, progress: Callable[[int], None]
    ) -> dict[str, dict[str, float]]:
        data = self.config.data
        mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
        counts = torch.zeros(3, dtype=torch.float64)
        options = {"rank_info": runtime, "device": runtime.device, "micro_batch": 8}
        with torch.no_grad():
            for batch in eval_batches(index, data, [Output(data.crop_px, square=True)], **options):
                images = (torch.stack(batch.images[0]).permute(0, 3, 1, 2) / 255 - mean) / std  # as in training
                for flipped in (0.0, 1.0):
                    outputs = network(images.flip(3) if flipped else images)
                    counts += self.counts(outputs, torch.full((len(images),), flipped), batch.valid)
        dist.all_reduce(counts)  # each rank has seen its share
        return {"both": self.scores(counts)}

    def headline(self, scores: Mapping[str, Mapping[str, float]]) -> float:
        return scores["both"]["mirrored_error"]


class Diary(Sink):
    """Every point, as Python writes it, in a file of the run folder."""

    def __init__(self, config: Config, run: Path, id: str | None):
        self.file = open(run / "diary.txt", "a")  # noqa: SIM115

    def log(self, point: Point) -> None:
        print(point, file=self.file)

    def close(self) -> None:
        self.file.close()


def sized(num_classes: int) -> nn.Module:
    """For images of 24 px."""
    return nn.Sequential(nn.Conv2d(3, 4, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(400, 1))
