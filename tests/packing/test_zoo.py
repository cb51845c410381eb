"""Images of every kind, packed in all three storage forms: what training and scoring see is the right picture."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from launch import pack as command
from pipeline.config import Data
from pipeline.data.index import load
from pipeline.data.loader import eval_batches
from pipeline.data.output import Output
from pipeline.runtime import RankInfo
from tests.data.zoo import PX, ZOO

NAMES = {name: f"{number:02d}" for number, name in enumerate(ZOO)}  # a class of its own for each
RIGHT = {NAMES[name]: animal.right for name, animal in ZOO.items() if animal.right is not None}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    for name, animal in ZOO.items():
        (folder / NAMES[name]).mkdir()
        (folder / NAMES[name] / "photo.bin").write_bytes(animal.encoded)
    return folder


def seen(folder: Path, px: int) -> dict[str, np.ndarray]:
    """class -> uint8 [height, width, 3], as launch.evaluate looks at it."""
    index, found = load(folder), {}
    how: dict = {"rank_info": RankInfo(0, 1, 0, 1), "device": torch.device("cpu"), "micro_batch": 16}
    for batch in eval_batches(index, Data(max_bad_images=0), [Output(px)], **how):
        for sample, image in zip(batch.ids.tolist(), batch.images[0], strict=True):
            if sample >= 0:
                found[index.classes[index.label[sample]]] = image.numpy().copy()
    return found


@pytest.mark.parametrize(
    "options", [[], ["--short-side", str(PX)], ["--raw", str(PX)]], ids=["original", "short side", "raw"]
)
def test_the_same_pixels_in_every_form(photos, tmp_path, capsys, options):
    assert command.main([str(photos), str(tmp_path / "out"), "--workers", "1", *options]) == 0
    found = seen(tmp_path / "out/train", PX)
    assert found.keys() == RIGHT.keys()
    for name, animal in ZOO.items():
        if animal.right is not None:
            assert np.array_equal(found[NAMES[name]], animal.right), name
    left_out = (tmp_path / "out/rejected.tsv").read_text().splitlines()[1:]
    assert {line.split("/")[0] for line in left_out} == NAMES.values() - RIGHT.keys()
    assert sum("nobody says what is white" in line for line in left_out) == len(left_out)
    converted = json.loads((tmp_path / "out/pack.json").read_text())["converted"]
    told = capsys.readouterr().out
    if "--raw" in options:
        assert converted == {}
        assert "stored as PNG" not in told
    else:
        assert sum(converted.values()) == sum(not animal.plain for animal in ZOO.values()) - len(left_out) - 1
        assert converted["JPEG with 4 colour components"] == 2
        assert converted["PNG with a wrong checksum (IDAT)"] == 1
        assert "2 JPEG with 4 colour components" in told


def test_a_smaller_short_side_is_pillows_own(photos, tmp_path):
    assert command.main([str(photos), str(tmp_path / "out"), "--workers", "1", "--short-side", "32"]) == 0
    for name, pixels in seen(tmp_path / "out/train", 32).items():
        right = np.asarray(Image.fromarray(RIGHT[name]).resize((32, 32), Image.Resampling.BICUBIC))
        assert np.abs(pixels.astype(int) - right).mean() < 6, name  # JPEG of quality 90


def test_kept_bytes_are_the_files_own(photos, tmp_path):
    assert command.main([str(photos), str(tmp_path / "out"), "--workers", "1"]) == 0
    index = load(tmp_path / "out/train")
    kept = {index.classes[index.label[sample]]: sample for sample in range(len(index))}
    for name, animal in ZOO.items():
        if animal.plain:
            sample = kept[NAMES[name]]
            content = Path(index.location(index.shard[sample])).read_bytes()
            start = int(index.offset[sample])
            assert content[start : start + int(index.size[sample])] == animal.encoded, name
