"""tee, but for logs that are kept: COMMAND 2>&1 | python -m tests.benchmarks.short_log FILE

In: lines. Out: the same on the screen and in FILE, but of a warning, which a library may repeat for each batch or file,
only the first few; numbers in it do not make it another. Above MOST_BYTES only rows of tables are kept.
"""

import re
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

MOST_REPEATS = 3
MOST_BYTES = 900_000
WARNING = re.compile(r"warn|dali|nvimgcodec|jpeg", re.IGNORECASE)


def shortened(lines: Iterable[str], most_bytes: int = MOST_BYTES) -> Iterator[str]:
    """The lines that are kept, and at the end how many are not."""
    seen: Counter[str] = Counter()
    num_bytes = left_out = 0
    for line in lines:
        if not line.startswith("|"):
            kind = re.sub(r"0x[0-9a-f]+|\d+", "0", line)
            seen[kind] += bool(WARNING.search(line))
            if seen[kind] > MOST_REPEATS or num_bytes > most_bytes:
                left_out += 1
                continue
        num_bytes += len(line.encode())
        yield line
    if left_out:
        yield f"({left_out:,} lines left out: repeated warnings, or too much for a log)\n"


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # it ends with its input, which may tell something until then
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    with open(sys.argv[1], "w") as log:
        for line in shortened(sys.stdin):
            print(line, end="", flush=True)
            log.write(line)
            log.flush()


if __name__ == "__main__":
    main()
