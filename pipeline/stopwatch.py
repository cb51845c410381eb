"""How long the device was kept waiting by what happens within a `with` block.

On a CPU that is the time of the block. On a GPU it is the time between what was queued before and what is queued after:
a wait of this process while the GPU has work left costs nothing, and one of the GPU's queue is not seen from here.
"""

import time

import torch


class Stopwatch:
    """with watch: ... any number of times, then `take_s`."""

    def __init__(self, device: torch.device):
        self.device = device
        self._seconds = self._since = 0.0
        self._events: list[torch.cuda.Event] = []

    def __enter__(self) -> None:
        if self.device.type == "cuda":
            self._mark()
        else:
            self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self._mark()
        else:
            self._seconds += time.perf_counter() - self._since

    def _mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        self._events.append(event)

    def take_s(self) -> float:
        """The seconds since the last call. Waits for the GPU."""
        if self._events:
            self._events[-1].synchronize()
            pairs = zip(self._events[::2], self._events[1::2], strict=True)
            self._seconds = sum(begin.elapsed_time(end) for begin, end in pairs) / 1e3
            self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds
