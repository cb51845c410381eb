"""DALI gives the pixels that PIL gives, and does with windows, flips and colours what it is told."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.dali import Request, decode
from pipeline.data.windows import Windows
from tests.conftest import jpeg, photo

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def request(images, boxes, flip=None, colour=None) -> Request:
    top, left, height, width = np.array(boxes, np.int32).T
    n = len(images)
    flip = np.zeros(n, bool) if flip is None else np.array(flip)
    colour = np.zeros((n, 3), np.float32) if colour is None else np.array(colour, np.float32)
    encoded = [np.frombuffer(image, np.uint8) for image in images]
    return Request(np.arange(n), np.zeros(n, np.int64), encoded, Windows(top, left, height, width, flip, colour))


def run(*requests: Request, px: int, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3, prefetch=2) -> list[torch.Tensor]:
    """Images of each request; by default as pixels in 0..255."""
    decoded = decode(
        iter(requests),
        rows=len(requests[0].ids),
        px=px,
        mean=mean,
        std=std,
        device=CPU,
        on_gpu=False,
        threads=1,
        prefetch=prefetch,
    )
    return [images for _, images in decoded]


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
    # Within one level of 255, as PIL rounds after each of two passes and DALI once; but for the outermost pixels, where
    # the filter reaches over the border: DALI repeats the border there, PIL leaves it out.
    assert difference[2:-2, 2:-2].max() <= 1
    assert difference.max() <= 12
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
    decoded = decode(iter(requests), rows=2, px=32, mean=MEAN, std=STD, device=CPU, on_gpu=False, threads=1, prefetch=3)
    for asked, got in decoded:
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
    decoded = decode(iter(requests), rows=1, px=8, mean=MEAN, std=STD, device=CPU, on_gpu=False, threads=1, prefetch=3)
    assert len(list(decoded)) == number


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


@pytest.mark.gpu
def test_the_gpu_decodes_the_same_pixels():
    """Within the rounding of another inverse cosine transform and another enlargement of the colour planes."""
    images = [jpeg(photo(n, n % 5, 300 + n, 400)) for n in range(16)]
    asked = request(images, [(n, 3 * n, 256, 224) for n in range(16)], flip=[n % 2 for n in range(16)])
    (cpu,) = run(asked, px=224)
    gpu = torch.device("cuda", torch.cuda.current_device())
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3, "threads": 2, "prefetch": 2}
    for on_gpu in (True, False):
        ((_, got),) = decode(iter([asked]), rows=16, px=224, device=gpu, on_gpu=on_gpu, **plain)
        assert got.device == gpu
        difference = (got.cpu() - cpu).abs()
        assert difference.mean() < 1
        assert difference.max() < 16


def test_a_broken_image_ends_in_an_error_not_in_pixels():
    with pytest.raises(RuntimeError):
        run(request([b"\xff\xd8 this is no jpeg"], [(0, 0, 4, 4)]), px=4)
