"""Reading encoded bytes: more shards than the usual limit of open files, and shards that are cut short meanwhile."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from pipeline.data.index import load
from pipeline.data.storage.reader import Reader
from pipeline.errors import UserError

MANY = """
import resource, sys
import numpy as np
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from pipeline.data.index import load
from pipeline.data.storage.reader import Reader
index = load(sys.argv[1])
assert all(len(encoded) for encoded in Reader(index).read(np.arange(len(index))))
"""


def test_more_shards_than_the_soft_limit_of_open_files(make_set):
    folder = make_set("many", 150, num_shards=150, size_px=(8, 16))
    subprocess.run([sys.executable, "-c", MANY, str(folder)], check=True)


# Cut short under a running job


@pytest.mark.parametrize("size", [0, 5000])
@pytest.mark.parametrize("mapped", [True, False])
def test_a_shard_that_is_cut_is_named_before_it_is_read(make_set, mapped, size):
    """Not mapped yet, its last images would count as bad ones, and go into the quarantine of the set."""
    index = load(make_set("own", 30))
    reader, shard = Reader(index), index.location(1)
    if mapped:
        reader.read(np.arange(30))
    before = os.path.getsize(shard)
    os.truncate(shard, size)
    reader.read(np.flatnonzero(index.shard != 1))
    with pytest.raises(UserError) as caught:
        reader.read(np.arange(30))
    assert str(caught.value) == (
        f"{shard} changed while this job was reading it: it has {size} bytes and had {before}. Bring the whole file "
        f"back, then start the same command again"
    )


CUT = """
import hashlib, mmap, os, sys, threading
import numpy as np
from pipeline.data.index import load
from pipeline.data.storage.reader import Reader
folder, where, file = sys.argv[1:]
index = load(folder)
reader = Reader(index)
views = reader.read(np.arange(len(index)))
if where == "another file":
    with open(file, "rb") as opened:
        views = [np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)]
os.truncate(file, 0)
if where == "main, with Python's lock":
    print([bytes(view) for view in views])
thread = threading.Thread(target=lambda: [hashlib.sha256(view) for view in views])  # in C, without Python's lock
thread.start()
thread.join()
"""


@pytest.mark.parametrize("where", ["main, with Python's lock", "thread"])
def test_what_was_read_ahead_when_the_shard_was_cut_is_named_instead_of_sigbus(make_set, where):
    folder = make_set("own", 30)
    shard = folder / "shard-000001.tar"
    words = [sys.executable, "-c", CUT, str(folder), where, str(shard)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: {shard} changed while this job was reading it: it has 0 bytes and had ")
    assert ended.stderr.count("\n") == 1


def test_sigbus_of_another_file_stays_what_it_is(make_set, tmp_path):
    (tmp_path / "other").write_bytes(bytes(100_000))
    words = [sys.executable, "-c", CUT, str(make_set("own", 30)), "another file", str(tmp_path / "other")]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == -signal.SIGBUS
