"""What comes out: figures against a count by hand, the per-image file, the picture of mistakes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from torch import nn

from pipeline.config import Config, Data
from pipeline.data import index
from pipeline.errors import UserError
from pipeline.evaluation import figure, predictions, report
from pipeline.evaluation.classifier import Classifier
from pipeline.evaluation.outcomes import Outcome, Outcomes
from tests.conftest import COLOURS

NAMES = ["red", "green", "blue", "yellow", "cyan", "none of the set"]


@pytest.fixture
def outcomes(photos) -> Outcomes:
    """Of 50 images in five classes: image 7 is not scored; every fifth (class 0) is taken for class 1, and image 3 for
    the sixth output, with certainty."""
    labels = index.load(photos).label.astype(np.int64)
    first = np.where(labels == 0, 1, labels)
    first[3] = 5
    classes = np.stack([first, *((first + k) % 6 for k in (1, 2, 3, 4))], axis=1).astype(np.int32)
    probabilities = np.tile([0.6, 0.2, 0.1, 0.05, 0.04], (50, 1))
    probabilities[3] = [0.99, 0.004, 0.003, 0.002, 0.001]
    probabilities[:, 0] -= np.arange(50) / 1000
    scored = np.arange(50) != 7
    classes[7] = -1
    return Outcomes(labels, scored, {"ten": Outcome(classes, probabilities, np.full(50, 0.5))}, num_outputs=6)


@pytest.fixture
def evaluated(outcomes, photos, tmp_path) -> report.Evaluated:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"weights")
    one = Classifier("runs/a", nn.Identity(), Config(), 6, None, weights, "ab" * 32, step=40)
    found = index.load(photos)
    return report.Evaluated([one], "data/photos", found, np.arange(5), NAMES, outcomes, 12.0, {"precision": "fp32"})


def test_json(evaluated, tmp_path):
    report.write(evaluated, tmp_path / "evaluation.json")
    facts = json.loads((tmp_path / "evaluation.json").read_text())
    ten = facts["views"]["ten"]
    assert (facts["num_samples"], facts["num_scored"]) == (50, 49)
    assert (ten["seen"], ten["correct1"]) == (49, 49 - 10 - 1)
    assert ten["top1_error_percent"] == pytest.approx(100 * 11 / 49)
    low, high = ten["top1_interval_percent"]
    assert low < ten["top1_error_percent"] < high
    assert ten["loss"] == pytest.approx(np.log(2))
    by_class = {row["class"]: row for row in ten["classes"]}
    assert (by_class["class-0"]["seen"], by_class["class-0"]["top1_error_percent"]) == (10, 100)
    assert (by_class["class-2"]["seen"], by_class["class-2"]["top1_error_percent"]) == (9, 0)  # image 7 was its
    assert by_class["class-3"]["top1_error_percent"] == 10
    assert ten["confusions"] == [
        {"label": "red", "predicted": "green", "count": 10, "of_label_percent": 100.0},
        {"label": "yellow", "predicted": "none of the set", "count": 1, "of_label_percent": 10.0},
    ]
    network = facts["networks"][0]
    assert (network["source"], network["step"], len(network["weights_sha256"])) == ("runs/a", 40, 64)
    assert network["preprocessing"]["resize_px"] == 256


def test_table(evaluated):
    lines = report.table(evaluated).splitlines()
    assert lines[0] == "49 images of data/photos, alexnet, runs/a, step 40"
    row = next(line.split() for line in lines if line.startswith("  ten"))
    assert row[:2] == ["ten", "22.45%"]
    assert row[2] == "13.02..35.88"
    assert "  in no figure, since they cannot be decoded: 1 image" in lines
    assert any(line.startswith("  compare with: none: published numbers") for line in lines)


def test_wandb_tables(evaluated):
    shown = report.presentation(evaluated, None, None, "ten")
    columns, rows = shown.tables["eval/ten/worst_classes"]
    assert columns == ["class", "seen", "top1_error_percent", "top5_error_percent"]
    assert rows[0][:3] == ["class-0", 10, 100.0]
    assert shown.tables["eval/ten/confusions"][1][0] == ["red", "green", 10, 100.0]
    assert shown.summary["eval/ten/top1_error_percent"] == pytest.approx(100 * 11 / 49)
    assert report.presentation(evaluated, "other-12345678", None, "ten").summary.keys() > {
        "eval/other-12345678/ten/compare_with"
    }


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_predictions(outcomes, photos, tmp_path, ending):
    path, found = tmp_path / f"p.{ending}", index.load(photos)
    predictions.check(path)
    predictions.write(outcomes, found, NAMES, path)
    if ending == "csv":
        rows = list(csv.DictReader(path.read_text().splitlines()))
    else:
        pyarrow = pytest.importorskip("pyarrow.parquet")
        rows = [
            {key: "" if value is None else str(value) for key, value in row.items()}
            for row in pyarrow.read_table(path).to_pylist()
        ]
    assert [int(row["id"]) for row in rows] == list(range(50))
    assert [row["key"] for row in rows] == [found.key_of(sample) for sample in range(50)]
    assert {row["view"] for row in rows} == {"ten"}
    third = rows[3]
    assert (third["label"], third["label_name"], third["class_1"], third["name_1"]) == (
        *("3", "yellow"),
        *("5", "none of the set"),
    )
    assert [float(third[f"probability_{n}"]) for n in range(1, 6)] == [0.987, 0.004, 0.003, 0.002, 0.001]
    assert rows[7]["class_1"] == rows[7]["probability_5"] == rows[7]["label_probability"] == ""
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("p.txt", r"ends in \.csv or \.parquet"),
        ("file/p.csv", "no file can be written there"),
        ("d.csv", "no file can be"),
    ],
)
def test_predictions_that_could_not_be_written(path, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("d.csv").mkdir()
    with pytest.raises(UserError, match=reason):
        predictions.check(Path(path))


def test_the_picture_of_mistakes(outcomes, photos):
    ids = figure.worst_mistakes(outcomes, "ten")
    assert ids.tolist() == [3, *range(0, 50, 5)]  # the most confident first
    assert figure.worst_mistakes(outcomes, "ten", most=2).tolist() == [3, 0]
    picture, unknown = figure.draw(outcomes, "ten", ids, index.load(photos), Data(threads=1), NAMES, "runs/a")
    assert picture is not None
    assert unknown == []
    scale = figure.DPI // 100
    pixels = np.asarray(picture)
    assert pixels.shape == (scale * (3 * figure.HEIGHT_PX + figure.TITLE_PX), scale * 4 * figure.WIDTH_PX, 3)
    # the first picture is image 3, of the colour of its class; below it the first bar is nearly as long as it
    left, top = scale * figure.MARGIN_PX, scale * figure.TITLE_PX
    bottom, right = top + scale * figure.PICTURE_PX, left + scale * figure.PICTURE_PX
    middle = pixels[top:bottom, left:right].mean(axis=(0, 1))
    assert np.abs(middle - COLOURS[3]).max() < 30
    edge = pixels[bottom + scale * (4 + figure.LINE_PX) + 2, left:right]  # above the words in the bar
    blue = [int(figure.BLUE[at : at + 2], 16) for at in (1, 3, 5)]
    assert (np.abs(edge.astype(int) - blue).max(axis=1) < 3).sum() == pytest.approx(0.987 * (right - left), abs=4)


def test_the_picture_tells_which_letters_it_cannot_draw(outcomes, photos, tmp_path, monkeypatch):
    """A hieroglyph, which fonts of a machine seldom have; then with a font that has it: a filled square."""
    names = ["Äpfel und Öl", "кошки", "قطة", "\U00013000", "e\u0301", "$x_1$ <b>\n" + 80 * "long "]
    font = tmp_path / "Glyphs-Regular.ttf"
    square(font, 0x13000)
    ids = figure.worst_mistakes(outcomes, "ten", most=1)
    found = []
    for fonts in ([], [str(font)]):
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda fonts=fonts: fonts)
        found.append(figure.draw(outcomes, "ten", ids, index.load(photos), Data(threads=1), names, "runs/Катя"))
    (without, unknown), (drawn, none) = found
    assert (unknown, none) == (["\U00013000"], [])
    assert without.size == drawn.size
    assert np.asarray(without).tobytes() != np.asarray(drawn).tobytes()


def square(path: Path, code: int) -> None:
    """A font with one letter."""
    pen = TTGlyphPen(None)
    for at in ((0, 0), (0, 700), (700, 700), (700, 0)):
        (pen.lineTo if pen.points else pen.moveTo)(at)
    pen.closePath()
    glyph, builder = pen.glyph(), FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({code: "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": glyph})
    builder.setupHorizontalMetrics({".notdef": (800, 0), "square": (800, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Glyphs", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800)
    builder.setupPost()
    builder.save(path)


def test_no_mistakes_no_picture(outcomes, photos):
    assert figure.draw(outcomes, "ten", np.array([], int), index.load(photos), Data(), NAMES, "runs/a") == (None, [])
