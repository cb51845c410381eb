"""One photo on its way into a shard: decode it fully, choose its bytes, add its pixels to the colour statistics.

In: the bytes of a file. Out: the bytes to store with their extension, or `Rejected` with the reason for the user.
"""

import io
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.data.decoding.kinds import damaged_chunk, other_kind
from pipeline.data.decoding.pillow import Undecodable, decoded

if TYPE_CHECKING:
    import numpy as np

STRIDE_PX = 8  # the colour statistics look at every 8th pixel in both directions
_KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # MPO: a phone's JPEG with a second picture behind


class Rejected(Exception):
    """This file is left out; the text is the reason that rejected.tsv gives."""


class Prepared(NamedTuple):
    """`content` is stored under `extension`; `pixels` uint8 [height, width, 3] are what it shows; `because` says why it
    is not the file's own bytes, without loss ("" if it is, or was resized on request)."""

    content: bytes
    extension: str
    pixels: "np.ndarray"
    because: str = ""


def prepare(encoded: bytes, short_side: int | None, quality: int, raw_px: int | None = None) -> Prepared:
    """What to store of an encoded image, which is fully decoded by Pillow.

    Bytes are kept of the kinds that training's decoder is known to show as Pillow does (`decoding/kinds.py`); other
    images become PNG without loss. With `short_side` (pixels), larger images become JPEG of that size. With
    `raw_px`, every image becomes pixels (.npy): its short side is scaled to `raw_px` and the central square is kept
    (Krizhevsky et al. 2012, section 2). The EXIF orientation is not applied, as in torchvision's ImageFolder.

    Raises Rejected with the reason.
    """
    import numpy as np
    from PIL import Image

    try:
        image, format_name = decoded(encoded)
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    except Undecodable as reason:
        raise Rejected(f"cannot be decoded: {reason}") from None
    if raw_px:
        pixels = _central_square(rgb, raw_px)
        return Prepared(_npy(pixels), "npy", pixels)
    if short_side and min(rgb.size) > short_side:
        rgb = rgb.resize(_resized(rgb.size, short_side), Image.Resampling.BICUBIC)
        return Prepared(_encode(rgb, "JPEG", quality=quality), "jpg", np.asarray(rgb))
    because = _not_kept(encoded, format_name)
    if because:
        return Prepared(_encode(image if image.mode == "L" else rgb, "PNG"), "png", np.asarray(rgb), because)
    return Prepared(encoded, _KEPT[format_name], np.asarray(rgb))


def _not_kept(encoded: bytes, format_name: str) -> str:
    """Why an image is not stored as it is; "" if it is."""
    if format_name not in _KEPT:
        return format_name
    damaged = damaged_chunk(encoded) if format_name == "PNG" else ""
    return f"PNG with a wrong checksum ({damaged})" if damaged else other_kind(encoded)


def _resized(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    short, long = sorted(size)
    longer = int(short_side * long / short)  # rounds as torchvision's Resize does
    return (short_side, longer) if size[0] <= size[1] else (longer, short_side)


def _central_square(image: Any, px: int) -> "np.ndarray":
    import numpy as np
    from PIL import Image

    width, height = _resized(image.size, px)
    left, top = (width - px) // 2, (height - px) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(resized.crop((left, top, left + px, top + px)))


def _npy(pixels: "np.ndarray") -> bytes:
    import numpy as np

    stream = io.BytesIO()
    np.lib.format.write_array(stream, pixels, version=(1, 0))
    return stream.getvalue()


def _encode(image: Any, format_name: str, **options) -> bytes:
    image.info.clear()  # EXIF, comments and colour profiles would come along
    stream = io.BytesIO()
    image.save(stream, format_name, **options)
    return stream.getvalue()


def no_pixels() -> dict[str, Any]:
    """Colour sums to `add_pixels` to. Integers are exact, so any grouping of images gives the same figures."""
    return {"num_pixels": 0, "sum": [0] * 3, "outer": [[0] * 3] * 3}


def add_pixels(sums: dict[str, Any], pixels: "np.ndarray") -> None:
    import numpy as np

    sampled = pixels[::STRIDE_PX, ::STRIDE_PX].reshape(-1, 3).astype(np.int64)
    sums["num_pixels"] += len(sampled)
    sums["sum"] = (np.array(sums["sum"]) + sampled.sum(axis=0)).tolist()
    sums["outer"] = (np.array(sums["outer"]) + sampled.T @ sampled).tolist()


def rgb_statistics(parts: list[dict[str, Any]]) -> dict[str, list] | None:
    """Mean and covariance, in 0..1, of all pixels that were added to `parts`; None if there were none."""
    n = sum(part["num_pixels"] for part in parts)
    if not n:
        return None
    total = [sum(part["sum"][i] for part in parts) for i in range(3)]
    outer = [[sum(part["outer"][i][j] for part in parts) for j in range(3)] for i in range(3)]
    # exact integers up to the one division
    covariance = [[(n * outer[i][j] - total[i] * total[j]) / (255 * n) ** 2 for j in range(3)] for i in range(3)]
    return {"mean": [value / (255 * n) for value in total], "covariance": covariance}
