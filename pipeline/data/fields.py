"""What a sample has beside its image, and how that is read: a label, boxes, a mask.

In: an index, ids. Out: the values of each field that a task asks for, for its targets.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch

from pipeline.data.geometry import Placement
from pipeline.data.index import Index
from pipeline.data.storage.reader import Reader
from pipeline.errors import UserError

VOID = 255  # of a mask: no class
Values = Mapping[str, Any]  # by field, of n samples


class Boxes(NamedTuple):
    """Of one sample: `edges` float32 [k, 4] left, top, right, bottom in source pixels, `labels` int32 [k], `difficult`
    bool [k]."""

    edges: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


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


def read(index: Index, reader: Reader, names: Sequence[str], samples: np.ndarray) -> Values:
    """The values of these fields, which the set has, of `samples`, ids [n]."""
    return {name: FIELDS[name](index, reader, samples) for name in names}


def require(index: Index, names: Sequence[str], task: str) -> None:
    """Raises UserError for a field that there is not, or that the set does not have."""
    if unknown := [name for name in names if name not in FIELDS]:
        raise UserError(f"task={task}: there is no field {unknown[0]!r}, there are {', '.join(FIELDS)}")
    if "boxes" in names and index.box is None:
        raise UserError(f"{index.folder} has no boxes. Pack a set for detection")
    if "mask" in names and index.mask_offset is None:
        raise UserError(f"{index.folder} has no masks. Pack a set for segmentation")


def decode_mask(encoded: np.ndarray) -> np.ndarray:
    """The indices in a PNG, uint8 [height, width], by Pillow: DALI would turn its palette into colours. Raises
    ValueError for one that holds colours or more than 8 bits."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded.tobytes())) as picture:
        if picture.mode not in ("P", "L", "1"):
            raise ValueError(f"its mode is {picture.mode}, but a mask holds an index a pixel (P or L)")
        return np.array(picture, np.uint8)


def _label(index: Index, reader: Reader, samples: np.ndarray) -> np.ndarray:
    """Int64 [n]."""
    return index.label[samples].astype(np.int64)


def _boxes(index: Any, reader: Reader, samples: np.ndarray) -> list[Boxes]:
    rows = [slice(*index.box_start[[sample, sample + 1]].tolist()) for sample in samples.tolist()]
    return [Boxes(index.box[some], index.box_label[some], index.box_difficult[some]) for some in rows]


def _mask(index: Any, reader: Reader, samples: np.ndarray) -> list[np.ndarray]:
    """Encoded, for `decode_mask`: uint8 [size] each."""
    return reader.read_members(samples, index.mask_offset[samples], index.mask_size[samples])


FIELDS: dict[str, Callable[[Index, Reader, np.ndarray], Any]] = {"label": _label, "boxes": _boxes, "mask": _mask}
