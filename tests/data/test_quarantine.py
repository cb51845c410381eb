"""A bad image costs its row, is named, is remembered, and too many of them end the run."""

import dataclasses
import hashlib
import os
import tarfile

import numpy as np
import pytest
import torch

from pipeline.config import Data
from pipeline.data import quarantine
from pipeline.data.bad_images import BadImages
from pipeline.data.index import load
from pipeline.data.loader import eval_batches, order_of, train_batches
from pipeline.data.output import Output
from pipeline.data.quarantine import Entry
from pipeline.errors import UserError
from pipeline.runtime import RankInfo
from tests.conftest import disk_of, fill
from tests.data.test_loader import CPU, settings, steps_of

BROKEN = (3, 17, 41)


@pytest.fixture
def rotten(make_set):
    return make_set("rotten", 60, broken=BROKEN)


def member(folder, sample: int) -> tuple:
    """The shard, the offset and the bytes of a sample's image, as Python's tarfile finds them."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                if info.name == f"{sample:05d}.jpg":
                    return path, info.offset_data, tar.extractfile(info).read()
    raise KeyError(sample)


def overwrite(path, offset: int, content: bytes) -> None:
    """As a disk damages a file, or a person mends one: the size and the time stay."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_damage_since_packing_is_told_as_such(make_set, capsys):
    """The index says what was packed: of two images one has other bytes now."""
    folder = make_set("packed", 60)
    packed = [hashlib.blake2b(member(folder, sample)[2], digest_size=8).digest() for sample in range(60)]
    index = dataclasses.replace(
        load(folder), digest=np.array([int.from_bytes(one, "big") for one in packed], np.uint64)
    )
    path, offset, content = member(folder, 7)
    overwrite(path, offset + 100, bytes(byte ^ 0xFF for byte in content[100:110]))
    BadImages(index, limit=10).add(np.array([6, 7]), ["torn", "torn"])
    first, second = capsys.readouterr().err.splitlines()
    assert "cannot be decoded (torn)" in first
    assert "(torn; the shard was damaged since it was packed, these are other bytes)" in second


def lost(seen: dict) -> set[int]:
    """The ids of the rows without a label."""
    return {
        sample for ids, labels, _ in seen.values() for sample, label in zip(ids, labels, strict=True) if label == -1
    }


def test_bad_rows_are_labelled_and_all_others_stay_as_they_are(rotten, make_set, tmp_path, capsys):
    whole = steps_of(make_set("whole", 60), settings(), 0, 15)
    for world in (1, 3):
        run = tmp_path / f"run-{world}"
        run.mkdir()
        got = steps_of(rotten, settings(), 0, 15, world=world, run=run)
        (rotten / "quarantine.tsv").unlink()
        for step, (ids, labels, sums) in got.items():
            assert ids == whole[step][0]
            for row, sample in enumerate(ids):
                kept = (labels[row], sums[row]) == (whole[step][1][row], whole[step][2][row])
                assert kept == (sample not in BROKEN)
                assert (labels[row] == -1) == (sample in BROKEN)
        entries = quarantine.read(run / "bad_images.tsv")
        assert sorted(entry.key for entry in entries) == [f"{sample:05d}" for sample in BROKEN]
        assert all(entry.shard.startswith("shard-") and "truncated" in entry.reason for entry in entries)
        said = capsys.readouterr().err
        assert said.count("cannot be decoded") == 3
        assert "'00017' cannot be decoded (image file is truncated" in said
        assert "at most 100 (data.max_bad_images)" in said


def test_every_epoch_has_all_rows_but_the_bad_ones(rotten, tmp_path):
    index, data = load(rotten), settings()
    order = order_of(index, data, 12, seed=0)
    labels = []
    for rank in range(2):
        options = {"rank_info": RankInfo(rank, 2, rank, 2), "device": CPU, "micro_steps": 1, "run": tmp_path}
        labels += [
            torch.where(b.valid, b.targets, -1)
            for b in train_batches(index, data, order, steps=range(0, 100), **options)
        ]
    seen = np.concatenate(labels)
    assert (seen >= 0).sum() == 20 * 57
    assert (seen == -1).sum() == 20 * 3
    assert len(quarantine.read(tmp_path / "bad_images.tsv")) == 3


def test_what_is_in_quarantine_is_never_decoded(rotten, capfd):
    names = [shard.name for shard in load(rotten).shards]
    entries = [Entry(names[sample * 3 // 60], f"{sample:05d}", "known") for sample in BROKEN]
    quarantine.add(rotten / "quarantine.tsv", entries)
    seen = steps_of(rotten, settings(), 0, 5)
    assert sum(labels.count(-1) for _, labels, _ in seen.values()) == 3
    assert capfd.readouterr().err == ""


def test_ranks_learn_of_each_others_findings(rotten, tmp_path):
    """As suspects, which are tried by themselves: what is left out does not depend on what was met before."""
    index = load(rotten)
    one, other = BadImages(index, 10, tmp_path), BadImages(index, 10, tmp_path)
    one.add(np.array([17]), ["torn"])
    assert other.suspects(np.arange(60)).nonzero()[0].tolist() == [17]
    assert not other.among(np.arange(60)).any()
    other.add(np.array([17, 3]), ["torn", "torn"])
    assert len(quarantine.read(tmp_path / "bad_images.tsv")) == 2
    assert one.suspects(np.array([3, 4])).tolist() == [True, False]


def test_torn_photos_depend_on_their_window_alone(make_set, tmp_path):
    """Cut by an eighth, a photo is whole in some windows. History, ranks and prefetch must not show."""
    folder = make_set("torn", 60, size_px=(150, 200), torn=range(0, 60, 3))

    def again(name: str, first=0, last=15, run=None, **options):
        (folder / "quarantine.tsv").unlink(missing_ok=True)
        run = run or tmp_path / name
        run.mkdir(exist_ok=True)
        world = options.pop("world", 1)
        return steps_of(folder, settings(recipe="inception", **options), first, last, world=world, run=run)

    once = again("once")
    left_out = sum(labels.count(-1) for _, labels, _ in once.values())
    assert 0 < left_out < 20 * 3
    assert again("once") == once
    assert again("prefetch", prefetch=6) == once
    assert again("ranks", world=3) == once
    parts = again("parts", last=7) | again("", first=7, run=tmp_path / "parts", world=2)
    assert parts == once


def test_a_run_keeps_to_the_quarantine_it_began_with(rotten, tmp_path):
    name = load(rotten).shards[0].name
    quarantine.add(tmp_path / "quarantine.tsv", [Entry(name, "00000", "then")])
    quarantine.add(rotten / "quarantine.tsv", [Entry(name, "00001", "later")])
    index = load(rotten)
    assert BadImages(index, 10, tmp_path).among(np.arange(60)).nonzero()[0].tolist() == [0]
    assert BadImages(index, 10).among(np.arange(60)).nonzero()[0].tolist() == [1]


def test_an_entry_holds_a_checksum_of_the_images_bytes(rotten, tmp_path):
    steps_of(rotten, settings(), 0, 5, run=tmp_path)
    for file in (rotten / "quarantine.tsv", tmp_path / "bad_images.tsv"):
        lines = [line.split("\t") for line in file.read_text().splitlines()]
        assert lines[0] == ["shard", "key", "reason", "digest"]
        assert {line[1]: line[3] for line in lines[1:]} == {
            f"{sample:05d}": hashlib.blake2b(member(rotten, sample)[2], digest_size=8).hexdigest() for sample in BROKEN
        }


@pytest.mark.parametrize("found_by", ["a run", "lint"])
def test_a_new_run_tries_again_what_was_mended_and_an_old_one_keeps_to_what_it_had(make_set, tmp_path, found_by):
    from launch import lint

    folder = make_set("set", 60, broken=[17])
    path, offset, whole = member(folder, 3)
    expected = steps_of(folder, settings(), 0, 5)
    (folder / "quarantine.tsv").unlink()
    overwrite(path, offset, bytes(500))
    runs = {name: tmp_path / name for name in ("first", "second", "third")}
    for run in runs.values():
        run.mkdir()
    if found_by == "lint":
        assert lint.main([str(folder), "--workers", "1"]) == lint.ERRORS
    else:
        assert lost(steps_of(folder, settings(), 0, 5, run=runs["first"])) == {3, 17}
    begun = quarantine.begin(runs["second"], load(folder))
    assert begun.ids.tolist() == [3, 17]
    assert begun.lines() == [f"2 of 60 images of {folder} are left out: see {runs['second']}/quarantine.tsv"]

    overwrite(path, offset, whole[:500])
    again = quarantine.begin(runs["third"], load(folder))
    assert again.ids.tolist() == [17]
    assert again.lines() == [
        f"1 of 60 images of {folder} are left out: see {runs['third']}/quarantine.tsv",
        f"1 of the images that {folder}/quarantine.tsv lists have other bytes now: tried again",
    ]
    assert steps_of(folder, settings(), 0, 5, run=runs["third"]) == expected
    assert lost(steps_of(folder, settings(), 0, 5)) == {17}  # without a run, as an evaluation
    assert lost(steps_of(folder, settings(), 0, 5, run=runs["second"])) == {3, 17}
    assert quarantine.begin(runs["second"], load(folder)).ids.tolist() == [3, 17]
    assert len({begun.fingerprint, again.fingerprint}) == 2
    assert begun.fingerprint == quarantine.begin(runs["second"], load(folder)).fingerprint

    overwrite(path, offset, bytes(400))  # damaged anew, in another way
    assert lost(steps_of(folder, settings(), 0, 5)) == {3, 17}
    entries = quarantine.read(folder / "quarantine.tsv")
    assert sorted(entry.key for entry in entries) == ["00003", "00003", "00017"]
    assert BadImages(load(folder), 10).num_found == 2


def test_an_entry_without_a_checksum_counts_whatever_the_bytes(make_set):
    """As older versions wrote it."""
    folder = make_set("old", 60)
    (folder / "quarantine.tsv").write_text("shard\tkey\treason\nshard-000000.tar\t00003\ttorn\nx.tar\tk\ttorn\n")
    assert lost(steps_of(folder, settings(), 0, 5)) == {3}
    assert quarantine.left_out(load(folder)).changed == ()
    known = quarantine.read(folder / "quarantine.tsv")
    assert quarantine.add(folder / "quarantine.tsv", [Entry("shard-000000.tar", "00003", "torn", "0" * 16)]) == []
    assert quarantine.read(folder / "quarantine.tsv") == known


def test_nothing_is_said_of_a_set_that_is_used_as_a_whole(make_set, tmp_path):
    folder = make_set("whole", 20)
    begun = quarantine.begin(tmp_path, load(folder))
    assert begun.lines() == []
    assert (tmp_path / "quarantine.tsv").read_text() == "shard\tkey\treason\tdigest\n"
    quarantine.add(folder / "quarantine.tsv", [Entry("shard-000000.tar", "00001", "found while the run was stopped")])
    assert quarantine.begin(tmp_path, load(folder)).fingerprint == begun.fingerprint


def test_a_rotten_set_ends_the_run_and_its_restart(rotten, tmp_path):
    for _ in range(2):
        with pytest.raises(UserError, match=r"more than data\.max_bad_images=2: .*bad_images\.tsv lists") as error:
            steps_of(rotten, settings(max_bad_images=2), 0, 15, run=tmp_path)
    assert "launch.lint" in str(error.value)
    assert len(quarantine.read(tmp_path / "bad_images.tsv")) == 3


@pytest.mark.parametrize(("limit", "ends"), [(3, False), (2, True)])
def test_the_limit_itself_is_allowed(rotten, tmp_path, limit, ends):
    """Three bad images, found one by one by a run, by its restart, and by an evaluation of a quarantined set."""
    told: list[str] = []
    bad = BadImages(load(rotten), limit, tmp_path, told.append)
    for sample in BROKEN:
        bad.add(np.array([sample]), ["torn"])
    assert bool(told) == ends
    for run in (tmp_path, None):
        if ends:
            with pytest.raises(UserError, match=rf"^3 images .*data\.max_bad_images={limit}:"):
                BadImages(load(rotten), limit, run)
        else:
            assert BadImages(load(rotten), limit, run).num_found == 3


@pytest.mark.parametrize("refuser", ["dali", "pillow"])
def test_want_of_memory_is_no_images_fault(monkeypatch, refuser):
    from pipeline.data import request
    from pipeline.data.decoding import dali
    from pipeline.data.decoding.safe import Safe
    from pipeline.data.decoding.screen import Screen
    from pipeline.linting.pixels import Told
    from tests.data.decoding.test_decoder import GARBAGE, GOOD, refuse
    from tests.data.decoding.test_decoder import request as asked

    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(request, "pixels", no_memory)
    failure = RuntimeError("cudaErrorMemoryAllocation")
    probe = (lambda one: failure) if refuser == "dali" else dali.probe(dali.Decoder(is_raw=False))
    safe = Safe(False, Screen(torn=False), Told(refuse), 1, probe)
    image = GOOD[0] if refuser == "dali" else GARBAGE
    wanted = asked([image], [(0, 0, 4, 4)])
    with pytest.raises(RuntimeError, match="cudaErrorMemoryAllocation" if refuser == "dali" else "out of memory"):
        safe.tried(wanted, np.ones(1, bool)) if refuser == "dali" else safe.prepared(wanted)


def test_evaluation_leaves_bad_images_out_of_the_score_but_sees_their_ids(rotten):
    index, rank_info = load(rotten), RankInfo(0, 1, 0, 1)
    for _ in range(2):  # found, then known
        batches = list(eval_batches(index, settings(), [Output(36)], rank_info=rank_info, device=CPU, micro_batch=8))
        ids, valid = (np.concatenate([np.asarray(getattr(b, name)) for b in batches]) for name in ("ids", "valid"))
        assert sorted(ids[ids >= 0].tolist()) == list(range(60))
        assert ids[~valid & (ids >= 0)].tolist() == list(BROKEN)
    assert [entry.shard for entry in quarantine.read(rotten / "quarantine.tsv")] == [
        f"shard-{sample * 3 // 60:06d}.tar" for sample in BROKEN
    ]


def test_padding_shows_sample_0_even_if_that_is_bad(make_set):
    index = load(make_set("first", 5, broken=[0]))
    (only,) = eval_batches(index, settings(), [Output(36)], rank_info=RankInfo(1, 2, 1, 2), device=CPU, micro_batch=3)
    assert only.ids.tolist() == [3, 4, -1]
    assert only.valid.tolist() == [True, True, False]


def test_a_set_that_may_only_be_read(rotten, tmp_path, monkeypatch):
    add = quarantine.add

    def read_only(path, entries):
        if path.parent == rotten:
            raise PermissionError(path)
        return add(path, entries)

    monkeypatch.setattr(quarantine, "add", read_only)
    steps_of(rotten, settings(), 0, 5, run=tmp_path)
    assert len(quarantine.read(tmp_path / "bad_images.tsv")) == 3


def test_a_damaged_quarantine_is_named(rotten):
    (rotten / "quarantine.tsv").write_text("shard\tkey\treason\nshard-000000.tar 00003\n")
    with pytest.raises(UserError, match=r"quarantine\.tsv, line 2: 'shard-000000\.tar 00003' is not"):
        BadImages(load(rotten), 10)


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path):
    path = tmp_path / "q.tsv"
    quarantine.add(path, [Entry("s.tar", "a", "torn")])
    with open(path, "a") as file:
        file.write("s.tar\tb")
    assert [entry.key for entry in quarantine.read(path)] == ["a"]
    quarantine.add(path, [Entry("s.tar", "c", "torn")])
    assert [entry.key for entry in quarantine.read(path)] == ["a", "c"]


def test_tabs_and_newlines_in_a_reason_stay_in_their_line(tmp_path):
    quarantine.add(tmp_path / "q.tsv", [Entry("s.tar", "a", "one\ttwo\nthree")])
    assert quarantine.read(tmp_path / "q.tsv") == [Entry("s.tar", "a", "one two three")]


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match="max_bad_images"):
        Data(max_bad_images=-1)


def test_an_entry_is_known_by_shard_and_key(tmp_path):
    path = tmp_path / "quarantine.tsv"
    first, same, other = Entry("a.tar", "k1", "torn"), Entry("a.tar", "k1", "grey"), Entry("a.tar", "k2", "torn")
    elsewhere = Entry("b.tar", "k1", "torn")
    assert quarantine.add(path, [first]) == [first]
    assert quarantine.add(path, [same]) == []
    assert quarantine.add(path, [same, other, elsewhere, other]) == [other, elsewhere]
    assert quarantine.read(path) == [first, other, elsewhere]


def test_a_full_disk_is_told(make_set, tmp_path):
    loaded = load(make_set("own", 12))
    with disk_of(tmp_path / "small", 16 << 10) as disk:
        bad = BadImages(loaded, 100, run=disk)
        filler = fill(disk)
        with pytest.raises(
            UserError, match=r"bad_images.tsv cannot be written: the disk is full \(it takes \d+ bytes, 0 "
        ):
            bad.add(np.array([3]), ["torn"])
        filler.unlink()
        bad = BadImages(loaded, 100, run=disk)
        bad.add(np.array([3]), ["torn"])
        assert [entry.key for entry in quarantine.read(disk / "bad_images.tsv")] == [loaded.key_of(3)]
