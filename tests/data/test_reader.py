"""Reading encoded bytes: the bytes that were packed, and more shards than the usual limit of open files."""

import subprocess
import sys

MANY = """
import resource, sys
import numpy as np
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from pipeline.data.index import load
from pipeline.data.reader import Reader
index = load(sys.argv[1])
assert all(len(encoded) for encoded in Reader(index).read(np.arange(len(index))))
"""


def test_more_shards_than_the_soft_limit_of_open_files(make_set):
    folder = make_set("many", 150, num_shards=150, size_px=(8, 16))
    subprocess.run([sys.executable, "-c", MANY, str(folder)], check=True)
