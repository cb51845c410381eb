"""Commands that messages offer, so that they can be pasted as they stand: this interpreter, quoted words.

hints.command("launch.evaluate", "runs/my run")    # .venv/bin/python -m launch.evaluate 'runs/my run'
"""

import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the checkout


def command(module: str, *words: str | Path) -> str:
    """`python -m module words`. What is to be filled in is written in capitals: OUT, PACKED_SET."""
    return shlex.join([near(Path(sys.executable)), "-m", module, *map(str, words)])


def script(name: str, *words: str | Path) -> str:
    """A script or file of the checkout, such as launch/single_node.sh, with its words."""
    return shlex.join([ours(name), *map(str, words)])


def ours(name: str) -> str:
    """A file of the checkout, as it is called from here."""
    return near(ROOT / name)


def near(path: Path) -> str:
    """Relative to the folder that we are in, if `path` lies below it. Links stay: a venv's python is one."""
    here = Path(os.path.abspath(path))
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(here)
