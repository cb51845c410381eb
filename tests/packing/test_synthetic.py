"""The drawn data set: the same bytes whatever the processes, and nothing but shape tells the class."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import called, refused
from PIL import Image

from launch.draw import main
from pipeline.errors import UserError
from pipeline.packing.synthetic import CLASSES, SHAPES, Drawing, draw

SMALL = Drawing(train=100, validation=30)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drawn") / "shapes"
    draw(out, SMALL, workers=1)
    return out


def digests(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.rglob("*.jpg")}


def test_two_processes_draw_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    draw(tmp_path / "again", SMALL, workers=2)
    assert digests(tmp_path / "again") == digests(drawn)


def test_a_larger_set_begins_with_the_smaller_one(drawn: Path, tmp_path: Path) -> None:
    draw(tmp_path / "few", Drawing(train=20, validation=10), workers=1)
    assert digests(tmp_path / "few").items() <= digests(drawn).items()


def test_another_seed_draws_other_images_and_no_image_comes_twice(drawn: Path, tmp_path: Path) -> None:
    draw(tmp_path / "other", Drawing(train=20, validation=10, seed=1), workers=1)
    other, first = digests(tmp_path / "other"), digests(drawn)
    assert other.keys() <= first.keys()
    assert not set(other.values()) & set(first.values())
    assert len(set(first.values())) == SMALL.train + SMALL.validation


def test_classes_are_balanced_and_sizes_vary(drawn: Path) -> None:
    for split, total in (("train", SMALL.train), ("validation", SMALL.validation)):
        counts = {folder.name: len(list(folder.iterdir())) for folder in (drawn / split).iterdir()}
        assert counts == dict.fromkeys(CLASSES, total // 10)
    sizes = [Image.open(f).size for f in drawn.rglob("*.jpg")]
    aspects = [width / height for width, height in sizes]
    assert len(set(sizes)) > 60
    assert all(96 <= min(size) <= 200 for size in sizes)
    assert min(aspects) < 0.75
    assert max(aspects) > 1.33


@pytest.mark.parametrize("name", CLASSES)
def test_every_shape_covers_the_same_area_around_the_origin(name: str) -> None:
    large, centre = 100, 200
    x, y = (SHAPES[name] * large + centre).T
    area = abs((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2
    assert area == pytest.approx(large**2)
    assert min(x.min(), y.min()) > centre - large  # no shape is so thin that it leaves the centre square
    assert max(x.max(), y.max()) < centre + large


def statistics(path: Path) -> np.ndarray:
    """What can be known without shape: joint colour histogram, moments, size of image and file."""
    image = Image.open(path)
    pixels = np.asarray(image, np.float64).reshape(-1, 3) / 256
    bins = (pixels * 4).astype(int) @ (16, 4, 1)
    histogram = np.sort(np.bincount(bins, minlength=64) / len(pixels)), np.bincount(bins, minlength=64) / len(pixels)
    size = [image.width / 200, image.height / 200, image.width * image.height / 40000, path.stat().st_size / 10000]
    return np.concatenate([*histogram, pixels.mean(0), pixels.std(0), [pixels.mean(), pixels.std()], size])


def test_colours_areas_and_sizes_do_not_tell_the_class(tmp_path: Path) -> None:
    out = tmp_path / "shapes"
    draw(out, Drawing(train=400, validation=200), workers=2)
    features, labels = {}, {}
    for split in ("train", "validation"):
        files = sorted((out / split).rglob("*.jpg"))
        features[split] = np.stack([statistics(f) for f in files])
        labels[split] = np.array([CLASSES.index(f.parent.name) for f in files])
    mean, std = features["train"].mean(0), features["train"].std(0) + 1e-6
    train, validation = ((features[split] - mean) / std for split in ("train", "validation"))

    targets = np.eye(len(CLASSES))[labels["train"]] - 0.1
    ridge = np.linalg.solve(train.T @ train + 30 * np.eye(train.shape[1]), train.T @ targets)
    class_means = np.stack([train[labels["train"] == label].mean(0) for label in range(len(CLASSES))])
    distances = ((validation[:, None] - class_means) ** 2).sum(-1)
    for guessed in ((validation @ ridge).argmax(1), distances.argmin(1)):
        accuracy = (guessed == labels["validation"]).mean()
        print(f"accuracy without shape: {accuracy:.3f} (chance 0.1)")
        assert accuracy < 0.2  # chance is 0.1 with a standard deviation of 0.021


def test_a_finished_folder_is_left_and_an_interrupted_one_replaced(tmp_path: Path) -> None:
    out, messages = tmp_path / "shapes", []
    (tmp_path / "shapes.part" / "train" / "old").mkdir(parents=True)
    tiny = Drawing(train=10, validation=10)
    draw(out, tiny, workers=1, log=messages.append)
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*")}
    draw(out, tiny, workers=1, log=messages.append)
    assert {f: f.stat().st_mtime_ns for f in out.rglob("*")} == before
    assert "already drawn" in messages[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    assert sorted(folder.name for folder in (out / "train").iterdir()) == sorted(CLASSES)
    with pytest.raises(UserError, match="not drawn with these options"):
        draw(out, Drawing(train=10, validation=10, seed=1), workers=1)


def test_an_interrupted_run_leaves_nothing_that_looks_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "shapes", Drawing(train=10, validation=10), workers=1)
    assert not (tmp_path / "shapes").exists()


def test_command_line_refuses_with_one_message(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.txt").touch()
    for words, message in (
        ([str(tmp_path / "mine")], "was not drawn with these options"),
        ([str(tmp_path / "new"), "--train", "9"], "--train is 9"),
        ([str(tmp_path / "new"), "--seed", "-1"], "--seed is -1"),
        ([str(tmp_path / "new"), "--workers", "0"], "--workers is 0"),
    ):
        assert message in refused(called(main, *words))
    assert (tmp_path / "mine" / "holiday.txt").exists()
    assert not (tmp_path / "new").exists()
