"""The samples that the page shows, small: what a person looks at to know which class and which picture is meant.

In: the findings, and where the images lie. Out: for shard and key the class and a thumbnail.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.decoding import pillow
from pipeline.data.decoding.pillow import Undecodable
from pipeline.linting.findings import KINDS, Findings
from pipeline.linting.page import EXAMPLES, Shown
from pipeline.linting.repeats import Digests, Place

SIDE_PX = 96


def shown(findings: Findings, digests: Digests, tars: Sequence[Path]) -> dict[tuple[str, str], Shown]:
    """Of the first `EXAMPLES` findings of each kind, those that are about one image."""
    pictures: dict[tuple[str, str], Shown] = {}
    for kind in KINDS:
        for _, shard, key, _ in findings.of(kind)[:EXAMPLES]:
            if (shard, key) not in pictures and (place := digests.place(shard, key)):
                pictures[shard, key] = Shown(digests.named(place.label), _picture(tars[place.shard], place))
    return pictures


def _picture(tar: Path, place: Place) -> str:
    try:
        with open(tar, "rb") as file:
            file.seek(place.offset)
            content = file.read(place.size)
        if place.raw:
            pixels = np.frombuffer(content, np.uint8).reshape(place.height, place.width, 3)
        else:
            pixels = pillow.pixels(content)
    except (OSError, Undecodable, MemoryError, ValueError):
        return ""
    image, stream = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((SIDE_PX, SIDE_PX))
    image.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
