"""Bytes of samples, straight out of memory-mapped shards: no copy, no decoding, no state.

In: sample ids. Out: one uint8 view per id: the encoded image, or of raw pixels the rows that a window covers. A shard
is mapped when it is first needed; the pages are the operating system's, shared by all processes of a machine. Remote
shards are mapped from the cache, which keeps a shard as long as it is mapped.

A shard that is cut short under a running job is named: before each batch that reads it, and, where a decoder reads what
is not there any more, instead of SIGBUS. Reading into buffers would need neither, but took 19 us an image of 66 kB in
the thread that launches training, and mapping 2.8; of raw pixels the loader took 377 us a row for 308.
"""

import ctypes
import errno
import mmap
import os
import resource
import signal
import weakref
from functools import cache as once
from typing import Any, BinaryIO

import numpy as np

from pipeline.data.geometry import Crops
from pipeline.data.index import Index
from pipeline.data.storage.cache import Cache
from pipeline.errors import EXIT_CODE, UserError


class Reader:
    """Opens shards of `index` on demand; `cache` keeps remote ones. Views stay valid while they are held."""

    def __init__(self, index: Index, cache: Cache | None = None):
        self.index = index
        self.cache = cache
        self._shards: dict[int, tuple[mmap.mmap, np.ndarray]] = {}
        _allow_open_files(len(index.shards))
        _readers.add(self)
        _name_what_is_cut()

    def read(self, ids: np.ndarray) -> list[np.ndarray]:
        """The encoded images of `ids`, each a read-only uint8 view [size] into its shard."""
        return self._views(ids, self.index.offset[ids], self.index.size[ids])

    def read_members(self, ids: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        """Other members of the shards of `ids`, each a read-only uint8 view [size]."""
        return self._views(ids, offsets, sizes)

    def read_rows(self, ids: np.ndarray, windows: Crops) -> list[np.ndarray]:
        """Of raw images, the rows that the windows cover: uint8 views [window height, image width, 3]."""
        widths = self.index.width[ids]
        row = 3 * widths.astype(np.int64)
        views = self._views(ids, self.index.offset[ids] + windows.top * row, windows.height * row)
        shapes = zip(windows.height.tolist(), widths.tolist(), strict=True)
        return [view.reshape(height, width, 3) for view, (height, width) in zip(views, shapes, strict=True)]

    def read_anew(self, sample: int) -> np.ndarray:
        """The bytes of a sample, after its cached shard has been compared with its checksum, and fetched again if they
        differ."""
        shard = int(self.index.shard[sample])
        listed = self.index.shards[shard]
        if self.cache is not None:
            self.cache.verify(self.index.location(shard), listed.size, listed.sha256)
        self._shards.pop(shard, None)
        return self.read(np.array([sample]))[0]

    def _views(self, ids: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        shards = self.index.shard[ids]
        if self.cache is not None:  # give back what this batch does not need; views that are still held keep theirs
            self._shards = {shard: self._shards[shard] for shard in set(shards.tolist()) & self._shards.keys()}
        for shard in set(shards.tolist()):  # 0.03 ms of 256 images in 12 shards
            mapped, _ = self._map(shard)
            self._require_whole(shard, mapped.size())
        views = []
        for shard, offset, size in zip(shards.tolist(), offsets.tolist(), sizes.tolist(), strict=True):
            mapped, view = self._map(shard)
            # Fetch it whole and ahead of the decoder: a page at a time, cold photos came 9 times slower (530 a second).
            begin = offset // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, begin, offset + size - begin)
            views.append(view[offset : offset + size])
        return views

    def _map(self, shard: int) -> tuple[mmap.mmap, np.ndarray]:
        if shard not in self._shards:
            where = self.index.location(shard)
            try:
                with self._open(shard) as file:
                    self._require_whole(shard, os.fstat(file.fileno()).st_size)  # else the last images would be bad
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                if error.errno == errno.EMFILE:
                    raise UserError(
                        f"{where} cannot be opened: each of the {len(self.index.shards)} shards needs an open file, "
                        f"and this process may not have more. Raise the limit: ulimit -Hn, ulimit -n"
                    ) from None
                raise UserError(
                    f"{where} cannot be opened ({error.strerror}), though it was there at the start"
                ) from None
            mapped.madvise(mmap.MADV_RANDOM)
            self._shards[shard] = mapped, np.frombuffer(mapped, np.uint8)
        return self._shards[shard]

    def _require_whole(self, shard: int, size: int) -> None:
        if size != self.index.shards[shard].size:
            raise UserError(self._changed(shard, size))

    def _changed(self, shard: int, size: int) -> str:
        back = "" if self.cache else "Bring the whole file back, then start"
        return (
            f"{self.index.location(shard)} changed while this job was reading it: it has {size} bytes and had "
            f"{self.index.shards[shard].size}. {back or 'Its copy is in data.cache. Start'} the same command again"
        )

    def cut(self) -> str | None:
        """What to tell of the first mapped shard that has lost its end."""
        sizes = {shard: mapped.size() for shard, (mapped, _) in list(self._shards.items())}
        return next((self._changed(at, size) for at, size in sizes.items() if size < self.index.shards[at].size), None)

    def _open(self, shard: int) -> BinaryIO:
        if self.cache is None:
            return open(self.index.location(shard), "rb")
        listed = self.index.shards[shard]
        file = self.cache.open(self.index.location(shard), listed.size, listed.sha256)
        assert file is not None  # only fetching ahead goes without
        return file


def _allow_open_files(num_shards: int) -> None:
    """Python's mmap keeps a file open, ImageNet has 1,282 shards, and the usual soft limit is 1,024 open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < num_shards + 1024:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


_readers: weakref.WeakSet[Reader] = weakref.WeakSet()


@once
def _name_what_is_cut() -> Any:
    """Let the process end with a message when something reads behind the end of a mapped shard, once and for all.

    Python's own handlers run between bytecodes, but the read that failed is tried again as soon as the signal has been
    handled. So this one is C's: it runs in the thread that read, Python or not, and does not return.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(number: int) -> None:
        told = next((told for reader in _readers if (told := reader.cut())), None)
        if told:
            os.write(2, f"error: {told}\n".encode())
            os._exit(EXIT_CODE)
        libc.signal(number, before)  # none of ours: the same read ends the process

    before = libc.signal(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    return handler  # kept by the cache, or C would call what is gone
