"""Two ranks train and score from a web server that fails at times: as from local shards, each shard fetched once."""

import json

import pytest

from tests.data.storage.test_mirror import put
from tests.data.storage.test_remote import store  # noqa: F401
from tests.distributed.test_runs import config, points, run, train  # noqa: F401


@pytest.mark.slow
def test_a_run_over_http_equals_a_local_one(config, photos, held_out, store, tmp_path):  # noqa: F811
    words = ["data.shuffle=windowed", "data.window_shards=2", "train.epochs=1.5"]
    train(2, config, tmp_path / "local", *words)
    there = [f"data.train={put(store, photos, 'train')}", f"data.validation={put(store, held_out, 'validation')}"]
    store.faults["train/shard-000001.tar"] = ["500", "drop", "wrong"]
    store.faults["validation/shard-000000.tar"] = ["503"]
    cache = f"data.cache={tmp_path / 'cache'}"
    train(2, config, tmp_path / "remote", *words, *there, cache)
    assert points(tmp_path / "remote") == points(tmp_path / "local")
    run(2, "launch.evaluate", str(tmp_path / "remote"), "--views", "centre")
    scores = json.loads((tmp_path / "remote" / "evaluation.json").read_text())["views"]
    assert scores["centre"]["seen"] == 23
    gets = {name: count for name, count in store.gets.items() if name.endswith(".tar")}
    assert gets == {
        "train/shard-000000.tar": 1,
        "train/shard-000001.tar": 4,
        "train/shard-000002.tar": 1,
        "validation/shard-000000.tar": 2,
        "validation/shard-000001.tar": 1,
    }
    assert not list((tmp_path / "cache").rglob("*.part"))
