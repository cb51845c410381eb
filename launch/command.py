"""What every command line shares: a user's mistake ends in one message and exit code 2, Ctrl-C in exit code 130."""

import os
import signal
import sys
import time
from collections.abc import Callable

from pipeline.errors import EXIT_CODE, UserError

FIRST_PROCESS_SPEAKS_S = 5.0


def is_told(error: Exception) -> bool:
    """Whether the text of `error` is all that a person needs: a mistake, or a file that is not as it must be."""
    return isinstance(error, UserError) or (isinstance(error, OSError) and error.filename is not None)


def run_command(main: Callable[[], None]) -> None:
    """Run `main`. Under torchrun the first process of a machine prints the mistake that all make. The others give it
    time, since torchrun ends all with the first that fails; one that lives on made a mistake of its own, and prints it.
    """
    try:
        main()
    except (UserError, OSError) as mistake:
        if not is_told(mistake):
            raise
        error = str(mistake)
        if (rank := os.environ.get("LOCAL_RANK", "0")) != "0":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(FIRST_PROCESS_SPEAKS_S)
            error = f"{error} (process {rank} of this machine)"
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_CODE)
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] in ("pipeline", "models", "launch"):
            raise
        print(f"error: {missing}: {sys.executable} lacks it. Run make install, then .venv/bin/python", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt:
        sys.exit(130)
