"""Encoded bytes of samples, straight out of memory-mapped shards: no copy, no decoding, no state.

In: sample ids. Out: one uint8 view per id. A shard is mapped when it is first needed and stays mapped; the pages are
the operating system's, shared by all processes of a machine.
"""

import errno
import mmap
import resource

import numpy as np

from pipeline.data.index import Index
from pipeline.errors import UserError


class Reader:
    """Opens shards of `index` on demand. Views stay valid as long as the reader lives."""

    def __init__(self, index: Index):
        self.index = index
        self._shards: dict[int, tuple[mmap.mmap, np.ndarray]] = {}
        _allow_open_files(len(index.shards))

    def read(self, ids: np.ndarray) -> list[np.ndarray]:
        """The encoded images of `ids`, each a read-only uint8 view into its shard."""
        index = self.index
        rows = zip(index.shard[ids].tolist(), index.offset[ids].tolist(), index.size[ids].tolist(), strict=True)
        views = []
        for shard, offset, size in rows:
            mapped, view = self._map(shard)
            # Fetch it whole and ahead of the decoder: a page at a time, cold photos came 9 times slower (530 a second).
            begin = offset // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, begin, offset + size - begin)
            views.append(view[offset : offset + size])
        return views

    def _map(self, shard: int) -> tuple[mmap.mmap, np.ndarray]:
        if shard not in self._shards:
            path = self.index.shard_path(shard)
            try:
                with open(path, "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                if error.errno == errno.EMFILE:
                    raise UserError(
                        f"{path} cannot be opened: each of the {len(self.index.shards)} shards needs an open file, and "
                        f"this process may not have more. Raise the limit: ulimit -Hn, ulimit -n"
                    ) from None
                raise UserError(
                    f"{path} cannot be opened ({error.strerror}), though it was there at the start"
                ) from None
            mapped.madvise(mmap.MADV_RANDOM)
            self._shards[shard] = mapped, np.frombuffer(mapped, np.uint8)
        return self._shards[shard]


def _allow_open_files(num_shards: int) -> None:
    """Python's mmap keeps a file open, ImageNet has 1,282 shards, and the usual soft limit is 1,024 open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < num_shards + 1024:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
