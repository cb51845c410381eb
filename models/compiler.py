"""Whether kernels can be built on this machine, without importing torch: Triton and torch.compile call a C compiler
when they first run, which slim container images lack."""

import os
import shutil
from functools import cache
from importlib.util import find_spec


@cache
def c_compiler() -> str | None:
    """The C compiler that Triton takes: CC, else gcc or clang on the PATH."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


@cache
def builds_triton() -> bool:
    """Whether Triton's kernels can be built."""
    return find_spec("triton") is not None and c_compiler() is not None
