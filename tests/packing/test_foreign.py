"""Shards that others wrote: indexed untouched, unpacked where they are compressed, refused with the options that help.

They are written by webdataset's own writer and by tarfile, in the layouts of Hugging Face and img2dataset.
"""

import gzip
import io
import json
import lzma
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from conftest import COLOURS, called, jpeg, photo
from PIL import Image

from launch import lint
from launch import pack as command
from pipeline.data import index
from pipeline.data.layout import Layout
from pipeline.data.storage.reader import Reader

NAMES = ["red", "green", "blue", "yellow", "cyan"]


def image(number: int) -> bytes:
    return jpeg(photo(number, number % 5, 40 + number, 50))


def write(path: Path, samples: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def pack(*words) -> str:
    done = called(command.main, *words, "--workers", "1")
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*words) -> str:
    done = called(command.main, *words, "--workers", "1")
    assert done.returncode == 2, done.stdout
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 900
    return done.stderr


def check_colours(folder: Path, count: int, names=("0", "1", "2", "3", "4")) -> index.Index:
    """The label of every sample is the one that its pixels tell."""
    found = index.load(folder)
    assert len(found) == count
    reader = Reader(found)
    for sample in range(count):
        pixels = np.asarray(Image.open(io.BytesIO(bytes(reader.read(np.array([sample]))[0]))).convert("RGB"))
        nearest = int(np.abs(COLOURS - pixels.mean(axis=(0, 1))).sum(axis=1).argmin())
        assert found.classes[found.label[sample]] == names[nearest]
    return found


LAYOUTS = {
    "hugging face": (lambda n: {"jpg": image(n), "json": {"label": n % 5, "id": n}}, "json:label", None),
    "nested": (lambda n: {"jpg": image(n), "json": {"meta": {"class": NAMES[n % 5]}}}, "json:meta.class", None),
    "cls": (lambda n: {"image.jpg": image(n), "cls": n % 5}, None, "image.jpg"),
    "img": (lambda n: {"img": image(n), "label": str(n % 5).encode()}, "label", "img"),
    "text": (lambda n: {"png": image(n), "txt": NAMES[n % 5], "cls": 0}, "txt", "jpg,png"),
    "segmented": (lambda n: {"jpg": image(n), "seg.png": b"mask", "txt": f" {n % 5}\n"}, "txt", "jpg"),
    "only the label": (lambda n: {"jpg": image(n), "seg.png": b"mask", "json": {"label": n % 5}}, "json:label", None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_untouched_shards_are_indexed_linted_and_read(tmp_path, monkeypatch, layout):
    sample, label, images = LAYOUTS[layout]
    monkeypatch.chdir(tmp_path)
    shards = [
        write(Path(f"hf/data/train-{k:05d}.tar"), [{"__key__": f"{k}{n:04d}", **sample(n)} for n in range(6)])
        for k in range(3)
    ]
    before = [path.read_bytes() for path in shards]
    words = (["--label", label] if label else []) + (["--image", images] if images else [])
    named = (isinstance(sample(0).get("txt"), str) and "segmented" not in layout) or layout == "nested"
    pack("hf/data/train-{00000..00002}.tar", "out", *words)
    assert [path.read_bytes() for path in shards] == before
    found = check_colours(Path("out/train"), 18, NAMES if named else ("0", "1", "2", "3", "4"))
    suffixes = (*(images.split(",") if images else []), (label or "cls").partition(":")[0])
    assert found.layout == Layout(tuple((images or "jpg,jpeg,png,webp,npy").split(",")), label or "cls", suffixes)
    assert list(found.classes) == (sorted(NAMES) if named else ["0", "1", "2", "3", "4"])
    assert lint.main(["out/train", "--workers", "1"]) == lint.CLEAN  # which reads the labels from the tars again
    report = json.loads(Path("out/train/lint.json").read_text())
    assert "wrong_name" not in report["kinds"] or layout == "text"  # .png that are JPEG
    counts = report["classes"]["counts"]
    assert [one["count"] for one in counts] == np.bincount(found.label).tolist()


def test_names_take_the_numbers_of_a_class_list(tmp_path):
    write(tmp_path / "a.tar", [{"__key__": f"k{n}", "jpg": image(n), "txt": NAMES[n % 5]} for n in range(10)])
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    pack(tmp_path / "a.tar", tmp_path / "out", "--label", "txt", "--classes", tmp_path / "names.txt")
    found = check_colours(tmp_path / "out" / "train", 10, NAMES)
    assert list(found.classes) == NAMES
    (tmp_path / "names.txt").write_text("\n".join(NAMES[:4]))
    words = ["--label", "txt", "--classes", tmp_path / "names.txt"]
    assert "'k4.txt' holds the class 'cyan', which the class list lacks" in refused(
        tmp_path / "a.tar", tmp_path / "o", *words
    )


def test_labels_that_count_from_one_are_told_with_a_class_list_too(tmp_path):
    write(tmp_path / "a.tar", [{"__key__": f"k{n}", "jpg": image(n), "cls": n + 1} for n in range(5)])
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    assert "Do these labels count from 1?" in refused(
        tmp_path / "a.tar", tmp_path / "out", "--classes", tmp_path / "names.txt"
    )


def test_keys_with_dots(tmp_path):
    """By WebDataset's rule all of it is one sample; --image and --label say where a key ends."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n in range(80):
            for name, content in ((f"n0.{n}_v1.5.jpg", image(n % 10)), (f"n0.{n}_v1.5.cls", str(n % 5).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    told = refused(tmp_path / "a.tar", tmp_path / "out")
    assert "and 154 more files" in told
    assert "--image jpg --label cls" in told
    pack(tmp_path / "a.tar", tmp_path / "out", "--image", "jpg", "--label", "cls")
    assert check_colours(tmp_path / "out" / "train", 80).key_of(79) == "n0.79_v1.5"


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        ({"jpg": b"", "json": {"label": 3}}, "--image jpg --label json:label"),
        ({"image.jpg": b"", "cls": 1}, "--image image.jpg --label cls"),
        ({"img": b"", "label": b"3"}, "--image img --label label"),
        ({"jpg": b"", "txt": "cat"}, "--image jpg --label txt"),
        ({"jpg": b"", "txt": "a cat on a mat, a long caption of it", "json": {"url": "u"}}, "one with --label"),
        ({"mp3": b"ID3", "cls": 1}, "No file of it is an image"),
        ({"jpg": b"", "json": {"label": 3}, "cls": 1.5}, "'k.cls' holds '1.5', not a decimal class number"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_the_options_that_help(tmp_path, sample, told):
    sample = {name: image(0) if content == b"" else content for name, content in sample.items()}
    write(tmp_path / "a.tar", [{"__key__": "k", **sample} if "cls" not in sample else {"__key__": "k", **raw(sample)}])
    assert told in refused(tmp_path / "a.tar", tmp_path / "out")


def raw(sample: dict) -> dict:
    """webdataset writes only whole numbers as .cls."""
    return {name: str(value).encode() if name == "cls" else value for name, value in sample.items()}


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("json:clas", "'k.json' has no field clas, only class"),
        ("json:class.id", "'k.json' has no field class.id, only 'cat'"),
        ("json", "'k.json' holds JSON. Name the field of it: --label json:FIELD, of class, list, flag"),
        ("jpg:x", "is no JSON"),
        ("json:list", "holds [1, 2], neither a class number nor a class name"),
        ("json:flag", "holds True, neither"),
    ],
)
def test_a_wrong_label_field_is_named(tmp_path, label, told):
    facts = {"class": "cat", "list": [1, 2], "flag": True} if "clas" not in label else {"class": "cat"}
    samples = [
        {"__key__": "k", "jpg": image(0), "json": facts},
        {"__key__": "l", "jpg": image(1), "json": {"class": 1}},
    ]
    write(tmp_path / "a.tar", samples)
    assert told in refused(tmp_path / "a.tar", tmp_path / "out", "--label", label)


def test_names_beside_numbers_are_refused(tmp_path):
    write(tmp_path / "a.tar", [{"__key__": f"k{n}", "jpg": image(n), "txt": x} for n, x in enumerate(("cat", "1"))])
    assert "some labels are names ('cat'), others numbers (1)" in refused(
        tmp_path / "a.tar", tmp_path / "out", "--label", "txt"
    )


@pytest.mark.parametrize(
    ("ending", "squeeze"), [("tar.gz", gzip.compress), ("tgz", gzip.compress), ("tar.xz", lzma.compress)]
)
def test_compressed_shards_are_unpacked_into_the_set(tmp_path, ending, squeeze):
    for k in range(2):
        samples = [{"__key__": f"{k}{n}", "jpg": image(n), "cls": n % 5} for n in range(5)]
        plain = write(tmp_path / "plain" / f"{k}.tar", samples)
        (tmp_path / f"train-{k}.{ending}").write_bytes(squeeze(plain.read_bytes()))
    pack(tmp_path / f"train-{{0..1}}.{ending}", tmp_path / "out")
    check_colours(tmp_path / "out" / "train", 10)
    tars = sorted((tmp_path / "out" / "train").glob("*.tar"))
    assert [tar.read_bytes() for tar in tars] == [(tmp_path / "plain" / f"{k}.tar").read_bytes() for k in range(2)]
    assert lint.main([str(tmp_path / "out" / "train"), "--workers", "1"]) == lint.CLEAN
    (tmp_path / f"train-1.{ending}").write_bytes(squeeze(plain.read_bytes())[:-40])
    assert "train-1" in (told := refused(tmp_path / f"train-1.{ending}", tmp_path / "o"))
    assert "is damaged" in told
    (tmp_path / "train-0.tar").write_bytes(plain.read_bytes())  # beside a compressed one
    (tmp_path / f"train-1.{ending}").write_bytes(squeeze((tmp_path / "plain" / "0.tar").read_bytes()))
    (tmp_path / f"train-0.{ending}").unlink()
    pack(tmp_path / "train-*.t*", tmp_path / "mixed")
    check_colours(tmp_path / "mixed" / "train", 10)


def test_dotted_keys_with_other_files(tmp_path):
    """A caption before the image, one behind it, and files of no sample."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n in range(10):
            files = {"caption": b"c", "jpg": image(n), "json": json.dumps({"label": n % 5}).encode(), "txt": b"t"}
            for extension, content in files.items():
                member = tarfile.TarInfo(f"a.{n}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        tar.addfile(tarfile.TarInfo("README.md"))
    pack(tmp_path / "a.tar", tmp_path / "out", "--image", "jpg", "--label", "json:label")
    assert check_colours(tmp_path / "out" / "train", 10).key_of(9) == "a.9"
    assert lint.main([str(tmp_path / "out" / "train"), "--workers", "1"]) == lint.CLEAN


def test_the_fields_of_a_long_json_are_listed(tmp_path):
    facts = {"caption": 80 * "x", "url": "https://host/1.jpg", "species": "cat"}
    write(tmp_path / "a.tar", [{"__key__": "k", "jpg": image(0), "json": facts, "txt": 80 * "x"}])
    told = refused(tmp_path / "a.tar", tmp_path / "out")
    assert ".json (fields caption, url, species)" in told
    assert "--label json:FIELD" in told
    told = refused(tmp_path / "a.tar", tmp_path / "out", "--label", "json:label")
    assert "has no field label, only caption, url, species" in told
    assert "launch.lint" not in told  # which would know no layout


def test_what_a_sample_holds_is_shown_in_its_script(tmp_path):
    write(tmp_path / "a.tar", [{"__key__": "k", "jpg": image(0), "json": {"кто": "кот"}}])
    assert '.json {"кто": "кот"}' in refused(tmp_path / "a.tar", tmp_path / "out")


def test_a_pattern_that_the_shell_expanded_is_told(tmp_path):
    """The command that is offered is the one that was meant."""
    for name in ("b 1.tar", "b 2.tar"):
        write(tmp_path / name, [{"__key__": name[:3], "jpg": image(0), "cls": 0}])
    told = refused(*sorted(tmp_path.glob("*.tar")), tmp_path / "out", "--label", "cls")
    assert told.startswith("error: 2 words before OUT, and SOURCE is one. If the shell expanded a pattern, quote it: ")
    offered = shlex.split(told)[-6:-2]  # then --workers 1
    assert offered == [f"{tmp_path}/b *.tar", f"{tmp_path}/out", "--label", "cls"]
    pack(*offered)
    assert len(index.load(tmp_path / "out" / "train")) == 2
    write(tmp_path / "b 3.tar", [{"__key__": "k", "jpg": image(0), "cls": 0}])  # which was not meant
    told = refused(tmp_path / "b 1.tar", tmp_path / "b 2.tar", tmp_path / "other")
    assert told.endswith(
        f"quote it: '{tmp_path}/train-{{0000..0007}}.tar', for example, or give a folder of these alone\n"
    )


def test_what_macos_adds_to_a_tar_is_no_member(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n in range(3):
            for name, content in ((f"a{n}.jpg", image(n)), (f"a{n}.txt", str(n).encode())):
                for member, held in ((f"._{name}", b"mac"), (name, content)):
                    info = tarfile.TarInfo(member)
                    info.size = len(held)
                    tar.addfile(info, io.BytesIO(held))
    pack(tmp_path / "a.tar", tmp_path / "out", "--label", "txt")
    assert len(index.load(tmp_path / "out" / "train")) == 3


def test_numbers_and_texts_mean_the_same_class(tmp_path):
    """Where classes are called by numbers, as COCO's are."""
    (tmp_path / "names.txt").write_text("7\n3\n5\n")
    for name, kind in (("numbers", int), ("texts", str)):
        samples = [
            {"__key__": f"k{n}", "jpg": image(n), "json": {"label": kind(label)}} for n, label in enumerate((3, 7))
        ]
        write(tmp_path / f"{name}.tar", samples)
        words = ["--label", "json:label", "--classes", tmp_path / "names.txt"]
        pack(tmp_path / f"{name}.tar", tmp_path / name, *words)
        assert index.load(tmp_path / name / "train").label.tolist() == [1, 0]


def test_deep_json_is_no_traceback(tmp_path):
    write(tmp_path / "a.tar", [{"__key__": "k", "jpg": image(0), "json": 200_000 * b'{"label":'}])
    assert "'k.json' is no JSON" in refused(tmp_path / "a.tar", tmp_path / "out", "--label", "json:label")


@pytest.mark.parametrize("folders", [True, False])
def test_links_in_a_tar_are_named(tmp_path, folders):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("cat/1", "dog/2"):
            for extension, content in (("jpg", image(0)), *(() if folders else (("cls", b"0"),))):
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("dog/3.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "cat/1.jpg"
        tar.addfile(link)
    assert "'dog/3.jpg' is a link to 'cat/1.jpg'. Make" in refused(tmp_path / "a.tar", tmp_path / "out")


def test_a_shard_that_is_a_dangling_link(tmp_path):
    (tmp_path / "s").mkdir()
    write(tmp_path / "s" / "a.tar", [{"__key__": "k", "jpg": image(0), "cls": 0}])
    (tmp_path / "s" / "b.tar").symlink_to("/nowhere/b.tar")
    for source in (tmp_path / "s", tmp_path / "s" / "*.tar"):
        assert "b.tar is a link to /nowhere/b.tar, which is not there" in refused(source, tmp_path / "out")


def test_shards_without_a_member(tmp_path):
    tarfile.open(tmp_path / "a.tar", "w").close()
    assert f"the set 'train' has no image: there is none in {tmp_path}" in refused(tmp_path / "a.tar", tmp_path / "out")


def test_a_shard_that_braces_name_must_be_there(tmp_path):
    write(tmp_path / "s-0.tar", [{"__key__": "k", "jpg": image(0), "cls": 0}])
    assert f"{tmp_path}/s-1.tar does not exist" in refused(tmp_path / "s-{0..2}.tar", tmp_path / "out")


@pytest.mark.parametrize("top", ["", "set/"])
def test_tars_of_class_folders(tmp_path, top):
    """With sets in them and a folder around all; files beside the folders are left aside."""
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for n in range(20):
            member = tarfile.TarInfo(f"{top}{'train' if n < 15 else 'val'}/{NAMES[n % 5]}/{n}.jpg")
            member.size = len(image(n))
            tar.addfile(member, io.BytesIO(image(n)))
        tar.addfile(tarfile.TarInfo(f"{top}README.md"))
    said = pack(tmp_path / "photos.tar", tmp_path / "out")
    assert "tars of class folders (train 15 files, validation 5 files)" in said
    check_colours(tmp_path / "out" / "train", 15, NAMES)
    check_colours(tmp_path / "out" / "validation", 5, NAMES)
    packed = gzip.compress((tmp_path / "photos.tar").read_bytes())
    (tmp_path / "photos.tar.gz").write_bytes(packed)
    assert "Unpack it and pack the folder" in refused(tmp_path / "photos.tar.gz", tmp_path / "o")


def test_a_class_called_train_and_a_member_that_comes_twice(tmp_path):
    """The later one counts, as for tar; hidden files of macOS are none."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, number in (
            ("train/1.jpg", 3),
            ("bus/2.jpg", 1),
            ("._bus/x.jpg", 1),
            ("bus/._2.jpg", 1),
            ("train/1.jpg", 0),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(image(number))
            tar.addfile(member, io.BytesIO(image(number)))
    pack(tmp_path / "a.tar", tmp_path / "out")
    found = index.load(tmp_path / "out" / "train")
    assert found.classes == ("bus", "train")
    pixels = [np.asarray(Image.open(io.BytesIO(bytes(Reader(found).read(np.array([row]))[0])))) for row in range(2)]
    seen = {
        found.label[row]: int(np.abs(COLOURS - pixels[row].mean(axis=(0, 1))).sum(axis=1).argmin()) for row in range(2)
    }
    assert seen == {0: 1, 1: 0}


def test_a_label_that_is_no_text_is_shown(tmp_path):
    write(tmp_path / "a.tar", [{"__key__": "k", "jpg": image(0), "label": b"\xff\x00"}])
    assert r"'k.label' holds b'\xff\x00', which is no text" in refused(
        tmp_path / "a.tar", tmp_path / "o", "--label", "label"
    )


def test_options_of_shards_are_refused_for_folders(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.jpg").write_bytes(image(0))
    assert "are for WebDataset shards" in refused(tmp_path / "photos", tmp_path / "out", "--label", "txt")
    assert "give extensions without the dot" in refused(tmp_path / "photos", tmp_path / "out", "--image", "jpg,,png")
