"""The library that decodes JPEGs on a GPU: which one DALI is to take, and what it can do."""

import ctypes
import warnings
from functools import cache
from pathlib import Path

import torch

SMOOTH_WINDOWS = 13, 2  # from this version on windows can have smoothly enlarged colour planes; before, the CPU decodes


@cache
def nvjpeg_version() -> tuple[int, int]:
    """Of the library that decodes on the GPU: the one that pip installed, loaded here before DALI would take another
    that LD_LIBRARY_PATH names. (0, 0) if there is none. Warns if it is too old to decode windows as the CPU does."""
    import nvidia

    file = f"libnvjpeg.so.{(torch.version.cuda or '13').partition('.')[0]}"  # of the CUDA version that DALI is for too
    installed = [str(path) for folder in nvidia.__path__ for path in Path(folder).glob(f"*/lib/{file}")]
    for name in (*installed, file):
        try:
            library = ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        part = ctypes.c_int()
        parts = []
        for number in range(2):  # MAJOR_VERSION, MINOR_VERSION of libraryPropertyType
            library.nvjpegGetProperty(number, ctypes.byref(part))
            parts.append(part.value)
        break
    else:
        parts = [0, 0]
    version = parts[0], parts[1]
    if version < SMOOTH_WINDOWS:
        warnings.warn(
            f"nvJPEG {version[0]}.{version[1]} cannot enlarge the colour planes of windows as Pillow does, so pixels "
            f"decoded on this GPU differ a little more from a CPU's. With CUDA 13, pip install 'nvidia-nvjpeg>=13.3'",
            stacklevel=2,
        )
    return version
