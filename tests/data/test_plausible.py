"""Doubts about a set: told for what is odd, and for nothing else, by packing, by --check and by lint alike."""

import json

import numpy as np
import pytest
from conftest import called, jpeg, photo, refused, write_tar

from launch import lint, train
from launch import pack as command
from pipeline.data import index
from pipeline.data.plausible import doubts


def packed(tmp_path, labels, classes=None, first=0, name="set"):
    """Shards with these labels, whose images are photos number `first` on, indexed."""
    members = []
    for number, label in enumerate(labels):
        image = jpeg(photo(first + number, (first + number) % 5, 40, 50))
        members += [(f"k{number}.jpg", image), (f"k{number}.cls", f"{label}\n".encode())]
    write_tar(tmp_path / f"{name}-0.tar", members)
    words = [str(tmp_path / f"{name}-0.tar"), str(tmp_path / name), "--workers", "1"]
    if classes:
        (tmp_path / "names.txt").write_text("\n".join(classes))
        words += ["--classes", str(tmp_path / "names.txt")]
    assert command.main(words) == 0
    return tmp_path / name / "train"


ODD = [
    ([0, 0, 0, 0], None, "one class alone, '0'"),
    ([1, 2, 3, 1], None, "do these labels count from 1?"),
    ([0, 0, 3, 900], None, "no image of 898 of its 901 classes ('1', '2', '4', '5', '6', ...). If labels have gaps"),
    (range(12), [f"{n}.jpg" for n in range(12)], "each of its 12 images is a class of its own. If the label is a key"),
    ([0, 2, 0, 2], ["cat", "dog", "emu"], "no image of 1 of its 3 classes ('dog'). Add some"),
    ([1, 2, 1, 2], ["none", "cat", "dog"], "no image of 1 of its 3 classes ('none')"),
]


@pytest.mark.parametrize(("labels", "classes", "told"), ODD)
def test_odd_labels_are_told_by_packing_check_and_lint(tmp_path, capsys, labels, classes, told):
    folder = packed(tmp_path, labels, classes)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(said) == 1
    assert told in said[0]
    words = [f"data.train={folder}", "data.validation=none", f"run={tmp_path / 'run'}", "train.global_batch=4"]
    checked = called(train.main, "configs/alexnet_cpu.yaml", *words, "--check", "--processes", "1")
    assert checked.returncode == 0, checked.stderr
    assert said == [line for line in checked.stdout.splitlines() if line.startswith("warning: ")]
    assert lint.main([str(folder), "--workers", "1"]) == lint.CLEAN
    kinds = set(json.loads((folder / "lint.json").read_text())["kinds"])
    assert kinds & {"one_class", "from_one", "empty_class", "own_class"}
    assert ("from_one" in kinds) == ("count from 1" in told)


@pytest.mark.parametrize("labels", [[0, 1, 0, 1], [0, 1, 2, 3]])
def test_sound_labels_are_not_told_of(tmp_path, capsys, labels):
    assert doubts(index.load(packed(tmp_path, labels))) == []
    assert "warning" not in capsys.readouterr().out


def test_images_that_validation_shares_are_counted(tmp_path):
    """Photos 0..3 to train on, 2..7 to score on, in other shards under other keys."""
    both = [
        index.load(packed(tmp_path, [0, 1] * n, None, first, name)) for n, first, name in ((2, 0, "a"), (3, 2, "b"))
    ]
    [told] = doubts(*both)
    assert told.startswith(f"2 of the 6 images of {tmp_path / 'b' / 'train'} are in {tmp_path / 'a' / 'train'} too")
    assert "for example 'k0'" in told
    apart = index.load(packed(tmp_path, [0, 1], None, 50, "c"))
    assert doubts(both[0], apart) == []


def test_sets_without_digests_are_read_and_not_compared(tmp_path):
    folder = packed(tmp_path, [0, 1, 0])
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["columns"]["digest"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "index" / "digest.npy").unlink()
    old = index.load(folder)
    assert old.digest is None
    assert doubts(old, old) == []


def test_raw_pixels_have_digests_of_their_own(tmp_path, make_set):
    raw = index.load(make_set("raw", 12, raw=True))
    assert len(np.unique(raw.digest)) == 12


@pytest.mark.parametrize("text", ["1_0", "+1", "\uff11", "0x1", "1.0", "1 2", "", "١"])
def test_a_label_is_decimal_digits(tmp_path, text):
    write_tar(tmp_path / "a.tar", [("k.jpg", jpeg(photo(0, 0, 40, 50))), ("k.cls", text.encode())])
    told = refused(called(command.main, tmp_path / "a.tar", tmp_path / "out", "--workers", "1"))
    assert "not a decimal class number" in told
