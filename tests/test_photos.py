"""Real photos, packed and decoded: TENCROP_PHOTOS names a tar with class folders in train/, validation/ and test/."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Resize

from pipeline.config import Data
from pipeline.data.index import load
from pipeline.data.loader import eval_batches
from pipeline.data.output import Output
from pipeline.data.storage.reader import Reader
from pipeline.runtime import RankInfo

ARCHIVE = os.environ.get("TENCROP_PHOTOS")
pytestmark = pytest.mark.skipif(not ARCHIVE, reason="TENCROP_PHOTOS names no tar of photos")


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(folder / "photos", filter="data")
    command = [sys.executable, "-m", "launch.pack", str(folder / "photos"), str(folder / "packed")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    return folder / "packed"


def test_every_photo_is_packed_and_all_sets_share_a_class_list(packed):
    with tarfile.open(ARCHIVE) as tar:
        names = [Path(member.name) for member in tar if member.isfile() and member.name.count("/") == 2]
    rejected = len((packed / "rejected.tsv").read_text().splitlines()) - 1
    sets = {split: load(packed / split) for split in ("train", "validation", "test")}
    assert sum(map(len, sets.values())) + rejected == len(names)
    assert len({index.classes for index in sets.values()}) == 1
    assert list(sets["train"].classes) == sorted({name.parts[1] for name in names if name.parts[0] == "train"})
    assert np.allclose(np.diag(sets["train"].rgb_covariance), 0.08, atol=0.06)


def test_dali_decodes_and_resizes_photos_as_pil_does(packed):
    """Mean difference below 1.5 levels of 255: the decoders differ in how they enlarge the colour planes."""
    index = load(packed / "test")
    reader, differences = Reader(index), []
    how = {"rank_info": RankInfo(0, 1, 0, 1), "device": torch.device("cpu"), "micro_batch": 64}
    for batch in eval_batches(index, Data(), [Output(256)], **how):
        for sample, image in zip(batch.ids.tolist(), batch.images[0], strict=True):
            if sample >= 0:
                encoded = bytes(reader.read(np.array([sample]))[0])
                expected = Resize(256)(Image.open(io.BytesIO(encoded)).convert("RGB"))
                assert image.shape == (expected.height, expected.width, 3)
                differences.append(np.abs(image.numpy().astype(float) - np.asarray(expected)).mean())
    assert len(differences) == len(index)
    assert max(differences) < 1.5
