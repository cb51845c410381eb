"""Where the images of one pass over a set come from: shards or their cache, filled ahead, without the known bad ones.

In: ids and windows. Out: requests for the decoder.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.config import Data
from pipeline.data.bad_images import BadImages, TooManyBad, raise_too_many
from pipeline.data.fields import Values, read
from pipeline.data.geometry import Crops, clip
from pipeline.data.index import Index
from pipeline.data.request import Request, clamp_padding
from pipeline.data.storage.cache import Cache
from pipeline.data.storage.prefetch import Prefetcher
from pipeline.data.storage.reader import Reader


class Source:
    """`needs` gives the ids that this rank reads at each of `steps`, `machine_needs` those of all ranks of its machine,
    which share a cache and must not evict what the others need. `run` holds the bad_images.tsv of all ranks."""

    def __init__(
        self,
        index: Index,
        data: Data,
        steps: range,
        needs: Callable[[int], np.ndarray],
        machine_needs: Callable[[int], np.ndarray],
        run: Path | None = None,
        too_many_bad: TooManyBad = raise_too_many,
    ):
        self.index = index
        self.steps = steps
        self.needs = needs
        self.machine_needs = machine_needs
        cache = Cache(data.cache.expanduser(), int(data.cache_gb * 1e9)) if index.is_remote else None
        self.reader = Reader(index, cache)
        self.bad = BadImages(index, data.max_bad_images, run, too_many_bad, self.reader)
        self.ahead = Prefetcher(cache, self._remote, self._shards, steps.start, steps.stop) if cache else None

    def _remote(self, shard: int) -> tuple[str, int, str]:
        listed = self.index.shards[shard]
        return self.index.location(shard), listed.size, listed.sha256

    def _shards(self, step: int) -> np.ndarray:
        return np.unique(self.index.shard[clamp_padding(self.machine_needs(step))])

    def walk(self) -> Iterator[tuple[int, np.ndarray]]:
        """Each step with this rank's ids; shards are fetched some way ahead of it."""
        for step in self.steps:
            if self.ahead:
                self.ahead.reached(step)
            yield step, self.needs(step)

    def values(self, fields: Sequence[str], ids: np.ndarray) -> Values:
        """What the samples of `ids` have in these fields; -1 is padding."""
        return read(self.index, self.reader, fields, clamp_padding(ids))

    def request(self, ids: np.ndarray, crops: Crops) -> Request:
        """Ask for these windows of the images of `ids`; -1 is padding."""
        samples = clamp_padding(ids)
        windows, beyond = clip(crops, self.index.height[samples], self.index.width[samples])
        if self.index.is_raw:
            images = self.reader.read_rows(samples, windows)
            windows = replace(windows, top=np.zeros_like(windows.top))
        else:
            images = self.reader.read(samples)
        return Request(ids, ids >= 0, images, windows, beyond).with_placeholder(self.bad.among(samples))

    def close(self) -> None:
        """Stop fetching ahead."""
        if self.ahead:
            self.ahead.close()
