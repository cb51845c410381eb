"""Decoding gives the pixels that PIL gives, and does with windows, flips and colours what it is told.

On the CPU and, where there is one, on the GPU; from encoded images and from raw pixels.
"""

import io
from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.decoding import dali
from pipeline.data.decoding.dali import Decoder
from pipeline.data.decoding.decoder import Workers, decode
from pipeline.data.geometry import Crops
from pipeline.data.output import Normal, Output
from pipeline.data.request import Request
from pipeline.linting.pixels import Told
from tests.conftest import jpeg, photo

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def request(images, boxes, flip=None, colour=None) -> Request:
    top, left, height, width = np.array(boxes, np.int32).T
    n = len(images)
    flip = np.zeros(n, bool) if flip is None else np.array(flip)
    colour = np.zeros((n, 3), np.float32) if colour is None else np.array(colour, np.float32)
    encoded = [np.frombuffer(image, np.uint8) for image in images]
    return Request(np.arange(n), np.ones(n, bool), encoded, Crops(top, left, height, width, flip, colour))


def raw_request(images, boxes, **options) -> Request:
    """The same windows of the same images as raw pixels."""
    asked = request(images, boxes, **options)
    rows = [pixels(image)[top : top + height] for image, (top, _, height, _) in zip(images, boxes, strict=True)]
    return replace(asked, images=rows, windows=replace(asked.windows, top=np.zeros_like(asked.windows.top)))


def refuse(ids, reasons):
    raise AssertionError((ids, reasons))


def normal(px=32, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3, **how) -> Output:
    """What training asks for; by default pixels in 0..255."""
    return Output(px, square=True, normal=Normal(mean, std), **how)


def run_pairs(*requests, device=CPU, prefetch=2, on_bad=refuse, whole=False, **how):
    """(request, images) of each request, as `normal` has them."""
    decoder = Decoder(bool(requests) and requests[0].images[0].ndim == 3, whole)
    workers = Workers(device, device.type == "cuda", threads=2, prefetch=prefetch)
    for done, (images,) in decode(iter(requests), decoder, [normal(**how)], workers, Told(on_bad)):
        yield done, images


def run(*requests: Request, **options) -> list[torch.Tensor]:
    return [images for _, images in run_pairs(*requests, **options)]


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def test_a_window_of_the_wanted_size_is_the_decoded_image_cut():
    image = jpeg(photo(1, 0, 80, 100), subsampling=0)
    whole = pixels(image)
    (got,) = run(request([image], [(8, 16, 32, 32)]), px=32)
    # Decoders may round the inverse cosine transform differently by a level or two.
    assert np.abs(got[0].permute(1, 2, 0).numpy() - whole[8:40, 16:48]).max() <= 2


def test_a_png_window_is_exact():
    buffer = io.BytesIO()
    Image.fromarray(photo(1, 0, 80, 100)).save(buffer, "PNG")
    (got,) = run(request([buffer.getvalue()], [(5, 7, 32, 32)]), px=32)
    assert np.array_equal(got[0].permute(1, 2, 0).numpy(), photo(1, 0, 80, 100)[5:37, 7:39].astype(np.float32))


@pytest.mark.parametrize("box", [(0, 0, 200, 200), (10, 20, 150, 90), (3, 5, 40, 50)], ids=["shrink", "oblong", "grow"])
def test_resizing_equals_pils_antialiased_bilinear(box):
    rng = np.random.default_rng(0)
    source = np.asarray(Image.fromarray(rng.integers(0, 255, (50, 50, 3), np.uint8)).resize((220, 210)))
    buffer = io.BytesIO()
    Image.fromarray(source).save(buffer, "PNG")
    top, left, height, width = box
    (got,) = run(request([buffer.getvalue()], [box]), px=64)
    cut = Image.fromarray(source[top : top + height, left : left + width])
    expected = np.asarray(cut.resize((64, 64), Image.Resampling.BILINEAR), np.float32)
    difference = np.abs(got[0].permute(1, 2, 0).numpy() - expected)
    assert difference.max() <= 1  # both round after each of two passes, not quite alike
    assert difference.mean() <= 0.3


def test_flip_mirrors_left_and_right():
    image = jpeg(photo(1, 0, 64, 64))
    (got,) = run(request([image, image], [(0, 0, 64, 64)] * 2, flip=[False, True]), px=32)
    assert torch.equal(got[1], got[0].flip(-1))
    assert not torch.equal(got[1], got[0])


def test_mean_deviation_and_colour_shift():
    image = jpeg(photo(1, 0, 64, 64))
    shift = np.array([[0, 0, 0], [0.1, -0.05, 0.02]])
    (raw,) = run(request([image] * 2, [(0, 0, 64, 64)] * 2), px=32)
    (got,) = run(request([image] * 2, [(0, 0, 64, 64)] * 2, colour=shift), px=32, mean=MEAN, std=STD)
    for n in range(2):
        for channel in range(3):
            expected = (raw[n, channel] / 255 + shift[n, channel] - MEAN[channel]) / STD[channel]
            assert torch.allclose(got[n, channel], expected.float(), atol=1e-4)


def test_images_are_channels_last_and_stay_as_they_were():
    images = [jpeg(photo(n, n % 5, 40, 50)) for n in range(24)]
    requests = [request(images[n : n + 2], [(0, 0, 40, 50)] * 2) for n in range(0, 24, 2)]
    held, copies = [], []
    for asked, got in run_pairs(*requests, mean=MEAN, std=STD, prefetch=3):
        assert asked is requests[len(held)]
        assert got.shape == (2, 3, 32, 32)
        assert got.is_contiguous(memory_format=torch.channels_last)
        held.append(got)
        copies.append(got.clone())
    assert len(held) == 12
    assert all(torch.equal(*pair) for pair in zip(held, copies, strict=True))


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_fewer_requests_than_the_prefetch_depth(number):
    image = jpeg(photo(1, 0, 40, 40))
    requests = [request([image], [(0, 0, 40, 40)])] * number
    assert len(run(*requests, px=8, prefetch=3)) == number


def test_gray_cmyk_and_rotated_jpegs_come_out_as_stored():
    def encode(image: Image.Image, **options) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95, **options)
        return buffer.getvalue()

    picture = Image.fromarray(photo(1, 0, 40, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees": ignored, so height and width are those of the index
    images = [encode(picture.convert("L")), encode(picture.convert("CMYK")), encode(picture, exif=exif)]
    (got,) = run(request(images, [(0, 0, 40, 60)] * 3), px=40)
    plain = np.asarray(picture.resize((40, 40), Image.Resampling.BILINEAR), np.float32)
    assert torch.equal(got[0, 0], got[0, 1])
    assert np.abs(got[2].permute(1, 2, 0).numpy() - plain).mean() < 4
    assert np.abs(got[1].permute(1, 2, 0).numpy() - plain).mean() < 12


@pytest.mark.parametrize("prefetch", [1, 3])
def test_raw_pixels_give_what_a_lossless_image_gives(prefetch):
    images = []
    for n in range(8):
        buffer = io.BytesIO()
        Image.fromarray(photo(n, n % 5, 70, 90)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    boxes = [(n, 2 * n, 30 + n, 70 - n) for n in range(7)] + [(3, 4, 32, 32)]
    options = {"flip": [n % 2 == 0 for n in range(8)], "colour": np.linspace(-0.1, 0.1, 24).reshape(8, 3)}
    (encoded,) = run(request(images, boxes, **options), mean=MEAN, std=STD, prefetch=prefetch)
    (raw,) = run(raw_request(images, boxes, **options), mean=MEAN, std=STD, prefetch=prefetch)
    assert torch.equal(encoded, raw)


def test_a_window_out_of_the_whole_image_is_the_same():
    """But for the outermost pixels, whose colours are shared with neighbours that a window alone does not decode."""
    images = [jpeg(photo(n, n % 5, 90 + n, 130)) for n in range(8)]
    boxes = [(n, 3 * n, 64, 64) for n in range(8)]
    asked = request(images, boxes, flip=[n % 2 for n in range(8)])
    (window,), (whole,) = run(asked, px=64), run(asked, px=64, whole=True)
    assert (whole - window)[:, :, 1:-1, 1:-1].abs().max() <= 2
    assert (whole - window).abs().mean() < 0.5


@pytest.mark.gpu
@pytest.mark.parametrize(("form", "whole"), [(request, False), (request, True), (raw_request, False)])
def test_the_gpu_gives_the_same_pixels(form, whole):
    """Within the rounding of another inverse cosine transform and another enlargement of the colour planes; raw pixels
    within one level, but for the outermost rows and columns, where DALI repeats the border and PIL leaves it out."""
    images = [jpeg(photo(n, n % 5, 300 + n, 400)) for n in range(16)]
    boxes = [(n, 3 * n, 256, 224) for n in range(16)]
    asked = form(images, boxes, flip=[n % 2 for n in range(16)])
    (cpu,) = run(asked, px=224)
    gpu = torch.device("cuda", torch.cuda.current_device())
    (got,) = run(asked, px=224, device=gpu, whole=whole)
    assert got.device == gpu
    difference = (got.cpu() - cpu).abs()
    assert difference.mean() < 1
    assert difference.max() < 16
    if form is raw_request:
        assert difference[:, :, 2:-2, 2:-2].max() <= 1


class Event:
    """A CUDA event that has come when the GPU has been waited for, or `comes` by itself."""

    def __init__(self, comes: bool = False):
        self.comes, self.waits = comes, 0

    def query(self) -> bool:
        return self.comes

    def synchronize(self) -> None:
        self.comes, self.waits = True, self.waits + 1


def test_a_process_that_runs_ahead_of_its_gpu_holds_few_batches():
    in_use, events = deque(), [Event() for _ in range(6)]
    for number, event in enumerate(events):
        in_use.append((number, event))
        dali._release(in_use)
        assert len(in_use) <= dali.MOST_HELD
    assert [event.waits for event in events] == [1, 1, 1, 1, 0, 0]


def test_batches_that_the_gpu_is_done_with_are_let_go_of_without_a_wait():
    done, busy = Event(comes=True), Event()
    in_use = deque([(0, done), (1, busy)])
    dali._release(in_use)
    assert [number for number, _ in in_use] == [1]
    assert (done.waits, busy.waits) == (0, 0)


GOOD = [jpeg(photo(n, n % 5, 40, 50)) for n in range(6)]
TRUNCATED, GARBAGE, EMPTY = jpeg(photo(9, 0, 40, 50))[:400], b"\xff\xd8 this is no jpeg", b"\0"
BROKEN = {"truncated": TRUNCATED, "garbage": GARBAGE, "one byte": EMPTY}


@pytest.mark.parametrize("where", range(6))
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_image_costs_its_row_alone(broken, where):
    """In the first batch, in the last, amid the prefetched ones: the others come as if nothing had happened."""
    requests = [request([GOOD[n], GOOD[n - 1]], [(0, 0, 40, 50)] * 2) for n in range(6)]
    whole = run(*requests, prefetch=3)
    image = np.frombuffer(BROKEN[broken], np.uint8)
    requests[where] = replace(requests[where], ids=np.array([70, 71]), images=[requests[where].images[0], image])
    found = []
    pairs = list(run_pairs(*requests, prefetch=3, on_bad=lambda ids, reasons: found.append((ids.tolist(), reasons))))
    assert [ids for ids, _ in found] == [[71]]
    assert all(reason for _, (reason,) in found)
    for n, (asked, images) in enumerate(pairs):
        assert asked.valid.tolist() == [True, n != where]
        assert torch.equal(images[0], whole[n][0])
        assert torch.equal(images[1], whole[n][1]) == (n != where)
    assert (pairs[where][1][1] == 118).all()


def test_a_batch_of_broken_images_and_the_next_too():
    bad = request([GARBAGE, TRUNCATED], [(0, 0, 40, 50)] * 2)
    found = []
    pairs = list(run_pairs(bad, bad, on_bad=lambda ids, reasons: found.extend(ids.tolist())))
    assert found == [0, 1, 0, 1]
    assert all(not asked.valid.any() for asked, _ in pairs)


def test_what_on_bad_raises_ends_it():
    with pytest.raises(AssertionError):
        run(request([GARBAGE], [(0, 0, 4, 4)]))


def test_a_mistake_that_is_no_images_fault_is_raised():
    outside = request([GOOD[0]], [(0, 0, 4000, 50)])
    with pytest.raises((RuntimeError, AssertionError)):
        run(outside)
