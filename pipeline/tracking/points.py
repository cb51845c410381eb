"""What is logged, by name: points of numbers over steps; tables and pictures beside them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

# All keys that are logged, but for the scores of tasks: train/NAME and eval/VIEW/NAME.
STEP, EPOCH = "step", "epoch"
TRAIN_LOSS, TRAIN_TOP1 = "train/loss", "train/top1_error"
LEARNING_RATE = "train/lr"
IMAGES_PER_S = "speed/images_per_s"
STEP_S = "speed/step_s"
DATA_WAIT_S, COMPUTE_S, COMMUNICATION_S = "speed/data_wait_s", "speed/compute_s", "speed/communication_s"
SLOWEST_RANK = "speed/slowest_rank"  # the one with most seconds a step that are not communication
SLOWEST_S = "speed/slowest_rank_s"  # how many; where communication is not measured, those that it waited for data
MEMORY_GB = "speed/memory_gb"  # the most of any rank since the start: on a GPU allocated there, else resident

Point = dict[str, float]


@dataclass(frozen=True)
class Media:
    """What no line of numbers can say, each by its key: `tables` as (column names, rows), `pictures` with their
    captions, and a `summary` of the whole run."""

    step: int
    tables: dict[str, tuple[list[str], list[list[Any]]]]
    pictures: dict[str, tuple["Image", str]]
    summary: dict[str, Any]


def eval_point(view: str, scores: Mapping[str, float], other_set: str | None = None) -> Point:
    """A point of one view's errors (fractions in 0..1) and loss; `other_set` names what is not data.validation."""
    prefix = f"eval/{other_set}/{view}" if other_set else f"eval/{view}"
    return {f"{prefix}/{name}": value for name, value in scores.items()}
