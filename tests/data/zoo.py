"""One small image of every kind that photographers and other programs leave behind, with the picture that is right.

Right is what torchvision's ImageFolder shows, Pillow's `convert("RGB")`; of more than 8 bits, what the written numbers
say: `grey * 255 // white`, of 16 and 32 bits the upper byte.
"""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from tests.conftest import photo

PX = 48
PHOTO = photo(3, 1, PX, PX)
PHOTO[10:20, 10:30] = (200, 30, 60)
RGB = Image.fromarray(PHOTO)
RAMP = np.tile(np.arange(PX), (PX, 1))  # 0..47
ALPHA = RGB.convert("RGBA")
ALPHA.putalpha(Image.fromarray((RAMP * 5).astype(np.uint8)))
EXIF = Image.Exif()
EXIF[0x0112] = 6  # "rotate by 90 degrees"
FLAT_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()


class Animal(NamedTuple):
    """`right` is uint8 [48, 48, 3], or None where there is no right picture; `plain`: DALI shows the same."""

    encoded: bytes
    right: np.ndarray | None
    plain: bool


def saved(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(bits: int, colour: int, rows: list[bytes], before: bytes = b"", interlaced: bool = False) -> bytes:
    """From the rows' bytes, without filters."""
    header = struct.pack(">IIBBBBB", PX, PX, bits, colour, 0, 0, interlaced)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = chunk(b"IHDR", header), before, chunk(b"IDAT", packed), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def interlaced() -> bytes:
    """Adam7: every 8th pixel first, then what lies between (PNG specification, 8.2)."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [row.tobytes() for top, left, down, right in passes for row in PHOTO[top::down, left::right]]
    return png(8, 2, rows, interlaced=True)


def packed_bits(values: np.ndarray, bits: int) -> list[bytes]:
    per_byte = values.reshape(PX, -1, 8 // bits).astype(np.int64)
    shifts = np.arange(8 - bits, -1, -bits)
    return [row.tobytes() for row in (per_byte << shifts).sum(axis=-1).astype(np.uint8)]


def tiff(values: np.ndarray, bits: int, sample: int = 1, photometric: int = 1) -> bytes:
    """One strip of grey; `sample` 1 unsigned, 2 signed, 3 floating point; `photometric` 0: white is zero."""
    content = values.tobytes()
    size = {256: PX, 257: PX, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: PX, 279: len(content)}
    tags = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in (size | {339: sample}).items()]
    directory = struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)
    return b"II" + struct.pack("<HI", 42, 8 + len(content)) + content + directory


def without_adobe(jpeg: bytes) -> bytes:
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4]) :]


def with_adobe(jpeg: bytes, transform: int, jfif: bool) -> bytes:
    segment = b"\xff\xee" + struct.pack(">H", 14) + b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform)
    return jpeg[:2] + segment + (jpeg[2:] if jfif else jpeg[2 + 2 + int.from_bytes(jpeg[4:6]) :])


def lossless() -> bytes:
    """A JPEG of process 14 (SOF3): differences to the left neighbour, in Huffman codes of four bits."""
    grey = np.tile(np.arange(PX, dtype=np.uint8) * 3, (PX, 1))
    grey[20:40] = 200
    bits = ""
    for y, x in np.ndindex(PX, PX):
        before = 128 if x == y == 0 else int(grey[y - 1, 0]) if x == 0 else int(grey[y, x - 1])
        difference = int(grey[y, x]) - before
        size = abs(difference).bit_length()
        value = difference if difference > 0 else difference + (1 << size) - 1
        bits += f"{size:04b}" + (f"{value:0{size}b}" if size else "")
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")
    tables = b"\xff\xc4" + struct.pack(">H", 28) + b"\0" + bytes([0, 0, 0, 9] + [0] * 12) + bytes(range(9))
    frame = b"\xff\xc3" + struct.pack(">HBHHB", 11, 8, PX, PX, 1) + b"\x01\x11\0"
    return b"\xff\xd8" + tables + frame + b"\xff\xda\0\x08\x01\x01\0\x01\0\0" + scan + b"\xff\xd9"


def with_chunk(kind: bytes, head: bytes, unpacked: int) -> bytes:
    whole = saved(RGB, "PNG")
    return whole[:33] + chunk(kind, head + zlib.compress(bytes(unpacked))) + whole[33:]


def wrong_checksum() -> bytes:
    whole = saved(RGB, "PNG")
    at = whole.index(b"IDAT")
    end = at + 4 + int.from_bytes(whole[at - 4 : at])
    return whole[:end] + b"\1\2\3\4" + whole[end + 4 :]


def half_the_rows() -> bytes:
    return png(8, 2, [row.tobytes() for row in PHOTO[:20]])


JPEG, CMYK = saved(RGB, "JPEG", quality=95), saved(RGB.convert("CMYK"), "JPEG", quality=95)
FULL = saved(RGB, "JPEG", quality=95, subsampling=0)
# DALI shows these as Pillow does: launch.pack keeps their bytes.
PLAIN = {
    "jpeg": JPEG,
    "jpeg of full colour": FULL,
    "jpeg of half colour": saved(RGB, "JPEG", subsampling=1),
    "jpeg, colours of a quarter": saved(RGB, "JPEG", subsampling="4:1:1"),
    "jpeg, coarse": saved(RGB, "JPEG", quality=20),
    "jpeg, progressive": saved(RGB, "JPEG", progressive=True),
    "jpeg, restart markers": saved(RGB, "JPEG", optimize=True, restart_marker_rows=1),
    "jpeg, grey": saved(RGB.convert("L"), "JPEG"),
    "jpeg, grey, progressive": saved(RGB.convert("L"), "JPEG", progressive=True),
    "jpeg, rotated by EXIF": saved(RGB, "JPEG", exif=EXIF),
    "jpeg with a profile": saved(RGB, "JPEG", icc_profile=FLAT_PROFILE),
    "jpeg, Adobe's YCbCr": with_adobe(FULL, 1, jfif=False),
    "jpeg, JFIF and Adobe's RGB": with_adobe(FULL, 0, jfif=True),
    "jpeg with more behind its end": JPEG + b"abc" * 100,
    "mpo": saved(RGB, "MPO", save_all=True, append_images=[RGB.rotate(180)]),
    "png": saved(RGB, "PNG"),
    "png, 1 bit": saved(RGB.convert("1"), "PNG"),
    "png, grey": saved(RGB.convert("L"), "PNG"),
    "png, grey of 2 bits": png(2, 0, packed_bits(RAMP // 12, 2)),
    "png, grey of 4 bits": png(4, 0, packed_bits(RAMP // 3, 4)),
    "png, palette": saved(RGB.quantize(64), "PNG"),
    "png, palette of 4 bits": png(4, 3, packed_bits(RAMP // 3, 4), chunk(b"PLTE", bytes(range(7, 103, 2)))),
    "png, palette, one colour clear": saved(RGB.quantize(64), "PNG", transparency=3),
    "png, alpha": saved(ALPHA, "PNG"),
    "png, grey and alpha": saved(ALPHA.convert("LA"), "PNG"),
    "png, one colour clear": saved(RGB, "PNG", transparency=(200, 30, 60)),
    "png, interlaced": interlaced(),
    "png with gamma": png(8, 2, [row.tobytes() for row in PHOTO], chunk(b"gAMA", struct.pack(">I", 22727))),
    "png with a profile": saved(RGB, "PNG", icc_profile=FLAT_PROFILE),
    "png, rotated by EXIF": saved(RGB, "PNG", exif=EXIF),
    "png, animated": saved(RGB, "PNG", save_all=True, append_images=[RGB.rotate(180)]),
    "webp": saved(RGB, "WEBP"),
    "webp, lossless": saved(RGB, "WEBP", lossless=True),
    "webp, alpha": saved(ALPHA, "WEBP", lossless=True, exact=True),
    "webp, animated": saved(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(180)]),
}
# Sound, and of the same kinds, but Pillow refuses them unless it is helped.
MUCH_TEXT = {
    "png with much text": with_chunk(b"zTXt", b"xmp\0\0", 2_000_000),
    "png with much international text": with_chunk(b"iTXt", b"x\0\1\0\0\0", 20_000_000),
    "png with a large profile": with_chunk(b"iCCP", b"icc\0\0", 2_000_000),
}
# Pillow decodes these, DALI otherwise or not at all, or nobody knows what GPU decoders make of them.
OTHERS = {
    "jpeg, CMYK": CMYK,
    "jpeg, CMYK without Adobe's marker": without_adobe(CMYK),
    "jpeg, RGB": saved(RGB, "JPEG", quality=95, keep_rgb=True),
    "jpeg, Adobe's RGB": with_adobe(FULL, 0, jfif=False),
    "jpeg, lossless": lossless(),
    "gif": saved(RGB.quantize(64), "GIF"),
    "bmp": saved(RGB, "BMP"),
    "ppm": saved(RGB, "PPM"),
    "jpeg 2000": saved(RGB, "JPEG2000"),
    "tiff": saved(RGB, "TIFF"),
    "tiff, CMYK": saved(RGB.convert("CMYK"), "TIFF"),
}
# The header is as DALI likes it, the rest is not.
REFUSED = {"png, wrong checksum": wrong_checksum(), "png, half the rows": half_the_rows()}
_COLOUR16 = PHOTO.astype(np.uint16) * 256 + 77
_GREY8, _GREY10, _GREY12 = RAMP * 5, RAMP * 21, RAMP * 87
_GREY16, _GREY32 = RAMP * 1394 + 3, RAMP * 91_000_000
DEEP: dict[str, tuple[bytes, np.ndarray | None]] = {
    "png, 16 bits": (png(16, 0, [row.astype(">u2").tobytes() for row in _GREY16]), _GREY16 >> 8),
    "png, colour of 16 bits": (png(16, 2, [row.astype(">u2").tobytes() for row in _COLOUR16]), PHOTO),
    "pgm, 16 bits": (b"P5 48 48 65535\n" + _GREY16.astype(">u2").tobytes(), _GREY16 >> 8),
    "pgm, 10 bits": (b"P5 48 48 1023\n" + _GREY10.astype(">u2").tobytes(), _GREY10 * 255 // 1023),
    "pgm, white is 1000": (b"P5 48 48 1000\n" + _GREY10.astype(">u2").tobytes(), _GREY10 * 255 // 1000),
    "tiff, 12 bits": (
        tiff(np.packbits(((_GREY12[..., None] >> np.arange(11, -1, -1)) & 1).astype(np.uint8)), 12),
        _GREY12 * 255 // 4095,
    ),
    "tiff, 16 bits": (tiff(_GREY16.astype("<u2"), 16), _GREY16 >> 8),
    "tiff, 16 bits, white is zero": (tiff(_GREY16.astype("<u2"), 16, photometric=0), 255 - (_GREY16 >> 8)),
    "tiff, 8 bits, white is zero": (tiff(_GREY8.astype(np.uint8), 8, photometric=0), 255 - _GREY8),
    "tiff, 32 bits": (tiff(_GREY32.astype("<u4"), 32), _GREY32 >> 24),
    "tiff, signed, 0..235": (tiff(_GREY8.astype("<i4"), 32, sample=2), _GREY8),
    "tiff, signed, below 0": (tiff((_GREY8 - 9).astype("<i4"), 32, sample=2), None),
    "tiff, signed of 16 bits, up to 1128": (tiff((RAMP * 24).astype("<i2"), 16, sample=2), None),
    "tiff, floating point": (tiff((RAMP / 47).astype("<f4"), 32, sample=3), None),
}


def shown_by_pillow(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def _deep(right: np.ndarray | None) -> np.ndarray | None:
    return None if right is None else np.stack([right] * 3, axis=-1).astype(np.uint8) if right.ndim == 2 else right


ZOO = {
    **{name: Animal(encoded, shown_by_pillow(encoded), True) for name, encoded in PLAIN.items()},
    **{name: Animal(encoded, PHOTO, True) for name, encoded in MUCH_TEXT.items()},
    **{name: Animal(encoded, shown_by_pillow(encoded), False) for name, encoded in (OTHERS | REFUSED).items()},
    **{name: Animal(encoded, _deep(right), False) for name, (encoded, right) in DEEP.items()},
}
