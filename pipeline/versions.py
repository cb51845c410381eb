"""The versions that a result depends on, for evaluation.json and for BENCHMARKS.md."""

import platform
from importlib.metadata import PackageNotFoundError, version

from pipeline.builds import DALI

PACKAGES = ("torch", "torchvision", *DALI.values(), "deepspeed", "webdataset", "numpy")


def versions() -> dict[str, str]:
    """Python's and the packages' versions; a package that is not installed is left out."""
    numbers = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            continue
    return numbers
