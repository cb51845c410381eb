"""The graphs that a GPU runs, run on a CPU: fed and read by the code that feeds and reads them there, their pixels
compared with the CPU path's and with Pillow's. What is left for a GPU to show are its JPEG decoder and its kernels.

Levels are of 255. The tolerances are what was measured (DALI 2.4, torch 2.14, Pillow 12 and 13), rounded up.
"""

import io
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.decoding import dali
from pipeline.data.decoding.dali import Decoder
from pipeline.data.decoding.decoder import Workers, decode
from pipeline.data.decoding.screen import Screen
from pipeline.data.output import Output
from pipeline.data.request import Request
from pipeline.linting.pixels import Told
from tests.conftest import jpeg, photo
from tests.data.decoding.test_decoder import BROKEN, CPU, MEAN, STD, normal, pixels, raw_request, refuse, request
from tests.data.decoding.test_screen import JPEG, SOUND, THUMBNAIL, TORN

PX = 64
# Top, left, height, width: shrunk, wide and tall, as they are, oblong, enlarged, shrunk one way and enlarged the other.
BOXES = [(0, 0, 128, 120), (0, 1, 120, 128), (3, 5, 64, 64), (10, 20, 90, 50), (7, 9, 40, 30), (1, 2, 63, 65)]
ROWS = len(BOXES)
FLIP = [row % 2 for row in range(ROWS)]
COLOUR = np.linspace(-0.1, 0.1, 3 * ROWS).reshape(ROWS, 3)
SIDES = [(60, 90), (91, 64), (40, 40), (200, 77)]
NORMALS = [(MEAN, STD), ((0.1, 0.5, 0.9), (0.5, 0.25, 1.0))]
FILTERS = [("bilinear", True), ("bicubic", True), ("bilinear", False), ("bicubic", False)]


class Apart(NamedTuple):
    """How far two images may be apart: at most, on average, and at most in the two outermost rows and columns."""

    inside: float
    mean: float
    border: float


# DALI rounds once, torch and Pillow after each of two passes. On noise bicubic's passes overshoot black and white: DALI
# cuts that off at the end, torch and Pillow after each pass. An antialiased filter reaches beyond the border, which
# DALI repeats. Without antialiasing torch's bicubic has another coefficient (-0.75, DALI's is -0.5): no noise then.
PHOTOS = Apart(1, 0.25, 1)
ALLOWED = {
    ("noise", "bilinear", True): Apart(1, 0.4, 16),
    ("noise", "bicubic", True): Apart(24, 0.45, 24),
    ("noise", "bilinear", False): Apart(1, 0.3, 1),
    **{(kind, *way): PHOTOS for kind in ("photos", "jpegs") for way in FILTERS[:3]},
    **{(kind, "bicubic", False): Apart(2, 0.25, 2) for kind in ("photos", "jpegs")},
}


def noise(number: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(kind: str, sides: list[tuple[int, int]]) -> list[bytes]:
    drawn = [noise(row, *side) if kind == "noise" else photo(row, row % 5, *side) for row, side in enumerate(sides)]
    return [jpeg(picture) if kind == "jpegs" else png(picture) for picture in drawn]


PICTURES = {kind: pictures(kind, [(130, 132)] * ROWS) for kind in ("photos", "noise", "jpegs")}


@pytest.fixture(autouse=True)
def no_events(monkeypatch) -> None:
    """Without a GPU, `_held` has no events to wait for, and none are needed."""

    monkeypatch.setattr(dali, "_held", lambda *words: dali._run(*words[:-1]))


def both(
    requests: Iterable[Request],
    outputs: list[Output] | None = None,
    is_raw: bool = False,
    whole: bool = False,
    bad: Told | None = None,
    prefetch: int = 2,
    **how: Any,
) -> tuple[list[Any], list[Any]]:
    """What the GPU's graph and the CPU's path make of the requests; by default what training asks for, in 0..255."""
    made = []
    for on_gpu in (True, False):
        workers = Workers(CPU, on_gpu, 2, prefetch)
        wanted = outputs or [normal(**{"px": PX} | how)]
        pairs = decode(iter(requests), Decoder(is_raw, whole), wanted, workers, bad or Told(refuse))
        made.append([(done, images if outputs else images[0]) for done, images in pairs])
    return made[0], made[1]


def require(difference: torch.Tensor, allowed: Apart) -> None:
    """In levels, [..., height, width]."""
    difference = difference.abs()
    assert difference[..., 2:-2, 2:-2].max() <= allowed.inside + 1e-3
    assert difference.mean() <= allowed.mean
    assert difference.max() <= allowed.border + 1e-3


@pytest.mark.parametrize("form", [request, raw_request])
@pytest.mark.parametrize(("kind", "interpolation", "antialias"), ALLOWED)
def test_windows_flips_and_colours_are_those_of_the_cpu(kind, interpolation, antialias, form):
    asked = form(PICTURES[kind], BOXES, flip=FLIP, colour=COLOUR)
    for mean, std in NORMALS:
        how: dict[str, Any] = {"mean": mean, "std": std, "interpolation": interpolation, "antialias": antialias}
        gpu, cpu = both([asked], is_raw=form is raw_request, **how)
        (done, got), (_, expected) = gpu[0], cpu[0]
        assert done is asked
        assert got.is_contiguous(memory_format=torch.channels_last)
        require((got - expected) * 255 * torch.tensor(std)[:, None, None], ALLOWED[kind, interpolation, antialias])


def pillow(picture: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Along rows first, as Pillow did before 13, which begins with whichever pass is cheaper."""
    way = Image.Resampling[interpolation.upper()]
    return np.asarray(Image.fromarray(picture).resize((width, picture.shape[0]), way).resize((width, height), way))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", ["photos", "noise"])
def test_pixels_are_pillows(kind, interpolation):
    """Those of the graph, and within two levels those of the CPU's path."""
    gpu, cpu = both([request(PICTURES[kind], BOXES, flip=FLIP)], interpolation=interpolation)
    expected = []
    for picture, (top, left, height, width), flip in zip(PICTURES[kind], BOXES, FLIP, strict=True):
        image = pillow(pixels(picture)[top : top + height, left : left + width], PX, PX, interpolation)
        expected.append(image[:, ::-1] if flip else image)
    wanted = torch.from_numpy(np.stack(expected).astype(np.float32)).permute(0, 3, 1, 2)
    require(gpu[0][1] - wanted, ALLOWED[kind, interpolation, True])
    require(cpu[0][1] - wanted, Apart(1, 0.01, 1) if interpolation == "bilinear" else Apart(2, 0.01, 2))


@pytest.mark.parametrize(("mean", "std"), NORMALS)
def test_unscaled_windows_are_the_formula(mean, std):
    """(pixel / 255 + shift - mean) / deviation, then mirrored."""
    asked = request(PICTURES["noise"], [(row, 2 * row, PX, PX) for row in range(ROWS)], flip=FLIP, colour=COLOUR)
    ((_, got),), ((_, cpu),) = both([asked], mean=mean, std=std)
    for row, picture in enumerate(PICTURES["noise"]):
        cut = pixels(picture)[row : row + PX, 2 * row : 2 * row + PX].astype(np.float64)
        wanted = ((cut / 255 + COLOUR[row] - mean) / std)[:, :: -1 if FLIP[row] else 1].transpose(2, 0, 1)
        for images in (got, cpu):
            np.testing.assert_allclose(images[row].numpy(), wanted, atol=2e-6 / min(std))


@pytest.mark.parametrize("whole", [False, True])
def test_a_flipped_window_is_the_mirror_image(whole):
    asked = request(PICTURES["jpegs"][:1] * 2, BOXES[3:4] * 2, flip=[False, True])
    ((_, got),), _ = both([asked], whole=whole)
    assert torch.equal(got[1], got[0].flip(-1))
    assert not torch.equal(got[1], got[0])


def test_windows_cut_out_of_whole_images_are_those_of_the_cpu():
    ((_, got),), ((_, cpu),) = both([request(PICTURES["jpegs"], BOXES, flip=FLIP)], whole=True)
    require(got - cpu, PHOTOS)


def test_images_come_in_order_and_stay_as_they_were():
    encoded = pictures("jpegs", [(40, 50)] * 14)
    requests = [request(encoded[at : at + 2], [(0, 0, 40, 50)] * 2) for at in range(0, 14, 2)]
    gpu, cpu = both(requests, px=32, prefetch=3)
    assert [done for done, _ in gpu] == requests
    for (_, got), (_, expected) in zip(gpu, cpu, strict=True):  # all of them are held by now
        require(got - expected, PHOTOS)


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_image_costs_its_row_alone(broken):
    image = np.frombuffer(BROKEN[broken], np.uint8)
    encoded = pictures("jpegs", [(40, 50)] * 4)
    asked = [request(encoded[at : at + 2], [(0, 0, 40, 50)] * 2, flip=[False, True]) for at in (0, 2)]
    found: list[list[int]] = []
    bad = Told(lambda ids, reasons: found.append(ids.tolist()))
    torn = [asked[0], replace(asked[1], ids=np.array([70, 71]), images=[asked[1].images[0], image])]
    (whole, _), (gpu, _) = both(asked), both(torn, bad=bad)
    assert found[:1] == [[71]]
    assert [done.valid.tolist() for done, _ in gpu] == [[True, True], [True, False]]
    assert torch.equal(gpu[0][1], whole[0][1])
    assert torch.equal(gpu[1][1][0], whole[1][1][0])
    assert (gpu[1][1][1] == 118).all()


class Forgiving:
    """A graph whose decoder makes something of torn photos, as nvJPEG does."""

    def __init__(self, graph: Any):
        self.graph = graph
        self.mended = {
            torn: np.frombuffer(THUMBNAIL if "thumb" in name else JPEG, np.uint8) for name, torn in TORN.items()
        }

    def feed_input(self, name: str, rows: Any) -> None:
        if name == "images":
            rows = [self.mended.get(image.tobytes(), image) for image in rows]
        self.graph.feed_input(name, rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.graph, name)


@pytest.fixture
def forgiving(monkeypatch) -> None:
    """Graphs with outputs forgive; those that try images by themselves, and the CPU's, do not."""
    usual = dali.Graph.build

    def build(graph: dali.Graph, rows: int, depth: int) -> Any:
        pipe = usual(graph, rows, depth)
        return Forgiving(pipe) if graph.outputs else pipe

    monkeypatch.setattr(dali.Graph, "build", build)


def verdicts(
    images: list[bytes], boxes: list[tuple[int, int, int, int]], **how: Any
) -> tuple[list[tuple[Request, Any]], list[tuple[Request, Any]], list[list[int]]]:
    """What the GPU's graph and the CPU's path make of two batches of these images; the ids that each of them lost."""
    lost: list[list[int]] = []
    asked = request(images, boxes)
    gpu, cpu = both([asked] * 2, bad=Told(lambda ids, reasons: lost.append(ids.tolist())), **how)
    return gpu, cpu, lost


SCALES = [Output(PX)]


@pytest.mark.parametrize("outputs", [None, SCALES], ids=["windows", "whole images"])
@pytest.mark.parametrize("name", TORN)
def test_torn_photos_are_lost_though_the_decoder_forgives_them(name, outputs, forgiving):
    """As they are on the CPU's path; their neighbours are what they are beside a sound photo."""
    boxes = [(0, 0, 300, 400)] * 3
    gpu, cpu, lost = verdicts([JPEG, TORN[name], SOUND["PNG"]], boxes, outputs=outputs)
    whole, _, _ = verdicts([JPEG, JPEG, SOUND["PNG"]], boxes, outputs=outputs)
    assert lost == [[1]] * 4
    for (request_gpu, images), (request_cpu, _), (_, sound) in zip(gpu, cpu, whole, strict=True):
        assert request_gpu.valid.tolist() == request_cpu.valid.tolist() == [True, False, True]
        got, expected = (images[0], sound[0]) if outputs else (images, sound)
        for row in (0, 2):
            assert torch.equal(got[row], expected[row])
        assert (got[1] == 118).all()


def test_this_decoder_forgives(forgiving, monkeypatch):
    """Else the tests around it would show nothing."""
    monkeypatch.setattr(Screen, "suspects", lambda self, asked: np.zeros(len(asked.ids), bool))
    for torn in TORN.values():
        ((done, _),), _ = both([request([JPEG, torn], [(0, 0, 300, 400)] * 2)], bad=Told(lambda ids, reasons: None))
        assert done.valid.all()


@pytest.mark.parametrize("whole", [False, True])
def test_a_torn_photo_is_kept_where_its_window_lies_above_the_tear(whole, forgiving):
    """As on the CPU's path, with its pixels; a decoder of whole images loses it everywhere."""
    torn = TORN["cut at 90 %"]
    boxes = [(10, 20, 100, 90), (220, 20, 80, 90), (10, 20, 100, 90)]
    gpu, cpu, lost = verdicts([torn, torn, JPEG], boxes, whole=whole)
    assert lost == [[0, 1] if whole else [1]] * 4
    for (request_gpu, got), (request_cpu, expected) in zip(gpu, cpu, strict=True):
        assert request_gpu.valid.tolist() == request_cpu.valid.tolist() == [not whole, False, True]
        require(got - expected, PHOTOS)
        if not whole:
            assert torch.equal(got[0], got[2])


@pytest.mark.parametrize("padding", [1, 1000, 100_000])
def test_padding_behind_a_photo_does_not_cost_it(padding, forgiving):
    gpu, cpu, lost = verdicts([JPEG, JPEG + bytes(padding)], [(0, 0, 300, 400)] * 2)
    assert lost == []
    for _, images in gpu + cpu:
        assert torch.equal(images[0], images[1])


def test_when_a_graph_fails_the_cpu_tells_the_culprit(monkeypatch):
    """Every row is tried by the CPU's decoder; if it finds nothing, the graph's own error is raised."""
    usual = dali.Graph.build

    def trouble(**options: Any) -> None:
        raise RuntimeError("a GPU's own trouble")

    def failing(graph: dali.Graph, rows: int, depth: int) -> Any:
        pipe: Any = usual(graph, rows, depth)
        if graph.outputs:
            pipe = Forgiving(pipe)
            pipe.share_outputs = trouble
        return pipe

    monkeypatch.setattr(dali.Graph, "build", failing)
    with pytest.raises(RuntimeError, match="a GPU's own trouble"):
        both([request([JPEG], [(0, 0, 300, 400)])])


@pytest.mark.parametrize("form", [request, raw_request])
@pytest.mark.parametrize(("kind", "interpolation", "antialias"), ALLOWED)
def test_whole_images_at_scales_are_those_of_the_cpu_and_pillows(kind, interpolation, antialias, form):
    encoded = pictures(kind, SIDES)
    asked = form(encoded, [(0, 0, *sides) for sides in SIDES])
    scales = [Output(px, interpolation, antialias) for px in (40, 48, 70)]
    gpu, cpu = both([asked] * 3, scales, is_raw=form is raw_request)
    assert [done for done, _ in gpu] == [asked] * 3
    allowed = ALLOWED[kind, interpolation, antialias]
    for scale, of_one, expected in zip(scales, gpu[0][1], cpu[0][1], strict=True):
        assert [list(image.shape[:2]) for image in of_one] == scale.sizes(*np.array(SIDES).T).tolist()
        for image, theirs, picture in zip(of_one, expected, encoded, strict=True):
            assert image.dtype == torch.uint8
            got = image.permute(2, 0, 1).float()
            require(got - theirs.permute(2, 0, 1), allowed)
            if antialias and kind != "jpegs":
                wanted = pillow(pixels(picture), *image.shape[:2], interpolation)
                require(got - torch.from_numpy(wanted.copy()).permute(2, 0, 1), allowed)
