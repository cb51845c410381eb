"""Whether the installed builds of torch and DALI fit this machine's driver.

In: nvidia-smi, and the names of the installed packages. Out: nothing, or a UserError that says which CUDA version the
driver supports, which one the builds need, and the command that installs others. Neither torch nor DALI is imported.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from pipeline.errors import UserError

DALI = {12: "nvidia-dali-cuda120", 13: "nvidia-dali-cuda130"}  # by CUDA version
DRIVERS = {12: 525, 13: 580}  # the first that runs builds for it, by NVIDIA's CUDA release notes
PATIENCE_S = 60.0
ON_CPU = 'To use the CPU all the same, set CUDA_VISIBLE_DEVICES=""'


@dataclass(frozen=True)
class Driver:
    num_gpus: int
    cuda: tuple[int, int] | None  # the newest version that it supports; None if nvidia-smi does not say


def driver() -> Driver | None:
    """What nvidia-smi says; None if it lists no GPU, as on a machine without a driver. UserError if it hangs."""
    listed = _nvidia_smi("--list-gpus")
    num_gpus = len(re.findall(r"^GPU ", listed, re.MULTILINE))  # MIG slices have lines of their own, indented
    if not num_gpus:
        return None
    cuda = re.search(r"CUDA (?:UMD )?Version *: *(\d+)\.(\d+)", _nvidia_smi())  # with UMD since driver 610
    return Driver(num_gpus, (int(cuda[1]), int(cuda[2])) if cuda else None)


def require_dali() -> None:
    """Raises UserError if DALI is missing, or installed for two CUDA versions."""
    installed = _dali()
    if len(installed) > 1:
        raise UserError(f"{' and '.join(installed)} are both installed, and overwrite each other's files. {_install()}")
    if not installed and not (find_spec("nvidia") and find_spec("nvidia.dali")):
        machine = driver()
        newest = max(DALI)
        if machine and machine.cuda and machine.cuda[0] < newest:  # PyPI's torch is for the newest
            raise UserError(f"DALI is not installed. {_install(machine)}")
        raise UserError(f"DALI is not installed. Run make install, or in the checkout pip install -e '.[cuda{newest}]'")


def require_usable_gpus(torch_version: str, torch_cuda: str | None, reason: str) -> None:
    """For when torch finds no GPU: raises UserError if nvidia-smi does, unless CUDA_VISIBLE_DEVICES hides them all.

    `torch_cuda` is the CUDA version of torch's build, None for one without CUDA; `reason` is what torch says.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    asks_for_cpu = visible is not None and visible.strip() in ("", "-1")
    machine = None if asks_for_cpu else driver()
    if machine is None:
        return
    unused = f"nvidia-smi lists {machine.num_gpus} GPU{'s' if machine.num_gpus > 1 else ''}, but"
    if torch_cuda is None:
        raise UserError(f"{unused} torch {torch_version} is a build without CUDA. {_install(machine)}. {ON_CPU}")
    _require_driver(machine, {f"torch {torch_version}": _major(torch_cuda)} | _dali(), unused)
    hint = f"Check CUDA_VISIBLE_DEVICES={visible}" if visible else "Check the driver"
    raise UserError(f"{unused} torch {torch_version} can use none{reason and f': {reason}'}. {hint}. {ON_CPU}")


def require_dali_for(torch_cuda: str | None) -> None:
    """For when torch finds a GPU: raises UserError if DALI's build needs a newer driver than this machine's."""
    newer = {name: cuda for name, cuda in _dali().items() if torch_cuda and cuda > _major(torch_cuda)}
    machine = driver() if newer else None
    if machine:
        _require_driver(machine, newer, "torch can use the GPUs, but DALI cannot:")


def _require_driver(machine: Driver, needed: dict[str, int], problem: str) -> None:
    """Raises UserError if one of the builds, named with the CUDA version it needs, does not run on this driver."""
    if machine.cuda is None:
        return
    newer = [name for name, cuda in needed.items() if cuda > machine.cuda[0]]
    if newer:
        cuda = max(needed[name] for name in newer)
        names = f"{' and '.join(newer)} need{'s' if len(newer) == 1 else ''}"
        least = f", so driver {DRIVERS[cuda]} or newer" if cuda in DRIVERS else ""
        raise UserError(
            f"{problem} the driver supports CUDA up to {machine.cuda[0]}.{machine.cuda[1]}, and "
            f"{names} CUDA {cuda}{least}. {_install(machine)}. {ON_CPU}"
        )


def _install(machine: Driver | None = None) -> str:
    """The next action: which builds to install, and how."""
    cuda = machine.cuda[0] if machine and machine.cuda else max(DALI)
    if cuda < min(DALI):
        return f"Update the driver, at least to {DRIVERS[min(DALI)]} with make install CUDA={min(DALI)}"
    cuda = min(cuda, max(DALI))
    return (
        f"Install the builds for CUDA {cuda}, in a fresh environment and from the checkout: rm -r .venv; "
        f"make install CUDA={cuda}, or without make: pip install -e '.[cuda{cuda}]'"
    )


def _dali() -> dict[str, int]:
    """DALI's installed packages, and the CUDA version of each."""
    installed = {}
    for cuda, name in DALI.items():
        try:
            version(name)
        except PackageNotFoundError:
            continue
        installed[name] = cuda
    return installed


def _major(cuda: str) -> int:
    return int(cuda.partition(".")[0])


def _nvidia_smi(*words: str) -> str:
    """What it prints; nothing where there is none."""
    try:
        done = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    except OSError:
        return ""
    except subprocess.TimeoutExpired:
        raise UserError(f"nvidia-smi has not answered for {PATIENCE_S:.0f} s. Check the driver. {ON_CPU}") from None
    return done.stdout
