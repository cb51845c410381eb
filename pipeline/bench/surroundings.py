"""Where the programs that the bench starts find ours, in a checkout or an installed package, and the peers' scripts."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "tests" / "benchmarks"  # in a checkout


def environment(**settings: str) -> dict[str, str]:
    """This process's variables, with our packages on the path of a Python that need not be ours, and `settings`."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": paths} | settings
