"""Which images DALI decodes to the very pixels that Pillow does, told from their headers.

In: encoded bytes. Out: "" for the kinds on which both agree bit for bit (tests/data/decoding/test_two_decoders.py):
JPEG of 8 bits in Huffman coding, grey or YCbCr; PNG of up to 8 bits per channel; WebP. Otherwise the name of the kind:
DALI shows it differently (16 bits, CMYK without Adobe's marker) or not at all (lossless JPEG, GIF), or nobody has
compared what GPU decoders make of it (RGB and CMYK in a JPEG). Pillow decodes these, see `pillow.py`.
"""

import zlib
from collections.abc import Iterator

import numpy as np

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame; the three are other segments
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a segment
_ADOBE_RGB = 0


def other_kind(encoded: bytes | np.ndarray) -> str:
    """What kind of image this is, if DALI and Pillow may disagree on it; "" if they agree. 3 us for a photo."""
    data = memoryview(encoded)  # type: ignore[arg-type]  # arrays are buffers
    if data[:2] == b"\xff\xd8":
        return _other_jpeg(data)
    if data[:8] == PNG_MAGIC:
        if len(data) < 25:
            return "PNG without a header"
        return f"PNG of {data[24]} bits" if data[24] > 8 else ""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ""
    return "neither JPEG, PNG nor WebP"


def _other_jpeg(data: memoryview) -> str:
    """By the rules of the JPEG standard (ITU-T T.81, annex B) and libjpeg's guess of the colour space."""
    has_jfif, adobe = False, None
    for marker, start, end in _segments(data):
        if marker == 0xE0 and data[start : start + 5] == b"JFIF\0":
            has_jfif = True
        elif marker == 0xEE and data[start : start + 5] == b"Adobe" and end - start >= 12:
            adobe = data[start + 11]
        elif marker in _SOF:
            if marker not in (0xC0, 0xC1, 0xC2):
                return "lossless JPEG" if marker in (0xC3, 0xC7) else "JPEG of a rare coding"
            if end - start < 6 or data[start] != 8:
                return f"JPEG of {data[start]} bits" if end - start >= 6 else "JPEG without a header"
            num_components = data[start + 5]
            if num_components not in (1, 3) or end - start < 6 + 3 * num_components:
                return f"JPEG with {num_components} colour components"
            names = bytes(data[start + 6 : end : 3])
            if num_components == 3 and not has_jfif and (adobe == _ADOBE_RGB or (adobe is None and names == b"RGB")):
                return "JPEG in RGB"
            return ""
    return "JPEG without a header"


def _segments(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of a JPEG's segments, without their lengths, as far as there are any."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return
        marker = data[at + 1]
        if marker == 0xFF:  # any number of them may stand before a marker
            at += 1
        elif marker in _ALONE:
            at += 2
        else:
            end = at + 2 + (data[at + 2] << 8 | data[at + 3])
            if end > len(data) or end < at + 4:
                return
            yield marker, at + 4, end
            at = end


def png_chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of a PNG's whole chunks, length and checksum included."""
    at = len(PNG_MAGIC)
    while at + 12 <= len(encoded):
        end = at + 12 + int.from_bytes(encoded[at : at + 4])
        if end > len(encoded):
            return
        yield encoded[at + 4 : at + 8], at, end
        at = end


def damaged_chunk(png: bytes) -> str:
    """The kind of the first chunk whose checksum is wrong, which decoders forgive or not; "" if all are right."""
    for kind, start, end in png_chunks(png):
        if zlib.crc32(memoryview(png)[start + 4 : end - 4]) != int.from_bytes(png[end - 4 : end]):
            return kind.decode("latin-1")
        if kind == b"IEND":
            break
    return ""
