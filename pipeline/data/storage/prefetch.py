"""Remote shards into the cache before the step that needs them, as far ahead as the cache has room.

In: which shards each coming step needs, and where the consumer stands. Out: nothing; the consumer finds them there.
"""

import threading
import time
from collections.abc import Callable

import numpy as np

from pipeline.data.storage.cache import Cache, file_name

MOST_STEPS = 1000  # a whole set that fits would be walked to the last step of the run, a millisecond a step
LOOK_S = 1.0


class Prefetcher:
    """`needs(step)` gives the shards to read at a step, `remote_of(shard)` URL, size and SHA-256.

    Shards come in the order of need, `fetches` at a time, and only so many that all that the steps from the consumer's
    on need (`reached` tells where it stands) fits into the cache. Failures are silent: who needs the shard will meet
    them, and tell.
    """

    def __init__(
        self,
        cache: Cache,
        remote_of: Callable[[int], tuple[str, int, str]],
        needs: Callable[[int], np.ndarray],
        first_step: int,
        last_step: int,
        fetches: int = 4,
    ):
        self.cache = cache
        self.remote_of = remote_of
        self.needs = needs
        self.last_step = last_step
        self._position = first_step
        self._full_at = first_step - 1  # the position at which the cache had no room
        self._closed = False
        self._changed = threading.Event()  # position or closed

        self._choosing = threading.Lock()  # for all below
        self._walked = first_step  # needs of the steps before it are known
        self._coming: dict[int, int] = {}  # shard -> the last known step that needs it; in the order of need
        self._asked: set[int] = set()  # of those coming: fetched, being fetched, or failed
        self._here: set[int] = set()  # of those asked for: fetched
        self._looked_s = time.monotonic()
        for _ in range(fetches):
            threading.Thread(target=self._work, name="ahead", daemon=True).start()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reached(self, step: int) -> None:
        """The consumer stands at this step and needs nothing of those before it."""
        self._position = step
        self._changed.set()

    def close(self) -> None:
        """Start no more fetches. One that is under way ends in the background, or with the process."""
        self._closed = True
        self.cache.soon = frozenset()
        self._changed.set()

    def _work(self) -> None:
        shard = self._next(None, False)
        while shard is not None:
            shard = self._next(shard, self._fetch(shard))

    def _fetch(self, shard: int) -> bool | None:
        """Whether the shard is here now; None if it had no room."""
        position = self._position
        try:
            file = self.cache.open(*self.remote_of(shard), ahead=True)
        except Exception:  # the consumer will meet it
            return False
        if file is None:
            self._full_at = position
            return None
        file.close()
        return True

    def _next(self, shard: int | None, here: bool | None) -> int | None:
        """Note how the fetch of `shard` ended, and wait for the next to fetch. None at the end."""
        with self._choosing:
            if shard is not None and here:
                self._here.add(shard)
            elif shard is not None and here is None:
                self._asked.discard(shard)
            while True:
                self._changed.clear()  # before looking, so that no change is missed
                if self._closed:
                    return None
                chosen = self._choose(self._position)
                if chosen is not None:
                    self._asked.add(chosen)
                    return chosen
                self._changed.wait()

    def _choose(self, position: int) -> int | None:
        """The first coming shard that was not asked for; None if there is nothing to do at this position."""
        self._forget(position)
        if self._full_at == position:
            return None
        while True:
            for shard in self._coming:
                if shard not in self._asked:
                    return shard
            if not self._walk(position):
                return None

    def _forget(self, position: int) -> None:
        """Drop what is not needed any more, and see whether others, an evaluation say, have evicted what is."""
        self._coming = {shard: last for shard, last in self._coming.items() if last >= position}
        if time.monotonic() - self._looked_s > LOOK_S:
            names = self.cache.names()
            self._asked -= {shard for shard in self._here if self._name(shard) not in names}
            self._looked_s = time.monotonic()
        self._asked &= self._coming.keys()
        self._here &= self._asked

    def _walk(self, position: int) -> bool:
        """Add the shards of one more step to those coming. False, and nothing added, if they do not fit."""
        step = max(self._walked, position)
        if step >= min(self.last_step, position + MOST_STEPS):
            return False
        coming = self._coming | dict.fromkeys(self.needs(step).tolist(), step)
        if sum(self.remote_of(shard)[1] for shard in coming) > self.cache.max_bytes:
            return False
        if len(coming) > len(self._coming):
            self.cache.soon = frozenset(map(self._name, coming))
        self._coming, self._walked = coming, step + 1
        return True

    def _name(self, shard: int) -> str:
        _, size, sha256 = self.remote_of(shard)
        return file_name(size, sha256)
