"""Suspects are found by their bytes: torn JPEGs, headers that DALI cannot read, images smaller than their window."""

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decoding import screen
from pipeline.data.decoding.screen import PADDING, Screen
from pipeline.data.request import Request
from tests.conftest import jpeg, photo
from tests.data.decoding.test_decoder import request

ROOT = Path(__file__).parents[3]
PHOTO = photo(1, 0, 300, 400)
JPEG = jpeg(PHOTO)
SOF, SOS = JPEG.index(b"\xff\xc0"), JPEG.index(b"\xff\xda")


def saved(form: str, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def with_thumbnail() -> bytes:
    """The photo with a small JPEG in its EXIF segment, where cameras put theirs."""
    content = Image.Exif().tobytes() + jpeg(photo(1, 0, 60, 80))
    return JPEG[:2] + b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content + JPEG[2:]


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees"
    return exif


PNG = saved("PNG")
THUMBNAIL = with_thumbnail()
SOUND = {
    "JPEG": JPEG,
    "progressive": saved("JPEG", progressive=True),
    "grey": saved("JPEG", mode="L"),
    "CMYK": saved("JPEG", mode="CMYK"),
    "rotated": saved("JPEG", exif=rotated()),
    "thumbnail": THUMBNAIL,
    "padded": JPEG + bytes(1000),
    "padded to the limit": JPEG + b"\xff" * (PADDING - 2),
    "PNG": PNG,
    "WebP": saved("WEBP"),
}
TORN = {
    "cut at 30 %": JPEG[: len(JPEG) * 3 // 10],
    "cut at 90 %": JPEG[: len(JPEG) * 9 // 10],
    "last 100 bytes missing": JPEG[:-100],
    "end marker missing": JPEG[:-2],
    "half of it missing": JPEG[:-1],
    "second half zeros": JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2),
    "cut after the header": JPEG[: SOS + 100],
    "thumbnail, cut": THUMBNAIL[: len(THUMBNAIL) * 9 // 10],
    "thumbnail, cut close behind it": THUMBNAIL[: THUMBNAIL.rindex(b"\xff\xda") + 200],
}
UNREADABLE = {
    "empty": b"",
    "one byte": b"\0",
    "text": b"<html>404 not found</html>",
    "zeros": bytes(5000),
    "zeros at the start": bytes(512) + JPEG[512:],
    "JPEG, no marker": b"\xff\xd8 this is no jpeg",
    "JPEG, magic alone": JPEG[:2],
    "JPEG, broken marker": JPEG[:SOF] + bytes(4) + JPEG[SOF + 4 :],
    "JPEG, cut before its size": JPEG[:SOF],
    "JPEG, cut before its scan": JPEG[:SOS],
    "JPEG, cut behind its thumbnail": THUMBNAIL[: THUMBNAIL.index(b"\xff\xd9") + 2],
    "PNG, magic alone": PNG[:8],
    "PNG, broken header": PNG[:12] + b"XXXX" + PNG[16:],
    "PNG, cut": PNG[: len(PNG) // 2],
}
SMALLER = {
    "no size": JPEG[: SOF + 5] + bytes(4) + JPEG[SOF + 9 :],
    "another photo": jpeg(photo(1, 0, 300, 399)),
}


def array(encoded: bytes) -> np.ndarray:
    return np.frombuffer(encoded, np.uint8)


def kept_out(found: Screen, request: Request) -> np.ndarray:
    """Rows that get into no batch before they were tried by themselves, by DALI or by Pillow."""
    return found.suspects(request) | found.others(request)


def asked(*images: bytes):
    return request(images, [(0, 0, 300, 400)] * len(images))


@pytest.mark.parametrize("name", SOUND)
def test_sound_images_are_no_suspects(name):
    assert not screen.is_torn(array(SOUND[name]))
    assert screen.size(array(SOUND[name])) == PHOTO.shape[:2]
    assert not Screen(torn=True).suspects(asked(SOUND[name])).any()


@pytest.mark.parametrize("name", TORN)
def test_torn_images_are_suspects_where_the_decoder_forgives_them(name):
    assert screen.is_torn(array(TORN[name]))
    assert screen.size(array(TORN[name])) == PHOTO.shape[:2]
    for torn in (False, True):
        assert Screen(torn).suspects(asked(JPEG, TORN[name])).tolist() == [False, torn]


@pytest.mark.parametrize("name", UNREADABLE | SMALLER)
def test_unreadable_images_and_smaller_ones_than_their_window_are_suspects(name):
    assert kept_out(Screen(torn=False), asked(JPEG, (UNREADABLE | SMALLER)[name])).tolist() == [False, True]


def test_much_behind_the_end_is_suspect():
    assert screen.is_torn(array(JPEG + bytes(PADDING)))


def test_an_image_is_looked_at_once_and_every_window_of_it_is_compared(monkeypatch):
    looks = []
    usual: Callable[[np.ndarray], tuple[int, int]] = screen.size
    monkeypatch.setattr(screen, "size", lambda image: looks.append(len(image)) or usual(image))
    found = Screen(torn=True)
    first = replace(asked(JPEG, b"", SMALLER["another photo"]), ids=np.array([7, 100, 2]))
    lower = replace(first, windows=replace(first.windows, top=first.windows.top + 1))
    narrow = replace(first, windows=replace(first.windows, width=first.windows.width - 1))
    assert kept_out(found, first).tolist() == [False, True, True]
    assert kept_out(found, lower).tolist() == [True, True, True]
    assert kept_out(found, narrow).tolist() == [False, True, False]
    assert len(looks) == 2  # the empty one has no kind whose size could be asked for


def test_stand_ins_and_padding_say_nothing_of_an_image():
    found = Screen(torn=True)
    bad = replace(asked(b""), ids=np.array([3]))
    left_out = bad.with_placeholder(np.ones(1, bool))
    assert not kept_out(found, left_out).any()
    assert not kept_out(found, replace(left_out, ids=np.array([-1]))).any()  # padding shows sample 0
    assert kept_out(found, bad).all()
    assert kept_out(found, replace(bad, ids=np.array([0]))).all()


def test_a_doubted_image_is_a_suspect_from_then_on():
    found = Screen(torn=False)
    sound = replace(asked(JPEG, JPEG), ids=np.array([4, 5]))
    assert not kept_out(found, sound).any()
    found.doubt(np.array([5, -1]))
    assert found.suspects(sound).tolist() == [False, True]


FEED = """
import sys
import numpy as np
from pipeline.data.decoding import dali
from pipeline.data.decoding.dali import Decoder
from pipeline.linting.pixels import Told
from tests.data.decoding.test_screen import JPEG, SMALLER, UNREADABLE, asked, photo, jpeg

sound = [jpeg(photo(number, number % 5, 300, 400)) for number in range(64)]
for name, image in (UNREADABLE | SMALLER).items():
    lost = []
    bad = Told(lambda ids, reasons: lost.extend(ids.tolist()))
    request = asked(*sound[:7], image, *sound[8:])
    ((done, _),) = dali.windows_on_cpu(iter([request]), decoder=Decoder(False), threads=4, prefetch=1, bad=bad)
    assert lost == [7], (name, lost)
    assert np.flatnonzero(~done.valid).tolist() == [7]
"""


def test_images_that_crash_dali_amid_others_cost_their_row():
    """DALI 2.4 ends the process, so it is not this one."""
    command = [sys.executable, "-c", FEED]
    ended = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
