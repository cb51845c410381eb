"""What every command line shares: a user's mistake ends in one message and exit code 2, Ctrl-C in exit code 130."""

import os
import sys
from collections.abc import Callable

from pipeline.errors import EXIT_CODE, UserError


def run_command(main: Callable[[], None]) -> None:
    """Run `main`. Under torchrun one process a machine prints the mistake, since all make the same one."""
    try:
        main()
    except (UserError, PermissionError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_CODE)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("pipeline", "models", "launch"):
            raise
        print(f"error: {error}: {sys.executable} lacks it. Run make install, then .venv/bin/python", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt:
        sys.exit(130)
