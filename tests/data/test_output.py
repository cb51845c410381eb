"""Whole images at a scale: the sizes and pixels of torchvision's Resize, by torch and by the graph that GPUs run."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, Resize

from pipeline.data.decoding import dali
from pipeline.data.decoding.dali import Decoder
from pipeline.data.decoding.decoder import Workers, decode
from pipeline.data.output import Output, resize
from pipeline.linting.pixels import Told
from tests.conftest import jpeg, photo
from tests.data.decoding.test_decoder import raw_request, refuse, request

ON_CPU = Workers(torch.device("cpu"), on_gpu=False, threads=2, prefetch=2)
FILTERS = [("bilinear", True), ("bicubic", True), ("bilinear", False), ("bicubic", False)]
BOTH = [Output(48), Output(70, "bicubic", False)]
SIDES = [(60, 90), (91, 64), (40, 40), (200, 77)]
IMAGES = [jpeg(photo(n, n % 5, *sides), subsampling=0) for n, sides in enumerate(SIDES)]


@given(height=st.integers(1, 7000), width=st.integers(1, 7000), px=st.integers(1, 600))
def test_sizes_are_those_of_torchvision(height, width, px):
    from torchvision.transforms.functional import _compute_resized_output_size

    wanted = _compute_resized_output_size((height, width), [px])
    assert Output(px).sizes(np.array([height]), np.array([width]))[0].tolist() == wanted


@pytest.mark.parametrize(("interpolation", "antialias"), FILTERS)
def test_pixels_are_those_of_torchvision(interpolation, antialias):
    """Within a level of 255: of PIL's images if antialiased, else of its tensors."""
    pixels = photo(1, 0, 150, 211)
    mode = InterpolationMode(interpolation)
    if antialias:
        wanted = np.asarray(Resize(64, mode)(Image.fromarray(pixels)))
    else:
        wanted = Resize(64, mode, antialias=False)(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    height, width = Output(64).sizes(np.array([150]), np.array([211]))[0].tolist()
    got = resize(torch.from_numpy(pixels), height, width, interpolation, antialias).numpy()
    assert np.abs(got.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("form", [request, raw_request])
def test_each_image_comes_in_each_output_with_its_own_sides(form):
    asked = form(IMAGES, [(0, 0, *sides) for sides in SIDES])
    pairs = list(decode(iter([asked] * 3), Decoder(form is raw_request), BOTH, ON_CPU, Told(refuse)))
    assert len(pairs) == 3
    for done, images in pairs:
        assert done is asked
        for output, of_one in zip(BOTH, images, strict=True):
            sizes = output.sizes(*np.array(SIDES).T).tolist()
            assert [list(image.shape) for image in of_one] == [[*size, 3] for size in sizes]
            assert {image.dtype for image in of_one} == {torch.uint8}


@pytest.mark.parametrize(("interpolation", "antialias"), FILTERS[:3])
def test_the_graph_for_gpus_gives_the_same_pixels(interpolation, antialias):
    """Run on the CPU: within two levels of 255 away from the border, where DALI repeats it. (Without antialiasing
    torch's bicubic has another coefficient, -0.75 for -0.5, and is left out.)"""
    asked = raw_request(IMAGES, [(0, 0, *sides) for sides in SIDES])
    graph = dali.Graph(Decoder(is_raw=True), (Output(48, interpolation, antialias), Output(60)))
    pipe = graph.build(len(IMAGES), 1)
    graph.feed(pipe, asked)
    first, second = pipe.run()
    for row, pixels in enumerate(asked.images):
        got = np.asarray(first[row]).astype(int)
        wanted = resize(torch.from_numpy(pixels.copy()), *got.shape[:2], interpolation, antialias).numpy()
        assert np.abs(got - wanted)[3:-3, 3:-3].max() <= 2
        assert min(np.asarray(second[row]).shape[:2]) == 60


def test_without_outputs_images_are_only_decoded():
    asked = raw_request(IMAGES, [(0, 0, *sides) for sides in SIDES])
    assert list(decode(iter([asked]), Decoder(is_raw=True), [], ON_CPU, Told(refuse))) == [(asked, [])]
    graph = dali.Graph(Decoder(is_raw=True))
    pipe = graph.build(len(IMAGES), 1)
    graph.feed(pipe, asked)
    (images,) = pipe.run()
    assert [np.asarray(images[row]).shape[:2] for row in range(len(SIDES))] == SIDES


@pytest.mark.gpu
@pytest.mark.parametrize("form", [request, raw_request])
def test_the_gpu_gives_the_same_outputs(form):
    asked = form(IMAGES, [(0, 0, *sides) for sides in SIDES])
    plain, decoder = [Output(48), Output(70, "bicubic")], Decoder(form is raw_request)
    (_, cpu), *_ = decode(iter([asked]), decoder, plain, ON_CPU, Told(refuse))
    gpu = torch.device("cuda", torch.cuda.current_device())
    on_gpu = Workers(gpu, True, threads=2, prefetch=2)
    for _, images in decode(iter([asked] * 3), decoder, plain, on_gpu, Told(refuse)):
        for of_one, expected in zip(images, cpu, strict=True):
            for image, wanted in zip(of_one, expected, strict=True):
                assert image.device == gpu
                assert (image.cpu().int() - wanted.int())[3:-3, 3:-3].abs().float().mean() < 1
    assert list(decode(iter([asked]), decoder, [], on_gpu, Told(refuse))) == [(asked, [])]
