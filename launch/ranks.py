"""What a launcher sees of ranks, and what it says of a job that does not go on.

In: the processes of a machine, the positions that they note. Out: which rank is where, in words.
"""

import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import whereabouts
from pipeline.whereabouts import POINTS, START


class Rank(NamedTuple):
    """A process to watch."""

    rank: int
    pid: int
    error_file: str


class Seen(NamedTuple):
    """A rank, as its launcher sees it."""

    rank: int
    host: str
    pid: int
    step: int
    point: int
    still_s: float  # since it came there
    state: str  # of the process, as /proc has it: R, S, D, T, ...; empty when it has ended

    @property
    def is_stopped(self) -> bool:
        return self.state in ("T", "t")

    @property
    def place(self) -> tuple[int, int]:
        return self.step, self.point


def explain(seen: list[Seen], unheard: dict[str, float]) -> str:
    """Where a job hangs: at machines that nothing was heard of for so many seconds, at ranks that are stopped, else at
    those that are furthest behind, if any are."""
    reasons = [
        f"nothing was heard of {host} for {age_s:.0f} s (is it down, or the network towards it?)"
        for host, age_s in unheard.items()
    ]
    reasons += [
        f"rank {rank.rank} on {rank.host} is stopped by a signal (kill -CONT {rank.pid} lets it go on)"
        for rank in seen
        if rank.is_stopped
    ]
    others = [rank for rank in seen if not rank.is_stopped and rank.host not in unheard]
    first, last = (choose((rank.place for rank in others), default=None) for choose in (min, max))
    if not reasons and first != last:
        behind = [rank for rank in others if rank.place == first]
        waits = ", waiting for a disk" if all(rank.state == "D" for rank in behind) else ""
        reasons.append(f"{_named(behind)} {_are(behind)} still at {_point(first)}{waits}")
    if last and not reasons:
        return f"all ranks are at {_point(last)}"
    return "; ".join(reasons) + (f"; the others are at {_point(last)}" if last else "")


def _point(place: tuple[int, int] | None) -> str:
    return POINTS[place[1]].format(place[0]) if place else ""


def _are(seen: list[Seen]) -> str:
    return "is" if len(seen) == 1 else "are"


def _named(seen: list[Seen]) -> str:
    ranks = defaultdict(list)
    for rank in seen:
        ranks[rank.host].append(str(rank.rank))
    names = [f"rank {', '.join(of[:4])}{' ...' if len(of) > 4 else ''} on {host}" for host, of in ranks.items()]
    return " and ".join(names[:3]) + (f" and {len(names) - 3} more machines" if len(names) > 3 else "")


def see(watched: Rank, host: str, since_s: float) -> Seen:
    """`since_s` is when the rank was started, its first point."""
    try:
        state = Path(f"/proc/{watched.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        state = ""
    state = "" if state in ("Z", "X") else state
    position = whereabouts.read(watched.error_file)
    step, point, at_s = (position.step, position.point, position.at_s) if position else (0, START, since_s)
    return Seen(watched.rank, host, watched.pid, step, point, time.monotonic() - at_s, state)


def shortest_still_s(seen: list[Seen]) -> float:
    """Since any of them came to a new point."""
    return min(rank.still_s for rank in seen)


def missing(handler: Any, waited_s: float) -> str:
    """Who has come to the rendezvous. Reads torch's own state, which has no public form."""
    state = getattr(getattr(handler, "_state_holder", None), "state", None)
    num = getattr(getattr(handler, "settings", None), "min_nodes", "?")
    here = sorted(node.addr for node in getattr(state, "participants", ()))
    return (
        f"warning: {len(here)} of {num} machines have come in {waited_s:.0f} s: {', '.join(here) or 'none'}. Start "
        f"the same command on the others. If they wait too, they have another MASTER_ADDR, MASTER_PORT or JOB_ID, or "
        f"the network between them is closed"
    )
