"""A pool of processes that does independent jobs, counts what is done, and dies quietly with its parent.

In: jobs and the function for one. Out: the running count of images done. A job calls `tick` for each of them, which is
also where it stops when the pool is asked to.
"""

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import forkserver
from typing import Any

from pipeline.errors import UserError

# Given the total, what is done, the unit and perhaps the work: a context, whose function is told what is done now.
ProgressBar = Callable[..., AbstractContextManager[Callable[[int], None]]]

STUCK_S = 5.0  # after it was asked to stop, a worker that has not ends all the same


class Stopped(Exception):
    """The main process asked the workers to stop."""


def run(work: Callable[[Any], None], jobs: Iterable[Any], workers: int) -> Generator[int, None, None]:
    """Do all jobs in `workers` processes; yields the number of ticks so far, several times a second.

    Closing it stops the workers. Raises what a job raises, and UserError when a worker is killed.
    """
    context = _forkserver()
    counter, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(workers, context, _enlist, (counter, stop))
    try:
        with _signals_later():
            waiting: set[Future] = {pool.submit(work, job) for job in jobs}
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            yield counter.value
    except BrokenProcessPool:
        raise UserError(
            "a worker was killed, most likely for want of memory. Run the same command with fewer --workers; it goes on"
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _signals_later() -> Iterator[None]:
    """Handle Ctrl-C and SIGTERM afterwards: in the middle of the start (2-4 s, most of it torch's import) they would
    leave workers with half of their parts, and tracebacks.
    """
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])


def _forkserver():
    """Workers are forked from a server that has webdataset (and with it torch) loaded, once for all of them.

    They are born deaf to Ctrl-C, which a terminal sends to every process and which would print tracebacks.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["webdataset", "PIL.Image"])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return context


_shared: tuple[Any, Any] | None = None  # this worker's counter of images done, and the event that asks it to stop


def tick(num_done: int) -> None:
    """Count what this worker has done; outside of a pool, nothing. Raises Stopped when the pool is asked to stop."""
    if _shared is None:
        return
    counter, stop = _shared
    if stop.is_set():
        raise Stopped
    if num_done:
        with counter.get_lock():
            counter.value += num_done


def _enlist(counter: Any, stop: Any) -> None:
    """Make this process a worker: the death of the main process, however sudden, ends this one too."""
    global _shared  # noqa: PLW0603  # the pool has no other way to hand a worker something to keep
    _shared = (counter, stop)
    warnings.simplefilter("ignore")  # Pillow warns of odd EXIF and large images; what matters is rejected or packed

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent:
            parent.join()
            os._exit(1)

    def give_up() -> None:
        while not stop.is_set():  # no wait(): its set() would never end if a waiting worker had been killed
            time.sleep(0.5)
        time.sleep(STUCK_S)
        os._exit(1)  # stuck in a download, say

    threading.Thread(target=watch, daemon=True).start()
    threading.Thread(target=give_up, daemon=True).start()
