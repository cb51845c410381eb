"""torchrun with a quiet end: python -m launch.torchrun TORCHRUN_OPTIONS -m launch.train CONFIG ...

The same options and behaviour as torchrun, but the exit code is the job's (2 for a user's mistake, 128 + N after signal
N), and what the processes have said already is not followed by a traceback of the launcher's own.
"""

import sys
from typing import Any


def main() -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(sys.argv[1:]))
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ChildFailedError as failed:
        mistakes = [failure for failure in failed.failures.values() if failure.exitcode == 2]
        if mistakes:  # it said what is wrong in one message; say it again if other ranks cried out when it had gone
            if any(failure.exitcode == 1 for failure in failed.failures.values()):
                print(f"\nerror: {_told(mistakes[0].message)}", file=sys.stderr)
            return 2
        rank, failure = failed.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        print(f"error: rank {rank} ended first, with exit code {code}; its own words are above", file=sys.stderr)
        return code
    return 0


def _told(message: Any) -> str:
    """What launch.command left of a user's mistake."""
    return message["message"] if isinstance(message, dict) else "a process ended with a mistake, told above"


if __name__ == "__main__":
    sys.exit(main())
