"""A packed set behind a URL trains as the folder does: the same rows and pixels, each shard fetched once."""

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config_io import parse
from pipeline.data import index, quarantine
from pipeline.data.loader import order_of, train_batches
from pipeline.data.storage import mirror
from pipeline.data.storage.mirror import open_set
from pipeline.data.storage.remote import Patience
from pipeline.errors import UserError
from pipeline.run_plan import prepare
from pipeline.runtime import RankInfo
from tests.data.storage.test_remote import Store, store  # noqa: F401
from tests.data.test_loader import CPU, settings, steps_of


def put(store: Store, folder: Path, name: str = "set") -> str:  # noqa: F811
    """Put a packed set there; its URL."""
    for path in folder.rglob("*"):
        if path.is_file():
            store.files[f"{name}/{path.relative_to(folder)}"] = path.read_bytes()
    return store.url(name)


def test_the_index_of_a_url_is_that_of_the_folder(photos, store, tmp_path):  # noqa: F811
    here, there = index.load(photos), open_set(put(store, photos) + "/", tmp_path)
    assert there.fingerprint == here.fingerprint
    assert (there.is_remote, here.is_remote) == (True, False)
    assert there.location(1) == store.url("set/shard-000001.tar")
    for name in index.COLUMNS:
        assert np.array_equal(getattr(here, name), getattr(there, name))


def test_columns_are_fetched_once_and_again_when_the_manifest_changes(photos, held_out, store, tmp_path):  # noqa: F811
    url = put(store, photos)
    for _ in range(3):
        open_set(url, tmp_path)
    assert store.gets["set/index/label.npy"] == 1
    put(store, held_out)
    assert open_set(url, tmp_path).fingerprint == index.load(held_out).fingerprint
    assert store.gets["set/index/label.npy"] == 2


def test_a_column_of_another_manifest_is_refused(photos, held_out, store, tmp_path):  # noqa: F811
    url = put(store, photos)
    store.files["set/index/label.npy"] = (held_out / "index" / "label.npy").read_bytes()
    for _ in range(2):
        with pytest.raises(UserError, match=r"label\.npy is not the one that manifest\.json was written with"):
            open_set(url, tmp_path)


@pytest.mark.parametrize("damage", [b"{", b"[]", b"{}"])
def test_a_damaged_manifest_is_named(photos, store, tmp_path, damage):  # noqa: F811
    url = put(store, photos)
    store.files["set/manifest.json"] = damage
    with pytest.raises(UserError, match=r"set/manifest\.json is damaged"):
        open_set(url, tmp_path)


def test_a_url_without_a_set(store, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match=r"nothing has no manifest\.json"):
        open_set(store.url("nothing"), tmp_path)


@pytest.mark.parametrize("shuffle", ["global", "windowed"])
def test_batches_over_http_equal_local_ones_and_each_shard_comes_once(photos, store, tmp_path, shuffle):  # noqa: F811
    options = {"shuffle": shuffle, "window_shards": 2, "cache": str(tmp_path / "cache")}
    expected = steps_of(photos, settings(**options), 0, 12)
    data = settings(**options)
    url = put(store, photos)
    loaded = open_set(url, data.cache)
    order = order_of(loaded, data, 12, seed=7)
    for rank in range(2):
        rank_info = RankInfo(rank, 2, rank, 2)
        batches = train_batches(loaded, data, order, rank_info=rank_info, device=CPU, micro_steps=1, steps=range(0, 12))
        for step, batch in enumerate(batches):
            assert batch.ids.tolist() == expected[step][0][rank * 6 : rank * 6 + 6]
            assert torch.where(batch.valid, batch.targets, -1).tolist() == expected[step][1][rank * 6 : rank * 6 + 6]
    assert [store.gets[f"set/shard-{number:06d}.tar"] for number in range(3)] == [1, 1, 1]
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_cache_smaller_than_the_set_fetches_each_shard_once_an_epoch(make_set, store, tmp_path):  # noqa: F811
    folder = make_set("many", 240, num_shards=12)
    largest = max(path.stat().st_size for path in folder.glob("*.tar"))
    url = put(store, folder)
    data = settings(
        shuffle="windowed", window_shards=2, cache=str(tmp_path / "cache"), cache_gb=8 * largest / 1e9, prefetch=1
    )
    loaded = open_set(url, data.cache)
    order = order_of(loaded, data, 12, seed=7)
    batches = train_batches(
        loaded, data, order, rank_info=RankInfo(0, 1, 0, 1), device=CPU, micro_steps=1, steps=range(0, 20)
    )
    ids = np.concatenate([batch.ids for batch in batches])
    assert sorted(ids.tolist()) == list(range(240))
    gets = [store.gets[f"set/shard-{number:06d}.tar"] for number in range(12)]
    assert gets == [1] * 12
    kept = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar"))
    assert kept <= 8 * largest


@pytest.mark.parametrize("digests", [True, False])
def test_what_a_disk_damages_while_a_job_runs_is_fetched_again(make_set, store, tmp_path, capsys, digests):  # noqa: F811
    """Each image of a cached shard loses its header; the batches stay what they were, and no row is lost."""
    folder = make_set("set", 48, num_shards=2)
    expected = steps_of(folder, settings(), 0, 12)
    if not digests:  # as older sets are
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["columns"]["digest"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    data, run = settings(cache=str(tmp_path / "cache")), tmp_path / "run"
    run.mkdir()
    loaded = open_set(put(store, folder), data.cache)
    order = order_of(loaded, data, 12, seed=7)
    how: dict = {"rank_info": RankInfo(0, 1, 0, 1), "device": CPU, "micro_steps": 1, "steps": range(0, 12)}
    for step, batch in enumerate(train_batches(loaded, data, order, **how, run=run)):
        assert batch.ids.tolist() == expected[step][0]
        assert torch.where(batch.valid, batch.targets, -1).tolist() == expected[step][1]
        sums = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch.images]
        assert sums == expected[step][2]
        if step == 1:
            [cached] = (tmp_path / "cache").glob(f"{loaded.shards[1].sha256}*.tar")
            with open(cached, "r+b") as file:
                for sample in np.flatnonzero(loaded.shard == 1):
                    file.seek(loaded.offset[sample])
                    file.write(bytes(200))
    assert [store.gets[f"set/shard-{number:06d}.tar"] for number in range(2)] == [1, 2]
    assert capsys.readouterr().err.count("was damaged after it had been fetched") == 1
    assert not (run / "bad_images.tsv").exists()
    assert not (loaded.folder / "quarantine.tsv").exists()


def test_an_image_that_is_stored_torn_costs_its_row_and_one_comparison(make_set, store, tmp_path):  # noqa: F811
    folder = make_set("rotten", 24, broken=[3])
    loaded = open_set(put(store, folder), tmp_path / "cache")
    data, seen = settings(cache=str(tmp_path / "cache")), []
    order = order_of(loaded, data, 12, seed=7)
    how: dict = {"rank_info": RankInfo(0, 1, 0, 1), "device": CPU, "micro_steps": 1, "steps": range(0, 4)}
    for batch in train_batches(loaded, data, order, **how):
        seen += batch.ids[~batch.valid.numpy()].tolist()
    assert seen == [3, 3]
    assert store.gets["set/shard-000000.tar"] == 1
    [line] = (loaded.folder / "quarantine.tsv").read_text().splitlines()[1:]
    with tarfile.open(folder / "shard-000000.tar") as tar:
        content = tar.extractfile("00003.jpg").read()  # type: ignore[union-attr]
    assert line.split("\t")[3] == hashlib.blake2b(content, digest_size=8).hexdigest()
    assert open_set(store.url("set"), tmp_path / "cache").folder == loaded.folder
    assert quarantine.left_out(loaded).ids.tolist() == [3]


def test_an_index_here_of_shards_elsewhere(photos, store, tmp_path):  # noqa: F811
    url = put(store, photos)
    local = tmp_path / "index-only"
    (local / "index").mkdir(parents=True)
    for path in (photos / "index").iterdir():
        (local / "index" / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((photos / "manifest.json").read_text())
    (local / "manifest.json").write_text(json.dumps(manifest | {"shards_root": url}))
    data = settings(cache=str(tmp_path / "cache"))
    assert index.load(local).location(0) == f"{url}/shard-000000.tar"
    assert steps_of(local, data, 0, 4) == steps_of(photos, settings(), 0, 4)


def test_the_quarantine_of_a_url_is_honoured(make_set, store, tmp_path):  # noqa: F811
    folder = make_set("rotten", 24, broken=[3])
    (folder / "quarantine.tsv").write_text("shard\tkey\treason\nshard-000000.tar\t00003\ttruncated\n")
    url = put(store, folder)
    data = settings(cache=str(tmp_path / "cache"))
    local = open_set(url, data.cache).folder
    assert (local / "quarantine.tsv").read_text().endswith("truncated\n")


@pytest.mark.parametrize(("fault", "refused"), [("500", True), ("400", True), ("403", False), ("404", False)])
def test_a_server_that_fails_is_not_taken_for_a_set_without_a_quarantine(
    make_set,
    store,  # noqa: F811
    tmp_path,
    monkeypatch,
    fault,
    refused,
):
    monkeypatch.setattr(mirror, "AT_START", Patience(attempts=2, wait_s=0.01))
    url = put(store, make_set("small", 24))
    store.faults["set/quarantine.tsv"] = [f"{fault} forever"]
    if refused:
        with pytest.raises(UserError, match=f"quarantine.tsv cannot be read: HTTP status {fault}"):
            open_set(url, tmp_path / "cache")
    else:
        open_set(url, tmp_path / "cache")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "the cache must hold all shards (or set data.shuffle=windowed)"),
        ({"shuffle": "windowed", "window_shards": 1}, "the cache must hold two windows of data.window_shards"),
    ],
)
def test_a_cache_too_small_is_refused_before_anything_starts(photos, store, tmp_path, options, says):  # noqa: F811
    words = {"train": put(store, photos), "cache": str(tmp_path / "cache"), "cache_gb": 1e-5} | options
    with pytest.raises(UserError) as error:
        prepare(parse({"data": words, "run": str(tmp_path / "run"), "train": {"global_batch": 10}}, "test"), 1)
    assert says in str(error.value)
    assert "data.cache_gb=1e-05 is too small" in str(error.value)


def test_a_package_that_is_missing_is_told_before_a_run(tmp_path):
    tree = {"data": {"train": "gs://bucket/set", "cache": str(tmp_path)}, "run": str(tmp_path / "run")}
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"'\.\[gcs\]'"):
            prepare(parse(tree, "test"), 1)
    else:
        pytest.skip("gcsfs is installed")


def test_remote_shards_are_indexed_by_one_command_and_trained_on(photos, store, tmp_path):  # noqa: F811
    """As 'hf://datasets/.../*.tar' is; a server without a listing takes WebDataset's numbers in braces."""
    from launch.pack import main

    put(store, photos)
    out = tmp_path / "index"
    assert main([store.url("set/shard-{000000..000002}.tar"), str(out), "--workers", "2"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["pack.json", "rejected.tsv", "train"]
    loaded = index.load(out / "train")
    assert [shard.sha256 for shard in loaded.shards] == [shard.sha256 for shard in index.load(photos).shards]
    assert loaded.location(2) == store.url("set/shard-000002.tar")
    data = settings(cache=str(tmp_path / "cache"))
    assert steps_of(out / "train", data, 0, 3) == steps_of(photos, settings(), 0, 3)


def test_a_truncated_remote_shard_is_named_by_its_url(photos, store, tmp_path, capsys):  # noqa: F811
    from launch.command import run
    from launch.pack import main

    put(store, photos)
    store.files["set/shard-000001.tar"] = store.files["set/shard-000001.tar"][:5000]
    words = [store.url("set/shard-{000000..000002}.tar"), str(tmp_path / "out"), "--workers", "1"]
    assert run(lambda: main(words)) == 2
    assert f"{store.url('set/shard-000001.tar')}: no readable tar" in capsys.readouterr().err
    assert run(lambda: main([store.url("set/none-{0..1}.tar"), str(tmp_path / "other"), "--workers", "1"])) == 2
    assert "does not exist" in capsys.readouterr().err
