"""What a sample has beside its image, and how that is read.

In: an index, ids. Out: the values of each field that a task asks for, for its targets.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from pipeline.data.geometry import Placement
from pipeline.data.index import Index
from pipeline.data.storage.reader import Reader

Values = Mapping[str, Any]  # by field, of n samples


class Targets(Protocol):
    """The part of a task that the loader asks: which fields it needs, and what a placement of the images makes of
    them."""

    fields: ClassVar[tuple[str, ...]]

    def targets(self, values: Values, placements: Sequence[Placement]) -> torch.Tensor:
        """Of n samples, on the CPU. Called on a thread of the loader, while images are decoded."""
        ...


class Labels:
    """Targets are labels, int64 [n], wherever the images lie."""

    fields: ClassVar[tuple[str, ...]] = ("label",)

    def targets(self, values: Values, placements: Sequence[Placement]) -> torch.Tensor:
        return torch.from_numpy(values["label"])


def _label(index: Index, reader: Reader, samples: np.ndarray) -> np.ndarray:
    """Int64 [n]."""
    return index.label[samples].astype(np.int64)


FIELDS: dict[str, Callable[[Index, Reader, np.ndarray], Any]] = {"label": _label}


def read(index: Index, reader: Reader, names: Sequence[str], samples: np.ndarray) -> Values:
    """The values of these fields of `samples`, ids [n]."""
    return {name: FIELDS[name](index, reader, samples) for name in names}
