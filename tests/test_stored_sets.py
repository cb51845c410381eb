"""What commit 3a240df packed, quarantined and scored (tests/fixtures) is read and scored as it was then."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from launch import evaluate, lint
from pipeline.config import Data
from pipeline.data import index, quarantine
from pipeline.data.loader import eval_batches
from pipeline.data.output import Output
from pipeline.data.storage.reader import Reader
from pipeline.runtime import RankInfo

STORED = Path(__file__).parent / "fixtures" / "3a240df"
SETS = STORED / "sets"
CLASSES = ("grün", "rot", "синий")


def original(name: str, key: str) -> Image.Image:
    """The photo that a sample was made of, by the number in its key."""
    [path] = (SETS / "photos" / "train").glob(f"*/{key[-2:]}.*")
    return Image.open(path).convert("RGB")


@pytest.mark.parametrize(("name", "tolerance"), [("kept", 0), ("pixels", 0), ("small", 40)])
def test_packed_sets_are_read_in_every_storage_form(name, tolerance):
    """Encoded images and raw pixels, against Pillow's picture of the photos; `small` is JPEG again."""
    found = index.load(SETS / name / "train")
    assert (found.num_samples, found.classes) == (12, CLASSES)
    reader = Reader(found)
    for sample in range(12):
        content, photo = bytes(reader.read(np.array([sample]))[0]), original(name, found.key_of(sample))
        size = (int(found.width[sample]), int(found.height[sample]))
        if name == "pixels":
            whole = tuple(32 * side // min(photo.size) for side in photo.size)
            left, top = ((side - 32) // 2 for side in whole)
            photo = photo.resize(whole, Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
            pixels = np.frombuffer(content, np.uint8).reshape(32, 32, 3)
        else:
            photo = photo.resize(size, Image.Resampling.BICUBIC)
            pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.abs(pixels.astype(int) - np.asarray(photo)).max() <= tolerance, found.key_of(sample)


def test_an_indexed_set_leaves_out_what_its_quarantine_names(tmp_path):
    shutil.copytree(SETS, tmp_path / "sets")
    folder = tmp_path / "sets" / "indexed" / "train"
    entries = quarantine.read(folder / index.QUARANTINE)
    assert [entry[:2] for entry in entries] == [("train-0.tar", "k4")]
    batches = eval_batches(
        index.load(folder),
        Data(threads=1, crop_px=32, resize_px=32),
        [Output(32)],
        rank_info=RankInfo(0, 1, 0, 1),
        device=torch.device("cpu"),
        micro_batch=6,
    )
    [batch] = list(batches)
    assert batch.valid.tolist() == [True, True, True, True, False, True]
    assert lint.main([str(folder), "--workers", "1"]) == lint.ERRORS  # the torn image, and nothing else
    assert json.loads((folder / "lint.json").read_text())["counts"]["error"] == 1
    assert quarantine.read(folder / index.QUARANTINE) == entries


def test_a_stored_run_has_the_scores_it_had(tmp_path, monkeypatch):
    """The counts exactly, the probabilities to rounding: the CPU may be another."""
    shutil.copytree(STORED, tmp_path / "stored")
    monkeypatch.chdir(tmp_path / "stored")
    words = "evaluate run-true --data validation --best --views centre,ten --save-predictions new.csv tracking=none"
    assert evaluate.main(words.split()[1:]) == 0
    then, now = (json.loads(Path(name).read_text()) for name in ("evaluation.json", "run-true/evaluation.json"))
    for same in ("num_samples", "num_scored", "data_fingerprint", "networks"):
        assert now[same] == then[same]
    for view in ("centre", "ten"):
        for same in ("seen", "correct1", "top1_interval_percent", "confusions", "scales_px", "num_looks"):
            assert now["views"][view][same] == then["views"][view][same]
        assert now["views"][view]["loss"] == pytest.approx(then["views"][view]["loss"], abs=1e-5)
    before, after = (
        list(csv.DictReader(Path(name).read_text().splitlines())) for name in ("predictions.csv", "new.csv")
    )
    assert [row.keys() for row in after] == [row.keys() for row in before]
    for one, other in zip(before, after, strict=True):
        for column, value in one.items():
            if "probability" in column:
                assert float(other[column]) == pytest.approx(float(value), abs=1e-5), column
            else:
                assert other[column] == value, column
