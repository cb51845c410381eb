"""What lint finds: each fault in a small real set, by kind, shard and key, and what it writes about them."""

import base64
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from html import escape
from pathlib import Path

import numpy as np
import pytest
from conftest import jpeg, photo, refused, write_tar
from PIL import Image

from launch import lint as command
from launch import pack, progress
from launch.command import run
from pipeline import hints
from pipeline.data import index, quarantine
from pipeline.linting import balance, pixels, repeats
from pipeline.linting import lint as linting
from pipeline.linting.examine import Job, work
from pipeline.linting.findings import KINDS, Findings
from pipeline.packing import indexing
from pipeline.packing.scan import scan_shard

ROOT = Path(__file__).parents[2]


def _encode(number: int, file_format: str, mode: str = "RGB", size: tuple[int, int] = (50, 60), **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photo(number, 0, *size)).convert(mode).save(stream, file_format, **options)
    return stream.getvalue()


def _good(number: int, label: int = 0) -> bytes:
    return jpeg(photo(number, label, 50, 60))


def _sample(key: str, image: bytes, label: object = 0, extension: str = "jpg") -> list[tuple[str, bytes]]:
    return [(f"{key}.{extension}", image), (f"{key}.cls", str(label).encode())]


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(photo(20, 0, 50, 60), exif=exif.tobytes())


def _sixteen_bit() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photo(21, 0, 50, 60)[:, :, 0].astype(np.uint16) * 257).save(stream, "PNG")
    return stream.getvalue()


def _frames(number: int, file_format: str) -> bytes:
    second = Image.fromarray(photo(number + 1, 1, 50, 60))
    return _encode(number, file_format, save_all=True, append_images=[second])


def _huge() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (6500, 6200), 90).save(stream, "JPEG")
    return stream.getvalue()


# key -> the sample's files, and the kinds that lint must find for it
SAMPLES = {
    "good": (_sample("good", _good(1), 0), []),
    "cut": (_sample("cut", _encode(2, "JPEG", size=(200, 200))[:-900], 1), ["undecodable"]),
    "garbage": (_sample("garbage", b"no image", 1), ["undecodable"]),
    "no_label": ([("no_label.jpg", _good(3))], ["missing"]),
    "no_image": ([("no_image.cls", b"1")], ["missing"]),
    "word": (_sample("word", _good(4), "cat"), ["label"]),
    "negative": (_sample("negative", _good(5), -3), ["label"]),
    "png": (_sample("png", _encode(6, "PNG"), 1), ["wrong_name"]),
    "gif": (_sample("gif", _encode(7, "GIF"), 1, "png"), ["by_pillow", "wrong_name"]),
    "cmyk": (_sample("cmyk", _encode(8, "JPEG", "CMYK"), 1), ["cmyk", "by_pillow"]),
    "grey": (_sample("grey", _encode(9, "JPEG", "L"), 1), ["grayscale"]),
    "sixteen": (_sample("sixteen", _sixteen_bit(), 1, "png"), ["sixteen_bit", "grayscale", "by_pillow"]),
    "film": (_sample("film", _frames(10, "WEBP"), 1, "webp"), ["animated"]),
    "phone": (_sample("phone", _frames(12, "MPO"), 1), []),
    "exif": (_sample("exif", _rotated(), 1), ["rotated"]),
    "exif_png": (_sample("exif_png", _encode(13, "PNG", exif=b"Exif\0\0" + b"MM\0*\0\0\0\x08\0\0"), 1, "png"), []),
    "tiny": (_sample("tiny", jpeg(photo(14, 0, 50, 31)), 1), ["tiny"]),
    "huge": (_sample("huge", _huge(), 1), ["huge", "constant", "grayscale"]),
    "twin": (_sample("twin", _good(1), 0), ["duplicate_image"]),
    "rival": (_sample("rival", _good(1), 3), ["two_labels"]),
    "<b>&": (_sample("<b>&", _encode(15, "JPEG", "L"), 3), ["grayscale"]),
}


def _found(report: dict) -> set[tuple[str, str, str]]:
    return {(finding["kind"], finding["shard"], finding["key"]) for finding in report["findings"]}


def _read(folder: Path) -> dict:
    return json.loads((folder / linting.JSON).read_text())


def _examined(tmp_path: Path, members: list[tuple[str, bytes]], **job) -> dict:
    """The record of one shard, examined in this process."""
    tar = tmp_path / "one.tar"
    write_tar(tar, members)
    work(Job(tar, "one.tar", 10, True, tmp_path / "record", **job))
    return json.loads((tmp_path / "record.json").read_text())


def _packed(folder: Path, names: list[str]) -> None:
    """Index the tars of a folder, as launch.pack would."""
    indexing.write(folder, [scan_shard(path) for path in sorted(folder.glob("*.tar"))], names)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Path:
    """Tars without an index, with one of each fault."""
    folder = tmp_path_factory.mktemp("faulty")
    write_tar(folder / "a.tar", [member for members, _ in SAMPLES.values() for member in members])
    others = [member for number in range(6) for member in _sample(f"b{number}", _good(100 + number), 3)]
    write_tar(folder / "b.tar", [*_sample("good", _good(30), 3), *others, *_sample("b0", _good(31), 3)])
    for number, name in enumerate(("cut.tar", "damaged.tar", "unended.tar")):
        images = {f"{name[0]}{i}": _good(200 + 10 * number + i) for i in range(4)}
        write_tar(folder / name, [member for key, image in images.items() for member in _sample(key, image, 3)])
    whole = (folder / "cut.tar").read_bytes()
    (folder / "cut.tar").write_bytes(whole[: whole.index(b"c2.jpg") + 700])
    whole = (folder / "damaged.tar").read_bytes()
    third = whole.index(b"d2.jpg")
    (folder / "damaged.tar").write_bytes(whole[:third] + b"\x07" * 512 + whole[third + 512 :])
    unended = (folder / "unended.tar").read_bytes().rstrip(b"\0")
    (folder / "unended.tar").write_bytes(unended + bytes(-len(unended) % 512))
    write_tar(folder / "empty.tar", [("readme", b"")])
    write_tar(folder / "name.tar", [("\x07.jpg", b""), *_sample("n", _good(40), 3)])
    return folder


@pytest.fixture(scope="module")
def linted(faulty, tmp_path_factory) -> tuple[Path, int, str]:
    """The results' folder, exit code and console of lint over the faulty tars, with two workers."""
    out = tmp_path_factory.mktemp("out") / "new"
    words = [sys.executable, "-m", "launch.lint", str(faulty), "--out", str(out), "--workers", "2"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""  # neither tracebacks nor the decoder's own lines
    return out, done.returncode, done.stdout


def test_every_fault_is_found_by_kind_shard_and_key(linted):
    expected = {(kind, "a.tar", key) for key, (_, kinds) in SAMPLES.items() for kind in kinds}
    expected |= {
        ("duplicate_key", "b.tar", "good"),  # in a.tar too
        ("duplicate_key", "b.tar", "b0"),
        ("truncated", "cut.tar", ""),
        ("truncated", "damaged.tar", ""),
        ("no_end", "unended.tar", ""),
        ("empty_shard", "empty.tar", ""),
        ("name", "name.tar", ""),
        ("empty_class", "", ""),  # 2
    }
    report = _read(linted[0])
    assert _found(report) == expected
    for kind, facts in report["kinds"].items():
        of_kind = [finding for finding in report["findings"] if finding["kind"] == kind]
        assert facts["count"] == facts["listed"] == len(of_kind)
        assert facts["severity"] == KINDS[kind].severity


def test_the_json_counts_what_is_there(linted):
    report = _read(linted[0])
    assert report["version"] == linting.VERSION
    assert report["verdict"] == "errors"
    assert report["num_shards"] == 7
    assert report["num_images"] - report["num_decodable"] == 1  # whose header was read, cut
    assert report["formats"]["MPO"] == 1
    assert sum(report["formats"].values()) == report["num_images"]
    assert sum(bar["count"] for bar in report["sizes"]["short_side"]) == report["num_images"]
    assert report["sizes"]["extremes"]["smallest"]["key"] == "tiny"
    assert report["sizes"]["extremes"]["largest"]["key"] == "huge"
    assert report["classes"]["num_classes"] == 4
    assert report["classes"]["num_empty"] == 1
    assert [one["label"] for one in report["classes"]["counts"]] == [0, 1, 3]
    assert report["quarantine"] == {"undecodable": 2, "stale": 0}


def test_what_cannot_be_decoded_is_quarantined(linted):
    entries = quarantine.read(linted[0] / index.QUARANTINE)
    assert {entry[:2] for entry in entries} == {("a.tar", "cut"), ("a.tar", "garbage")}
    assert all(entry.reason for entry in entries)


def test_the_console_says_verdict_examples_page_and_next_action(linted):
    _, code, said = linted
    assert code == command.ERRORS
    assert "NOT CLEAN: " in said
    assert "images/s" in said
    assert "a.tar: sample 'garbage': " in said
    assert "has new rows, of images that cannot be decoded: 2" in said
    assert f"page: {linted[0] / linting.PAGE}" in said
    assert said.splitlines()[-1] == f"next: {KINDS['truncated'].action}"


def test_the_page_escapes_names_and_needs_nothing_else(linted):
    page = (linted[0] / linting.PAGE).read_text()
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page
    assert "NOT CLEAN" in page
    assert "prefers-color-scheme" in page
    assert not re.search(r"<script|https?://|src=(?!\"data:image/jpeg;base64,)", page)
    assert all(escape(KINDS[kind].title) in page for kind in _read(linted[0])["kinds"])


def test_any_number_of_workers_and_any_run_give_the_same_files(linted, faulty):
    out, code, _ = linted
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == {linting.JSON, linting.PAGE, index.QUARANTINE}
    assert command.main([str(faulty), "--out", str(out), "--workers", "1"]) == code
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_clean_set_is_clean(make_set, capsys):
    folder = make_set("clean", 12)
    assert command.main([str(folder), "--workers", "1"]) == command.CLEAN
    report = _read(folder)
    assert report["verdict"] == "clean"
    assert report["findings"] == []
    assert report["classes"]["largest"] == {"label": 0, "name": "class-0", "count": 3}
    assert not (folder / index.QUARANTINE).exists()
    said = capsys.readouterr().out
    assert "CLEAN: 0 errors, 0 warnings in 12 images of 3 shards" in said
    assert f"next: score on it: {hints.command('launch.evaluate', 'RUN', '--data', folder)}" in said  # of no set's name


def test_a_packed_set_is_held_against_its_index(make_set):
    folder = make_set("changed", 12, num_shards=4)
    first, second, third, _ = sorted(folder.glob("*.tar"))
    first.unlink()
    write_tar(second, _sample("new", _good(50), 5))  # other bytes, and outside of the class list
    content = bytearray(third.read_bytes())
    content[-1] = 1  # the same size
    third.write_bytes(content)
    column = folder / "index" / "height.npy"
    column.write_bytes(column.read_bytes()[:-1] + b"\1")
    assert command.main([str(folder), "--workers", "1"]) == command.ERRORS
    found = _found(_read(folder))
    assert found >= {
        ("missing_shard", first.name, ""),
        ("changed_shard", second.name, ""),
        ("label", second.name, "new"),
        ("changed_shard", third.name, ""),
        ("index", "", ""),
    }
    assert {kind for kind, *_ in found} == {"missing_shard", "changed_shard", "label", "index", "no_end"}


def test_stale_entries_are_told_and_forgotten_on_demand(tmp_path, capsys):
    tars, home = tmp_path / "tars", tmp_path / "set"
    tars.mkdir()
    write_tar(tars / "x.tar", [*_sample("bad", _good(60)[:-300], 0), *_sample("good", _good(61), 0)])
    scanned = [scan_shard(path) for path in sorted(tars.glob("*.tar"))]
    indexing.write(home, scanned, ["cat"], shards_root="../tars")  # an index beside its shards
    old = [("x.tar", "good", "a disk error"), ("gone.tar", "k", "cut"), ("x.tar", "bad", "kept as it is")]
    quarantine.add(home / index.QUARANTINE, [quarantine.Entry(*entry) for entry in old])
    assert command.main([str(home), "--workers", "1"]) == command.ERRORS
    assert {found for found in _found(_read(home)) if found[0] == "stale_quarantine"} == {
        ("stale_quarantine", "x.tar", "good"),
        ("stale_quarantine", "gone.tar", "k"),
    }
    assert len(quarantine.read(home / index.QUARANTINE)) == 3
    assert command.main([str(home), "--workers", "1", "--forget"]) == command.ERRORS
    assert "lost rows, of images that are fine now: 2" in capsys.readouterr().out
    assert quarantine.read(home / index.QUARANTINE) == [quarantine.Entry(*old[2])]
    assert not any(kind == "stale_quarantine" for kind, *_ in _found(_read(home)))

    write_tar(tars / "x.tar", [*_sample("bad", _good(62), 0), *_sample("good", _good(61), 0)])  # mended
    indexing.write(home, [scan_shard(tars / "x.tar")], ["cat"], shards_root="../tars")
    assert command.main([str(home), "--workers", "1", "--forget"]) == command.CLEAN
    assert quarantine.read(home / index.QUARANTINE) == []


def test_entries_of_tars_that_were_not_looked_at_stay(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", _sample("x", _good(60)[:-300]))
    write_tar(tmp_path / "b.tar", _sample("x", _good(61)))
    write_tar(tmp_path / "cut.tar", _sample("x", _good(61)))
    path = tmp_path / index.QUARANTINE
    assert command.main([str(tmp_path / "a.tar"), "--workers", "1"]) == command.ERRORS
    entries = quarantine.read(path)
    assert [entry[:2] for entry in entries] == [("a.tar", "x")]
    assert command.main([str(tmp_path / "b.tar"), "--workers", "1"]) == command.CLEAN
    assert "fine now" not in capsys.readouterr().out
    quarantine.add(path, [quarantine.Entry("b.tar", "x", "then"), quarantine.Entry("cut.tar", "y", "then")])
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:700])  # y may have been behind the cut
    assert command.main([str(tmp_path / "b.tar"), "--workers", "1", "--forget"]) == command.CLEAN
    assert command.main([str(tmp_path / "cut.tar"), "--workers", "1", "--forget"]) == command.ERRORS
    assert [entry[:2] for entry in quarantine.read(path)] == [("a.tar", "x"), ("cut.tar", "y")]


def test_results_elsewhere_leave_the_set_alone(make_set, tmp_path, capsys):
    folder = make_set("bad", 6, num_shards=1)
    write_tar(folder / "shard-000000.tar", _sample("bad", _good(63)[:-300], 0))
    _packed(folder, ["cat"])
    before = sorted(folder.rglob("*"))
    assert command.main([str(folder), "--workers", "1", "--out", str(tmp_path / "a" / "b")]) == command.ERRORS
    assert sorted(folder.rglob("*")) == before
    assert "copy it there" in capsys.readouterr().out
    assert quarantine.read(tmp_path / "a" / "b" / index.QUARANTINE)[0][:2] == ("shard-000000.tar", "bad")


def test_a_glob_of_tars_leaves_its_results_beside_them(tmp_path, capsys):
    for name in ("wds-0.tar", "wds-1.tar", "other.tar"):
        write_tar(tmp_path / name, _sample(name[:5], _good(len(name) + ord(name[4])), 0))
    assert command.main([str(tmp_path / "wds-*.tar"), "--workers", "1"]) == command.CLEAN
    assert _read(tmp_path)["num_images"] == 2
    assert "launch.pack" in capsys.readouterr().out.splitlines()[-1]


def test_a_raw_set(tmp_path):
    pixels = {"flat": np.full((40, 40, 3), 7, np.uint8), "grey": photo(70, 0, 40, 40)[:, :, 0]}
    pixels |= {"float": np.zeros((40, 40, 3), np.float32), "good": photo(71, 0, 40, 40)}
    members = []
    for key, array in pixels.items():
        stream = io.BytesIO()
        np.save(stream, array)
        members += _sample(key, stream.getvalue(), 0, "npy")
    record = _examined(tmp_path, [*members, *_sample("photo", _good(72), 0)])
    found = {(kind, key) for kind, _, key, _ in record["findings"]}
    assert found == {
        ("constant", "flat"), ("undecodable", "grey"), ("undecodable", "float"), ("mixed", "photo")
    }  # fmt: skip
    reasons = {key: reason for key, reason, _ in record["quarantine"]}
    assert "float32 [40, 40, 3], not uint8" in reasons["float"]
    assert record["formats"] == [["raw", 2]]


def test_a_batch_with_bad_images_names_each_of_them_alone(tmp_path):
    members = []
    for number in range(40):
        image = _good(300 + number)
        members += _sample(f"k{number}", image[:-200] if number in (3, 17, 18, 39) else image, 0)
    record = _examined(tmp_path, members)
    assert [key for key, *_ in record["quarantine"]] == ["k3", "k17", "k18", "k39"]
    assert record["num_images"] - record["num_decodable"] == 4


def test_an_image_that_pillow_shows_otherwise_is_a_finding(tmp_path, monkeypatch):
    """No such kind is known, or it would be left to Pillow: here Pillow is another program."""
    usual = pixels.pixels
    monkeypatch.setattr(pixels, "pixels", lambda encoded: usual(encoded) ^ (encoded == _good(2)))
    record = _examined(tmp_path, [*_sample("same", _good(1)), *_sample("other", _good(2))])
    told = "sample 'other' differs in training from what Pillow shows, by up to 1 of 255 levels"
    assert record["findings"] == [["decoders_differ", "one.tar", "other", told]]


def test_a_shard_that_cannot_be_opened_is_a_finding(tmp_path):
    (tmp_path / "folder.tar").mkdir()
    work(Job(tmp_path / "folder.tar", "folder.tar", 1, True, tmp_path / "record"))
    record = json.loads((tmp_path / "record.json").read_text())
    assert [finding[0] for finding in record["findings"]] == ["unreadable"]
    assert not record["is_whole"]


def test_many_findings_are_counted_and_the_first_listed():
    findings = Findings(listed=3)
    for number in range(10):
        findings.add("tiny", "s", f"k{number}", "")
    assert findings.counts["tiny"] == 10
    assert [finding.key for finding in findings] == ["k0", "k1", "k2"]


def test_classes_far_apart_and_a_wild_label():
    findings = Findings()
    counted = balance.balance({0: 100, 1: 5, 999_999: 1}, None, findings)
    assert findings.counts == {"label": 1, "imbalance": 1}
    assert "the largest label is 999999, but there are only 106 images" in findings.of("label")[0].message
    assert counted["num_empty"] == 0
    assert counted["smallest"]["label"] == 999_999


def test_equal_digests_are_grouped_in_order():
    digests = np.array([1, 2, 1, 3, 2, 1], np.uint64)
    assert list(repeats._groups(digests, np.arange(6))) == [[0, 2, 5], [1, 4]]
    assert list(repeats._groups(digests, np.array([0, 1, 3]))) == []
    assert list(repeats._groups(digests[:0], np.arange(0))) == []


def test_plain_progress_is_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_LINE_EVERY_S", 0.0)
    with progress.meter(100, 0, "images", "linting") as update:
        update(25)
    assert re.match(r"25 of 100 images, [\d,]+ images/s, [\d.]+ min left\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("prepare", "words", "told"),
    [
        (lambda folder: None, ["https://host/set"], "before uploading"),
        (lambda folder: None, ["nowhere"], "does not exist"),
        (lambda folder: None, ["*.tar"], "matches no file"),
        (lambda folder: (folder / "cat").mkdir() or (folder / "cat/1.jpg").write_bytes(_good(0)), ["."], "launch.pack"),
        (lambda folder: write_tar(folder / "a.tar", []), ["a.tar", "*.tar"], "Lint one at a time"),
        (lambda folder: [write_tar(folder / f"{name}-0.tar", []) for name in ("train", "val")], ["."], "*train*.tar"),
        (lambda folder: write_tar(folder / "a.tar", []), [".", "--workers", "0"], "--workers 0"),
        (lambda folder: write_tar(folder / "a.tar", []), [".", "--out", "a.tar"], "--out FOLDER"),
    ],
)
def test_a_mistake_is_refused_by_name(tmp_path, monkeypatch, capsys, prepare, words, told):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(lambda: command.main(words)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert told in said


def test_sets_say_what_they_share_and_their_samples_are_shown(tmp_path, capsys):
    """Of four images of validation two are in training, one of them under another label. `.` means both sets."""
    train, validation = [_good(number) for number in range(6)], [_good(4), _good(10), _good(1), _good(11)]
    for name, images, labels in (("train", train, (0, 1, 2, 0, 1, 2)), ("validation", validation, (1, 0, 2, 1))):
        pairs = enumerate(zip(images, labels, strict=True))
        samples = [_sample(f"{name[0]}{number}", image, label) for number, (image, label) in pairs]
        write_tar(tmp_path / f"{name}-0.tar", [file for sample in samples for file in sample])
    (tmp_path / "names.txt").write_text("cat\nköpek\n<b>\n")
    sets, names = tmp_path / "sets", tmp_path / "names.txt"
    assert pack.main([str(tmp_path / "*.tar"), str(sets), "--classes", str(names), "--workers", "1"]) == 0
    capsys.readouterr()
    assert command.main([str(sets), "--workers", "1"]) == command.CLEAN
    said = capsys.readouterr().out
    assert said.startswith("10 images in ")
    shared = [finding for finding in _read(sets / "validation")["findings"] if finding["kind"] == "shared_image"]
    assert [(finding["shard"], finding["key"]) for finding in shared] == [
        ("validation-0.tar", "v0"),
        ("validation-0.tar", "v2"),
    ]
    assert shared[1]["message"] == (
        f"sample 'v2' (label 2 ('<b>')) is the same image as 't1' (label 1 ('köpek')) "
        f"in train-0.tar of {sets / 'train'}"
    )
    page = (sets / "validation" / linting.PAGE).read_text()
    assert "<small>label 1 (&#x27;köpek&#x27;)</small>" in page
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 2
    small = Image.open(io.BytesIO(base64.b64decode(pictures[0])))
    original = Image.open(io.BytesIO(_good(4))).resize(small.size, Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(small, np.int16) - np.asarray(original, np.int16)).mean() < 5


def test_a_set_whose_shards_are_remote_is_refused(make_set):
    folder = make_set("remote", 5, num_shards=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"shards_root": "https://host/set"}))
    words = [sys.executable, "-m", "launch.lint", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "before uploading" in refused(done)


def test_no_samples_is_an_error(tmp_path):
    write_tar(tmp_path / "a.tar", [("readme", b"")])
    assert command.main([str(tmp_path), "--workers", "1"]) == command.ERRORS
    assert _found(_read(tmp_path)) == {("no_samples", "", ""), ("empty_shard", "a.tar", "")}


def test_ctrl_c_shows_a_bar_before_and_leaves_nothing(tmp_path):
    tars, temporary = tmp_path / "tars", tmp_path / "tmp"
    tars.mkdir()
    temporary.mkdir()
    image = jpeg(photo(80, 0, 1500, 1500))
    write_tar(tars / "0.tar", [member for number in range(40) for member in _sample(f"{number}", image)])
    for number in range(1, 60):
        os.link(tars / "0.tar", tars / f"{number}.tar")
    before = sorted(tars.iterdir())
    screen, terminal = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "launch.lint", str(tars), "--workers", "2"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary), "TERM": "xterm", "COLUMNS": "120"},
        stdout=terminal,
        stderr=subprocess.PIPE,
    )
    os.close(terminal)
    seen = ""
    while not re.search(r"linting .*[1-9]\d*/\d+", seen):
        seen += os.read(screen, 4096).decode(errors="replace")
    running.send_signal(signal.SIGINT)
    while running.poll() is None:  # drains the screen, whose buffer would fill
        try:
            os.read(screen, 4096)
        except OSError:
            break
    assert running.wait(20) == 128 + signal.SIGINT
    assert "MB/s" in seen
    assert running.stderr.read() == b"interrupted: run the same command again, it starts afresh\n"
    assert sorted(tars.iterdir()) == before
    assert list(temporary.iterdir()) == []
    os.close(screen)
    running.stderr.close()
