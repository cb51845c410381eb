"""The index finds every sample, and names what is wrong with a shard."""

import io
import json
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch import pack
from pipeline.data import index
from pipeline.errors import UserError
from pipeline.packing import indexing
from pipeline.packing.scan import scan_shard
from tests.conftest import jpeg, photo, write_tar

JPEG = jpeg(photo(0, 0, 40, 60))


def test_rows_point_at_the_encoded_images_and_their_labels(photos):
    loaded = index.load(photos)
    assert loaded.num_samples == len(loaded) == 50
    assert loaded.classes == tuple(f"class-{label}" for label in range(5))
    for sample in range(50):
        with tarfile.open(loaded.location(loaded.shard[sample])) as tar:
            encoded = tar.extractfile(loaded.key_of(sample) + ".jpg").read()
            label = int(tar.extractfile(loaded.key_of(sample) + ".cls").read())
        raw = Path(loaded.location(loaded.shard[sample])).read_bytes()
        assert raw[loaded.offset[sample] :][: loaded.size[sample]] == encoded
        assert loaded.label[sample] == label
        assert (loaded.width[sample], loaded.height[sample]) == Image.open(io.BytesIO(encoded)).size


def test_columns_are_memory_mapped(photos):
    assert isinstance(index.load(photos).offset, np.memmap)


def test_fingerprint_follows_the_bytes_of_the_shards(make_set):
    first, same, other = make_set("a", 10), make_set("b", 10), make_set("c", 10, seed=1)
    assert index.load(first).fingerprint == index.load(same).fingerprint != index.load(other).fingerprint


def test_fingerprint_follows_what_is_read_as_the_label(tmp_path):
    """Of the same shards: a run must not go on upon other labels."""
    members = []
    for n in range(4):
        members += [(f"k{n}.jpg", JPEG), (f"k{n}.json", json.dumps({"coarse": n % 2, "fine": n}).encode())]
    write_tar(tmp_path / "s.tar", members)
    for field in ("coarse", "fine"):
        assert pack.main([str(tmp_path / "s.tar"), str(tmp_path / field), "--label", f"json:{field}"]) == 0
    coarse, fine = (index.load(tmp_path / field / "train") for field in ("coarse", "fine"))
    assert coarse.fingerprint != fine.fingerprint


def test_a_row_that_ends_beyond_all_integers_is_refused(make_set):
    folder = make_set("a", 10)
    offset = np.load(folder / "index" / "offset.npy")
    offset[3] = 2**63 - 20
    np.save(folder / "index" / "offset.npy", offset)
    with pytest.raises(UserError, match=r"row 3 .* points outside its shard"):
        index.load(folder)


def test_columns_that_are_not_the_manifests_are_refused(make_set):
    folder = make_set("a", 10)
    label = folder / "index" / "label.npy"
    whole = np.load(label)
    for wrong, told in (
        (whole[::-1].copy(), "label.npy is not what .* was written with"),
        (whole + 0.5, "label.npy holds float64, not int32"),
        (whole.astype("S3"), "label.npy holds .*, not int32"),
        (np.int32(3), "label.npy has 0 rows, the manifest says 10"),
    ):
        np.save(label, wrong)
        with pytest.raises(UserError, match=told):
            index.load(folder)
    np.save(label, whole)
    assert len(index.load(folder)) == 10


@pytest.mark.parametrize(
    "wrong",
    [
        *({"shards_root": 5}, {"columns": None}, {"classes": [1, 2]}, {"rgb": {"mean": [0, 0, 0]}}, {"rgb": [1]}),
        *({"shards": 3}, {"num_samples": "10"}, {"layout": [1]}),
    ],
    ids=str,
)
def test_a_manifest_of_other_types_is_told(make_set, wrong):
    folder = make_set("a", 10)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | wrong))
    with pytest.raises(UserError, match=r"manifest.json is damaged \("):
        index.load(folder)


def test_third_party_names_and_components_are_understood(tmp_path):
    members = [("a/b.JPEG", JPEG), ("a/b.json", b"{}"), ("a/b.cls", b" 3\n"), ("c.seg.png", JPEG), ("c.webp", JPEG)]
    write_tar(tmp_path / "s.tar", [*members, ("c.cls", b"0")])
    shard, columns = scan_shard(tmp_path / "s.tar")
    assert (shard.num_samples, columns["key"], columns["label"]) == (2, [b"a/b", b"c"], [3, 0])


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("a.jpg", JPEG)], "sample 'a' has no label (cls): it holds .jpg (JPEG)"),
        ([("a.cls", b"1")], "sample 'a' has no image"),
        ([("a.jpg", JPEG), ("a.cls", b"cat")], "'a.cls' holds 'cat', not a decimal class number"),
        ([("a.jpg", b"nothing"), ("a.cls", b"1")], "sample 'a': its image cannot be read"),
        ([("a.jpg", JPEG), ("a.cls", b"1"), ("b.jpg", JPEG), ("b.cls", b"1"), ("a.jpg", JPEG)], "'a' comes twice"),
        ([("a.jpg", JPEG), ("a.jpg", JPEG), ("a.cls", b"1")], "'a.jpg' comes twice"),
    ],
)
def test_a_bad_sample_is_named(tmp_path, members, says):
    write_tar(tmp_path / "bad.tar", members)
    with pytest.raises(UserError, match=r"bad\.tar") as error:
        scan_shard(tmp_path / "bad.tar")
    assert says in str(error.value)


def raw(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


SQUARE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def test_raw_pixels_are_pointed_at_behind_their_header(tmp_path):
    write_tar(tmp_path / "s.tar", [("a.npy", raw(SQUARE)), ("a.cls", b"2")])
    shard, columns = scan_shard(tmp_path / "s.tar")
    assert shard.form == "raw"
    start = columns["offset"][0]
    assert (tmp_path / "s.tar").read_bytes()[start : start + columns["size"][0]] == SQUARE.tobytes()
    assert (columns["height"], columns["width"], columns["size"]) == ([4], [4], [48])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no header", "magic"),
        (raw(SQUARE)[:-1], "175 bytes do not hold 4 x 4 pixels"),
        (raw(SQUARE.astype(np.float32)), "float32 [4, 4, 3], not uint8"),
        (raw(SQUARE[..., 0]), "uint8 [4, 4], not uint8 [height, width, 3]"),
        (raw(np.asfortranarray(SQUARE)), "Fortran order"),
        (raw(SQUARE).replace(b"(4, 4, 3)", b"(-4,-4,3)"), "do not hold"),
        (raw(SQUARE).replace(b"{", b"("), "header cannot be read"),
        (raw(SQUARE, version=(2, 0)), "version (2, 0)"),
        (raw(SQUARE[:0]), "do not hold"),
        (b"", "magic"),
    ],
)
def test_raw_pixels_that_are_none_are_named(tmp_path, content, says):
    write_tar(tmp_path / "bad.tar", [("a.npy", content), ("a.cls", b"0")])
    with pytest.raises(UserError, match=r"bad\.tar: sample 'a': its image cannot be read") as error:
        scan_shard(tmp_path / "bad.tar")
    assert says in str(error.value)


def test_raw_and_encoded_images_do_not_mix(tmp_path):
    members = {"raw.tar": [("a.npy", raw(SQUARE)), ("a.cls", b"0")], "jpg.tar": [("b.jpg", JPEG), ("b.cls", b"0")]}
    for name, files in members.items():
        write_tar(tmp_path / name, files)
    with pytest.raises(UserError, match=r"raw\.tar holds raw pixels, other shards encoded images"):
        indexing.write(tmp_path, [scan_shard(tmp_path / name) for name in members], ["x"])
    write_tar(tmp_path / "both.tar", members["raw.tar"] + members["jpg.tar"])
    with pytest.raises(UserError, match=r"both\.tar: sample 'b' is encoded, those before are not"):
        scan_shard(tmp_path / "both.tar")


def test_a_set_of_an_older_version_says_what_to_do(make_set):
    folder = make_set("set", 10)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 1}))
    with pytest.raises(UserError, match=r"has version 1, this program reads 2\. Make it again with launch\.pack"):
        index.load(folder)


def test_a_truncated_tar_is_named(tmp_path):
    write_tar(tmp_path / "s.tar", [("a.jpg", JPEG * 20), ("a.cls", b"1")])
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"s\.tar"):
        scan_shard(tmp_path / "s.tar")


def test_a_key_in_two_shards_is_named(tmp_path):
    for name in ("one.tar", "two.tar"):
        write_tar(tmp_path / name, [("a.jpg", JPEG), ("a.cls", b"0")])
    shards = [scan_shard(tmp_path / name) for name in ("one.tar", "two.tar")]
    with pytest.raises(UserError, match=r"'a' is in one\.tar and in two\.tar"):
        indexing.write(tmp_path, shards, ["x"])


def test_a_missing_shard_is_named(make_set):
    folder = make_set("set", 10)
    (folder / "shard-000001.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000001\.tar is missing"):
        index.load(folder)


def test_a_shard_of_another_size_is_named(make_set):
    folder = make_set("set", 10)
    with open(folder / "shard-000001.tar", "ab") as shard:
        shard.write(b"more")
    with pytest.raises(UserError, match=r"shard-000001\.tar changed since it was indexed: it has"):
        index.load(folder)


def test_a_shard_with_other_bytes_of_the_same_size_is_named(make_set):
    folder = make_set("set", 10)
    shard = folder / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    time.sleep(0.02)
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-000001\.tar changed since it was indexed: its SHA-256"):
        index.load(folder)


def test_a_copied_shard_is_fine(make_set):
    folder = make_set("set", 10)
    os.utime(folder / "shard-000000.tar", (time.time() + 100, time.time() + 100))
    assert index.load(folder).num_samples == 10


def test_a_label_outside_the_class_list_is_named(make_set):
    folder = make_set("set", 10)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["classes"] = manifest["classes"][:4]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"shard-000001\.tar: sample '00004' has label 4"):
        index.load(folder)


def test_an_empty_set_is_refused(tmp_path):
    write_tar(tmp_path / "s.tar", [])
    indexing.write(tmp_path, [scan_shard(tmp_path / "s.tar")], ["x"])
    with pytest.raises(UserError, match="holds no samples"):
        index.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2}', '{"version": 2, "shards": [{"nme": 1}]}'])
def test_a_damaged_manifest_is_named(make_set, content):
    folder = make_set("set", 10)
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        index.load(folder)


def test_a_short_column_is_named(make_set):
    folder = make_set("set", 10)
    np.save(folder / "index" / "label.npy", np.zeros(9, np.int32))
    with pytest.raises(UserError, match=r"label\.npy has 9 rows"):
        index.load(folder)


def test_a_folder_of_sets_says_which_there_are(photos, tmp_path):
    with pytest.raises(UserError, match=r"several sets.*train"):
        index.load(photos.parent)
    with pytest.raises(UserError, match="does not exist"):
        index.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no packed set"):
        index.load(tmp_path)


def test_a_tar_in_place_of_a_folder(photos):
    tar = next(photos.glob("*.tar"))
    with pytest.raises(UserError, match=r"is a file\. Give the folder"):
        index.load(tar)


def test_a_label_that_no_class_list_has(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.jpg", jpeg(photo(0, 0, 8, 8))), ("1.cls", b"3000000000")])
    with pytest.raises(UserError, match="more than any class list has"):
        scan_shard(tmp_path / "a.tar")


def test_a_name_that_is_no_utf8(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("caf\xe9.jpg"))
    with pytest.raises(UserError, match=r"is no UTF-8"):
        scan_shard(tmp_path / "a.tar")


BAD_SHARDS = [
    {"name": "../../home/user/.ssh/id"},
    {"name": "/etc/passwd"},
    {"name": "a//b.tar"},
    {"name": "a\x00b.tar"},
    {"name": ""},
    {"name": 7},
    {"sha256": "../../../home/user/photos"},
    {"sha256": None},
    {"size": -1},
    {"size": 1.5},
    {"num_samples": True},
    {"form": "pickle"},
]


@pytest.mark.parametrize("change", BAD_SHARDS)
def test_a_manifest_from_elsewhere_names_no_other_files(make_set, change):
    """The cache makes file names of checksums and sizes, and removes them: none may lead out of its folder."""
    folder = make_set("set", 5, num_shards=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0] |= change
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        index.load(folder, verify=False)


@pytest.mark.parametrize(
    ("column", "value"), [("shard", 9), ("shard", -1), ("offset", -512), ("offset", 10**12), ("size", 0), ("height", 0)]
)
def test_a_row_that_points_outside_its_shard_is_named(make_set, column, value):
    folder = make_set("set", 5, num_shards=1)
    path = folder / "index" / f"{column}.npy"
    values = np.load(path)
    values[3] = value
    np.save(path, values)
    with pytest.raises(UserError, match=r"row 3 \('00003'\) points outside its shard"):
        index.load(folder, verify=False)
