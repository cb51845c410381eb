"""The limit of simplejpeg (libjpeg-turbo): full decoding to RGB, N threads."""

from pathlib import Path

from tests.benchmarks.contest import Entry, enter, versions
from tests.benchmarks.loaders.limit import pool


def start(folder: Path, cores: int) -> Entry:
    import simplejpeg

    return pool(simplejpeg.decode_jpeg, folder, cores, versions("simplejpeg"))


if __name__ == "__main__":
    enter(start)
