"""The machine that figures are taken on."""

import os
import platform
import subprocess
from pathlib import Path

import torch

from pipeline.runtime import has_gpu


def device() -> str:
    return "cuda" if has_gpu() else "cpu"


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {
        "cpu": cpu.partition(":")[2].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
        "driver": _driver(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _driver() -> str:
    """Of the GPU, as nvidia-smi tells it."""
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return told.stdout.split("\n")[0].strip()
