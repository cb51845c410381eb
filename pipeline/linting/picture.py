"""What one encoded image is, from its header: format, mode, and what is odd about it.

In: encoded bytes and the extension they are stored under. Out: a `Picture`; its `oddities` are (kind, text) pairs.
"""

from typing import Any, NamedTuple

from pipeline.data.decoding.kinds import other_kind
from pipeline.data.decoding.pillow import Undecodable, opened

TINY_PX = 32
HUGE_PIXELS = 40_000_000
_EXTENSIONS = {"JPEG": ("jpg", "jpeg"), "MPO": ("jpg", "jpeg"), "PNG": ("png",), "WEBP": ("webp",)}
_KNOWN_ENDINGS = {ending for endings in _EXTENSIONS.values() for ending in endings}
_ORIENTATION_TAG = 0x0112
_LOOKS = {
    2: "mirrored",
    3: "upside down",
    4: "mirrored and upside down",
    5: "mirrored and rotated by 90 degrees",
    6: "rotated by 90 degrees",
    7: "mirrored and rotated by 270 degrees",
    8: "rotated by 270 degrees",
}


class Picture(NamedTuple):
    """`format` and `mode` in Pillow's words."""

    format: str
    mode: str
    oddities: list[tuple[str, str]]


def picture(encoded: bytes, extension: str) -> Picture:
    """Raises nothing: what even the header does not tell is left to the decoder."""
    try:
        with opened(encoded) as image:
            return Picture(str(image.format), image.mode, list(_oddities(image, encoded, extension)))
    except Undecodable:
        return Picture("unknown", "unknown", [])


def _oddities(image: Any, encoded: bytes, extension: str):
    ending = extension.rpartition(".")[2]  # .image.jpg; names that say no format, as .img, are none's
    if ending in _KNOWN_ENDINGS and ending not in _EXTENSIONS.get(image.format, ()):
        yield "wrong_name", f"is {image.format}, its name says .{extension}"
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a phone's JPEG with a second picture behind, which every decoder skips
        yield "animated", f"has {frames} frames"
    if kind := other_kind(encoded):
        yield "by_pillow", f"is {image.format}, {kind}" if kind.startswith("neither") else f"is a {kind}"
    if image.mode == "CMYK":
        yield "cmyk", "is CMYK"
    if image.format == "PNG" and encoded[24:25] == b"\x10":  # the header's bit depth, which Pillow's mode hides for RGB
        yield "sixteen_bit", "has 16 bits a channel"
    if image.mode in ("1", "L", "LA") or image.mode.startswith("I"):
        yield "grayscale", "is grayscale"
    if "exif" in image.info:  # asked without it, Pillow decodes a whole PNG to look for it
        orientation = image.getexif().get(_ORIENTATION_TAG)
        if orientation in _LOOKS:
            yield "rotated", f"would look {_LOOKS[orientation]}: its EXIF orientation is {orientation}"


def of_size(height: int, width: int):
    """What is odd about a size in pixels."""
    if min(height, width) < TINY_PX:
        yield "tiny", f"is {width} x {height} px"
    if height * width > HUGE_PIXELS:
        yield "huge", f"is {width} x {height} px, {height * width / 1e6:.0f} megapixels"
