"""The commands: python -m launch.NAME. Without the environment each of them says so in one line, and ends with 2."""

import sys
from importlib.util import find_spec

_NEEDED = ("numpy", "psutil", "pydantic", "torch", "yaml")
_missing = [name for name in _NEEDED if find_spec(name) is None]
if sys.version_info < (3, 11) or _missing:
    _lacks = "is older than Python 3.11" if sys.version_info < (3, 11) else "lacks " + ", ".join(_missing)
    sys.stderr.write("error: " + sys.executable + " " + _lacks + ". Run make install, then .venv/bin/python\n")
    sys.exit(2)
