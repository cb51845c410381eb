"""What `python launch/pack.py` finds in place of the package: Python then looks for modules in launch/ itself."""

import sys
from pathlib import Path

if __name__ == "launch":
    _file = Path(sys.argv[0])
    sys.stderr.write(f"error: {_file} is not run by its path: run it as python -m launch.{_file.stem}\n")
    sys.exit(2)
