"""Pillow's picture of an image, which is the right one: what torchvision's ImageFolder shows.

In: encoded bytes of any format that Pillow reads. Out: uint8 pixels [height, width, 3], or `Undecodable` with the
reason. Only where Pillow clips or drops what a file says of its depth, the depth decides (`eight_bit`). Packing stores
these pixels, or bytes that DALI decodes to the same; loading asks for them where DALI cannot (`kinds.py`).
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.decoding.kinds import PNG_MAGIC, png_chunks

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow refuses a PNG of which one of these is large; none of them says anything of the pixels.
_TEXTS = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}
_SIXTEEN, _THIRTY_TWO = (1 << 16) - 1, (1 << 32) - 1
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_WHITE_IS_ZERO, _UNSIGNED = 0, 1


class Undecodable(Exception):
    """There is no picture in it; the text is the reason, for the user."""


@contextmanager
def opened(encoded: bytes) -> Iterator["Image"]:
    """The image, of which only the header has been read. What Pillow raises while it is open becomes Undecodable."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(_without_texts(encoded))) as image:
            yield image
    except UnidentifiedImageError:
        raise Undecodable("no image in a format that Pillow reads") from None
    except Image.DecompressionBombError:
        raise Undecodable(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels") from None
    except (MemoryError, Undecodable):
        raise
    except Exception as error:  # a damaged file can make Pillow raise anything: SyntaxError, struct.error, IndexError
        reason = re.sub(r"\s+|<.*?>|0x[0-9a-f]+", " ", str(error)).strip()  # addresses would differ in each run
        raise Undecodable(reason or type(error).__name__) from None


def pixels(encoded: bytes) -> np.ndarray:
    """The picture, uint8 [height, width, 3]. Raises Undecodable."""
    return np.asarray(decoded(encoded)[0].convert("RGB"))


def decoded(encoded: bytes) -> tuple["Image", str]:
    """The picture, whole, in a mode of 8 bits, and its format. Raises Undecodable."""
    with opened(encoded) as image:
        white = _white(image)  # from the header, which `load` replaces
        image.load()
        if image.format == "PNG" and all(kind != b"IEND" for kind, *_ in png_chunks(encoded)):
            raise Undecodable("the PNG's end is missing")  # Pillow forgives that, DALI does not
        return _eight_bit(image, white), str(image.format)


def _eight_bit(image: Any, white: int | None) -> "Image":
    """Grey of more than 8 bits is scaled by the depth that the file states, `white`.

    Of 16 and 32 bits the upper byte is taken, as Pillow and libpng do it for colour. White is the largest value, or 0
    where a TIFF says so. Integers of no stated range (signed ones) are what they are if they lie in 0..255. Raises
    Undecodable for others and for floating point.
    """
    from PIL import Image

    if image.mode == "F":
        raise Undecodable("floating-point pixels, of which nobody says what is white")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    values = values.view(np.uint32) if white == _THIRTY_TWO else values.astype(np.int64)
    if image.format == "PPM" and white:
        values = np.rint(values * (white / _SIXTEEN)).astype(np.int64)  # Pillow has made 16 bits of them
    if white is None:
        if values.min() < 0 or values.max() > 255:
            raise Undecodable(f"integers from {values.min()} to {values.max()}, of which nobody says what is white")
        grey = values
    elif white in (_SIXTEEN, _THIRTY_TWO):
        grey = values >> (white.bit_length() - 8)
    else:
        grey = values * 255 // white
    if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    return Image.fromarray(grey.astype(np.uint8))


def _white(image: Any) -> int | None:
    """The largest value that integers of this file can have; None if it does not say so."""
    if image.format == "PPM" and isinstance(image.tile[0].args, tuple):
        return None if image.mode != "I" else int(image.tile[0].args[1])
    if image.format in ("PNG", "JPEG2000", "PPM"):
        return _SIXTEEN
    if image.format == "TIFF" and image.tag_v2.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED:
        return (1 << image.tag_v2.get(_BITS, (1,))[0]) - 1
    return None


def _without_texts(encoded: bytes) -> bytes:
    if encoded[:8] != PNG_MAGIC:
        return encoded
    texts = [(start, end) for kind, start, end in png_chunks(encoded) if kind in _TEXTS]
    kept, at = [], 0
    for start, end in [*texts, (len(encoded), len(encoded))]:
        kept.append(encoded[at:start])
        at = end
    return b"".join(kept) if texts else encoded
