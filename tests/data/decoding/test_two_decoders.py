"""DALI and Pillow show the same picture of every kind of image, or Pillow's is taken."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.decoding import dali, kinds, pillow
from pipeline.data.decoding.dali import Decoder
from pipeline.data.decoding.decoder import Workers, decode
from pipeline.data.decoding.safe import Safe
from pipeline.data.decoding.screen import Screen
from pipeline.data.output import Output
from pipeline.linting.pixels import Told, disagreement
from tests.data.decoding.test_decoder import refuse, request, run
from tests.data.zoo import DEEP, JPEG, MUCH_TEXT, PHOTO, PLAIN, PX, REFUSED, RGB, ZOO, chunk, png, saved

WHOLE = (0, 0, PX, PX)


@pytest.fixture(scope="module")
def dali_alone():
    """DALI's own decoder, in a graph that is none of ours."""
    from nvidia.dali import fn, pipeline_def, types

    options: dict = {"device_id": None}

    @pipeline_def(batch_size=1, num_threads=1, prefetch_queue_depth=1, **options)
    def graph():
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB, adjust_orientation=False)

    pipe = graph()
    pipe.build()

    def decode(encoded: bytes) -> np.ndarray:
        pipe.feed_input("encoded", [np.frombuffer(encoded, np.uint8)])
        return np.array(pipe.run()[0][0])

    return decode


@pytest.mark.parametrize("name", PLAIN | MUCH_TEXT)
def test_dali_shows_plain_kinds_as_they_are(dali_alone, name):
    assert kinds.other_kind(ZOO[name].encoded) == ""
    assert np.array_equal(dali_alone(ZOO[name].encoded), ZOO[name].right)


def shown(encoded: list[bytes], tell=refuse, box=WHOLE) -> list[np.ndarray]:
    """Windows as training decodes them."""
    asked = request(encoded, [box] * len(encoded))
    ((_, windows),) = dali.windows_on_cpu(iter([asked]), decoder=Decoder(False), threads=2, prefetch=1, bad=Told(tell))
    return windows


@pytest.mark.parametrize("box", [WHOLE, (7, 11, 20, 30)], ids=["whole", "window"])
def test_training_sees_the_right_picture_of_every_kind(box):
    """All in one batch, so that none of them harms another."""
    zoo = {name: animal for name, animal in ZOO.items() if animal.right is not None}
    top, left, height, width = box
    windows = shown([animal.encoded for animal in zoo.values()], box=box)
    for (name, animal), window in zip(zoo.items(), windows, strict=True):
        assert np.array_equal(window, animal.right[top : top + height, left : left + width]), name


def test_a_kind_without_a_right_picture_loses_its_row_with_the_reason():
    names = [name for name, (_, right) in DEEP.items() if right is None]
    told: dict[int, str] = {}
    encoded = [JPEG, *(DEEP[name][0] for name in names)]
    windows = shown(encoded, tell=lambda ids, reasons: told.update(zip(ids.tolist(), reasons, strict=True)))
    assert np.array_equal(windows[0], ZOO["jpeg"].right)
    assert sorted(told) == list(range(1, len(encoded)))
    reasons = dict(zip(names, [told[row] for row in sorted(told)], strict=True))
    assert reasons["tiff, signed, below 0"] == "integers from -9 to 226, of which nobody says what is white"
    assert reasons["tiff, floating point"] == "floating-point pixels, of which nobody says what is white"


@pytest.mark.parametrize("on_gpu_graph", [False, True])
def test_scoring_sees_it_too(monkeypatch, on_gpu_graph):
    """The graph of GPUs runs on DALI's CPU backend here."""
    if on_gpu_graph:
        monkeypatch.setattr(dali, "_held", lambda *words: dali._run(*words[:-1]))
    zoo = {name: animal for name, animal in ZOO.items() if animal.right is not None}
    asked = request([animal.encoded for animal in zoo.values()], [WHOLE] * len(zoo))
    workers = Workers(torch.device("cpu"), on_gpu_graph, threads=2, prefetch=1)
    ((_, ((*images,),)),) = decode(iter([asked]), Decoder(False), [Output(PX)], workers, Told(refuse))
    for (name, animal), image in zip(zoo.items(), images, strict=True):
        assert np.array_equal(np.asarray(image), animal.right), name


@pytest.mark.parametrize("name", REFUSED)
def test_what_dali_refuses_is_tried_by_itself_from_then_on(name):
    graphs: list[int] = []

    class Counted(dali.Graph):
        def build(self, rows, depth):
            graphs.append(rows)
            return super().build(rows, depth)

    asked = [request([JPEG, REFUSED[name]], [WHOLE] * 2) for _ in range(3)]
    safe = Safe(False, Screen(torn=False), Told(refuse), 1, dali.probe(Decoder(False)))
    runs = list(dali._run(iter(asked), Counted(Decoder(False)), safe, prefetch=1))
    assert len(runs) == 3
    for done, (windows,) in runs:
        assert done.valid.all()
        assert np.array_equal(np.asarray(windows[1]), ZOO[name].right)
    assert len(graphs) == 2  # the first broke


def test_resized_flipped_and_shifted_like_any_other():
    """A CMYK photo's pixels as a PNG give the same."""
    cmyk = ZOO["jpeg, CMYK"]
    same = saved(Image.fromarray(cmyk.right), "PNG")
    how = {"flip": [True, True], "colour": [[0.1, -0.1, 0.0]] * 2}
    (images,) = run(request([cmyk.encoded, same], [(5, 3, 30, 40)] * 2, **how))
    assert torch.equal(images[0], images[1])


@pytest.mark.parametrize(
    ("encoded", "kind"),
    [
        (ZOO["jpeg, CMYK"].encoded, "JPEG with 4 colour components"),
        (ZOO["jpeg, RGB"].encoded, "JPEG in RGB"),
        (ZOO["jpeg, lossless"].encoded, "lossless JPEG"),
        (JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "JPEG of 12 bits"),
        (JPEG.replace(b"\xff\xc0", b"\xff\xc9"), "JPEG of a rare coding"),  # arithmetic
        (JPEG[:2] + b"\xff\xff" + JPEG[2:], ""),  # fill bytes
        (JPEG[:20], "JPEG without a header"),
        (b"\xff\xd8", "JPEG without a header"),
        (b"\xff\xd8\xff\xe0\0\1" + JPEG, "JPEG without a header"),  # a segment shorter than its length
        (ZOO["png, 16 bits"].encoded, "PNG of 16 bits"),
        (saved(RGB, "PNG")[:20], "PNG without a header"),
        (b"", "neither JPEG, PNG nor WebP"),
        (b"GIF89a", "neither JPEG, PNG nor WebP"),
    ],
)
def test_kinds_are_named(encoded, kind):
    assert kinds.other_kind(encoded) == kinds.other_kind(np.frombuffer(encoded, np.uint8)) == kind


def test_a_wrong_checksum_is_found():
    assert kinds.damaged_chunk(ZOO["png, wrong checksum"].encoded) == "IDAT"
    assert kinds.damaged_chunk(saved(RGB, "PNG") + b"more behind its end") == ""


@pytest.mark.parametrize("cut", [1, 12, 30])
def test_an_incomplete_png_is_no_picture(cut):
    with pytest.raises(pillow.Undecodable):
        pillow.pixels(saved(RGB, "PNG")[:-cut])


def test_a_decompression_bomb_stays_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(pillow.Undecodable, match="more than 200 pixels"):
        pillow.pixels(ZOO["gif"].encoded)


def test_lint_says_how_pillow_disagrees():
    right = ZOO["jpeg"].right
    assert disagreement(JPEG, right) == ""
    off = right.copy()
    off[3, 4, 1] ^= 16
    assert disagreement(JPEG, off) == "differs in training from what Pillow shows, by up to 16 of 255 levels"
    assert disagreement(JPEG, right[:20]) == "is 48 x 20 px in training, 48 x 48 px to Pillow"
    bad_gamma = png(8, 2, [row.tobytes() for row in PHOTO], chunk(b"gAMA", struct.pack(">I", 1))[:-1] + b"?")
    assert "but Pillow cannot decode it (" in disagreement(bad_gamma, PHOTO)
