"""Fetching ahead: in the order of need, once, no further than the cache has room, silent about failures."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.storage import prefetch
from pipeline.data.storage.cache import Cache, file_name
from pipeline.data.storage.prefetch import Prefetcher
from tests.data.storage.test_remote import BODY, QUICK, Store, store  # noqa: F401

SIZE = len(BODY)
PAUSE_S = 0.2  # in which a mistake would show


def eventually(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.01)


class Set:
    """`num_shards` shards at a store, and a cache with room for `room` of them."""

    def __init__(self, store: Store, folder: Path, num_shards: int, room: int):  # noqa: F811
        self.store = store
        self.shards = [store.shard(str(number)) for number in range(num_shards)]
        self.cache = Cache(folder, room * SIZE, QUICK)

    def ahead(self, steps: list[list[int]], fetches: int = 2) -> Prefetcher:
        def needs(step: int) -> np.ndarray:
            return np.array(steps[step])

        return Prefetcher(self.cache, self.shards.__getitem__, needs, 0, len(steps), fetches)

    def fetched(self) -> set[int]:
        return {int(name) for name in self.store.gets}

    def here(self) -> set[int]:
        names = self.cache.names()
        return {number for number, shard in enumerate(self.shards) if file_name(*shard[1:]) in names}


def test_all_come_once_in_the_order_of_need(store, tmp_path):  # noqa: F811
    some = Set(store, tmp_path, 6, room=6)
    with some.ahead([[4, 1], [1, 4], [0], [1, 3], [5, 2]], fetches=1):
        eventually(lambda: len(some.here()) == 6)
    assert store.order == ["4", "1", "0", "3", "5", "2"]


def test_no_further_than_there_is_room(store, tmp_path):  # noqa: F811
    some = Set(store, tmp_path, 10, room=3)
    with some.ahead([[number] for number in range(10)]) as fetching:
        eventually(lambda: some.here() == {0, 1, 2})
        time.sleep(PAUSE_S)
        assert some.fetched() == {0, 1, 2}
        fetching.reached(2)
        eventually(lambda: some.here() == {2, 3, 4})
        time.sleep(PAUSE_S)
        assert some.fetched() == {0, 1, 2, 3, 4}


def test_a_shard_needed_again_later_counts_once(store, tmp_path):  # noqa: F811
    some = Set(store, tmp_path, 4, room=2)
    with some.ahead([[0, 1], [1, 0], [0], [2], [3]]) as fetching:
        eventually(lambda: some.here() == {0, 1})
        fetching.reached(2)
        eventually(lambda: some.here() == {0, 2})
    assert store.gets["0"] == 1


def test_no_room_until_the_consumer_moves_on(store, tmp_path):  # noqa: F811
    some = Set(store, tmp_path, 4, room=2)
    other = some.cache.open(*store.shard("other"))
    assert other
    with some.ahead([[0], [1], [2], [3]], fetches=1) as fetching:
        eventually(lambda: some.here() == {0})
        time.sleep(PAUSE_S)
        assert some.here() == {0}
        other.close()
        fetching.reached(1)
        eventually(lambda: some.here() == {1, 2})


def test_what_was_fetched_is_not_evicted_before_its_step(store, tmp_path):  # noqa: F811
    """The consumer holds one shard at a time: with older ones open, too, it may take the room of a shard that came too
    soon when it is faster than the fetch of its own."""
    some = Set(store, tmp_path, 30, room=5)
    with some.ahead([[number // 3] for number in range(90)], fetches=3) as fetching:
        for step in range(90):
            fetching.reached(step)
            some.cache.open(*some.shards[step // 3]).close()
    assert store.gets == {str(number): 1 for number in range(30)}


def test_what_others_evicted_is_fetched_again(store, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(prefetch, "LOOK_S", -1.0)
    some = Set(store, tmp_path, 3, room=3)
    with some.ahead([[0], [1], [2], [2]]) as fetching:
        eventually(lambda: some.here() == {0, 1, 2})
        another = Cache(tmp_path, SIZE)
        file = another.open(*store.shard("other"))
        assert file
        file.close()
        assert not some.here()
        fetching.reached(1)
        eventually(lambda: some.here() == {1, 2})


@pytest.mark.parametrize("fault", ["404", "403", "500", "wrong"])
def test_failures_are_silent_and_the_others_come(store, tmp_path, fault):  # noqa: F811
    some = Set(store, tmp_path, 4, room=4)
    store.faults["1"] = [f"{fault} forever"]
    with some.ahead([[0], [1], [2], [3]], fetches=1) as fetching:
        eventually(lambda: some.here() == {0, 2, 3})
        tried = store.gets["1"]
        fetching.reached(1)
        time.sleep(PAUSE_S)
        assert store.gets["1"] == tried


def test_a_consumer_that_is_faster_skips_what_is_past(store, tmp_path):  # noqa: F811
    some = Set(store, tmp_path, 9, room=2)
    with some.ahead([[number] for number in range(9)]) as fetching:
        eventually(lambda: some.here() == {0, 1})
        fetching.reached(7)
        eventually(lambda: some.here() == {7, 8})
    assert some.fetched() == {0, 1, 7, 8}


def test_closing_ends_the_threads(store, tmp_path):  # noqa: F811
    before = set(threading.enumerate())

    def ours() -> list[threading.Thread]:
        return [thread for thread in set(threading.enumerate()) - before if thread.name == "ahead"]

    some = Set(store, tmp_path, 9, room=2)
    with some.ahead([[number] for number in range(9)], fetches=5):
        eventually(lambda: some.here() == {0, 1})
        assert len(ours()) == 5
        assert all(thread.daemon for thread in ours())
    eventually(lambda: not ours())
    assert not some.cache.soon


def test_needs_are_not_walked_to_the_end_of_a_long_run(store, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(prefetch, "MOST_STEPS", 10)
    some = Set(store, tmp_path, 1, room=2)
    asked = []

    def needs(step: int) -> np.ndarray:
        asked.append(step)
        return np.array([0])

    with Prefetcher(some.cache, some.shards.__getitem__, needs, 5, 1000):
        eventually(lambda: len(asked) == 10)
        time.sleep(PAUSE_S)
    assert asked == list(range(5, 15))
