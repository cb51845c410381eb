"""Requests that a graph survives. An image that cannot be decoded breaks a DALI graph for good, so suspects are tried
by themselves before they get into a batch, and the culprits of a broken graph are found one by one.

In: requests. Out: the same, with Pillow's pixels in the rows that DALI does not show as Pillow does, and grey
placeholders, not valid, where neither can. Only the window counts: a torn photo may be whole where one lies.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np

from pipeline.data.decoding.screen import Screen
from pipeline.data.request import Request, clamp_padding

Probe = Callable[[Request], RuntimeError | None]  # what a decoder says against the window of a request of one row


class Bad(Protocol):
    """What is known of bad images: `suspects` (bool [n]) are to be tried by themselves, `add` is told of new ones.
    `mended` gives the right bytes of an image that was damaged on its way, None if `image` is what is stored."""

    def suspects(self, ids: np.ndarray) -> np.ndarray: ...
    def mended(self, sample: int, image: np.ndarray) -> np.ndarray | None: ...
    def add(self, ids: np.ndarray, reasons: list[str]) -> None: ...


class Safe:
    """Requests that a graph survives: rows that it cannot decode hold Pillow's pixels, or a grey image."""

    def __init__(self, is_raw: bool, screen: Screen, bad: Bad, threads: int, probe: Probe):
        self.is_raw = is_raw
        self.screen = screen
        self.bad = bad
        self._pool = ThreadPoolExecutor(threads)  # starts none before it has work
        self._probe = probe

    def prepared(self, request: Request) -> Request:
        """The request with the images that Pillow decodes, and the suspects tried by themselves."""
        doubtful = self.bad.suspects(clamp_padding(request.ids))
        if self.is_raw:
            return self.tried(request, doubtful)
        others = self.screen.others(request)
        doubtful |= self.screen.suspects(request)
        return self.tried(self._shown_by_pillow(request, np.flatnonzero(others).tolist(), {}), doubtful & ~others)

    def tried(self, request: Request, doubtful: np.ndarray) -> Request:
        """The request itself if the graph can decode all of its `doubtful` rows (bool [n])."""
        tried = np.flatnonzero(doubtful & _real(request)).tolist()
        failures = {row: failure for row in tried if (failure := self._probe(request.row(row)))}
        if failures:
            self.screen.doubt(request.ids[list(failures)])
        return self._shown_by_pillow(request, list(failures), failures)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _shown_by_pillow(self, request: Request, rows: list[int], failures: dict[int, RuntimeError]) -> Request:
        """With Pillow's pixels in `rows`; those that it cannot decode either are left out, and `bad.add` is told.

        `failures` are DALI's. Raises such a one if there was no memory, which is no fault of an image's.
        """
        rows = [row for row in rows if _real(request)[row]]
        pictures = list(self._pool.map(request.shown_by_pillow, rows))
        reasons = {row: reason for row, reason in zip(rows, pictures, strict=True) if isinstance(reason, str)}
        for row, reason in reasons.items():
            failure = failures.get(row, RuntimeError(f"decoding an image with Pillow: {reason}"))
            if _lacks_memory(f"{reason} {failure}") or (row in failures and not self._works(request, row)):
                raise failure  # no fault of the image's, which would be left out for good
        refused, ids = dict.fromkeys([*failures, *reasons]), clamp_padding(request.ids).tolist()
        right = {row: image for row in refused if (image := self.bad.mended(ids[row], request.images[row])) is not None}
        if right:
            self.screen.forget(request.ids[list(right)])
            whole = [right.get(row, image) for row, image in enumerate(request.images)]
            return self.prepared(replace(request, images=whole))
        images = {row: image for row, image in zip(rows, pictures, strict=True) if not isinstance(image, str)}
        if images:
            request = request.with_images(images)
        if not reasons:
            return request
        self.bad.add(clamp_padding(request.ids[list(reasons)]), list(reasons.values()))
        return request.with_placeholder(np.isin(np.arange(len(request.ids)), list(reasons)))

    def _works(self, request: Request, row: int) -> bool:
        """Whether a sound image can be decoded, now."""
        return self._probe(request.row(row).with_placeholder(np.ones(1, bool))) is None


def _real(request: Request) -> np.ndarray:
    """Rows that are no stand-ins: bool [n]."""
    return request.valid | (request.ids < 0)


def _lacks_memory(text: str) -> bool:
    return any(word in text.lower() for word in ("memory", "alloc"))
