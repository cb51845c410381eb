"""Says within half a minute which rank keeps a job from going on, where it is and what to do; ends it when that lasts.

Each launcher has a `Watch`: a thread that touches nothing which may hang with the job. It reads the positions of its
machine's ranks (pipeline.whereabouts) and what a second thread, which may hang, learns of other machines through the
rendezvous store. The launcher of the first machine speaks for all; without it, or without the store, each does.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from launch.failure import Failure
from launch.ranks import Rank, Seen, explain, missing, see, shortest_still_s
from pipeline import whereabouts
from pipeline.whereabouts import COMPUTE, DATA, END, EVALUATE, SAVE, START

QUIET_S = 20.0  # in which no rank of the machine came to a new point, until it is told; then again at three times that
LONG = (START, SAVE, END)  # where all ranks together may be for three times as long before anything is said
LOOK_S = 1.0
REPORT_S = 5.0  # between two reports of a machine to the others
UNHEARD_S = 15.0  # without a report
OBEY_S = 10.0  # in which the launcher's main thread must have followed, else this one ends the job
STACKS_S = 5.0  # that the run folder is given to take the stacks
AT = "tencrop/at/"  # keys of the store, by machine


class Watch:
    """Of one launcher. `verdict` is set when the job must end; the launcher's main thread looks at it."""

    def __init__(self, say: Callable[[str], None] | None = None):
        self.host = socket.gethostname()
        self.verdict: Failure | None = None
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._ranks: list[Rank] = []
        self._since_s = self._told_s = 0.0
        self._still_s = self._longest_s = 0.0  # since the last point of this machine; between two, after the first step
        self._step = 0  # when that was looked at
        self._store: Any = None
        self._machine, self._num_machines = 0, 1
        self._reports: dict[int, tuple[str, list[Seen], int, float]] = {}  # host, ranks, number of it, when it came
        self._contact_s = 0.0  # when the store answered last
        self._joining: tuple[Any, float] | None = None
        self._signal: tuple[int, float] | None = None  # the first, and when it came
        self._obeyed = self._closed = self._failed = False
        self._awake, wake = os.pipe()
        os.set_blocking(wake, False)
        self._woken_before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for work in (self._watch, self._exchange):
            threading.Thread(target=work, daemon=True).start()

    # What the launcher says

    def joining(self, handler: Any) -> None:
        """It waits for the other machines from now on."""
        self._ranks, self._joining, self._told_s = [], (handler, time.monotonic()), 0.0

    def started(self, ranks: list[Rank], store: Any, machine: int, num_machines: int) -> None:
        """All machines are there, and these ranks were started."""
        self.verdict, self._joining, self._reports = None, None, {}
        self._since_s = self._contact_s = time.monotonic()
        self._told_s = self._still_s = self._longest_s = 0.0
        self._step = 0
        self._store, self._machine, self._num_machines = store, machine, num_machines
        self._ranks = ranks

    def ending(self) -> None:
        """It ends the ranks, or they have ended."""
        self._ranks, self._joining = [], None

    def obeyed(self) -> None:
        """It has seen a signal, and stops the ranks."""
        self._obeyed = True

    def hangs(self) -> str | None:
        """Where, if the ranks of this machine have trained before and do not come to new points any more."""
        seen = self._seen()
        if not seen or any(rank.point not in (DATA, COMPUTE, EVALUATE) for rank in seen) or not self._longest_s:
            return None
        patience_s = max(QUIET_S, 3 * self._longest_s)
        if any(rank.point == EVALUATE for rank in seen):  # a first batch of many crops
            patience_s = max(patience_s, 3 * QUIET_S)
        return self._words(seen) if shortest_still_s(seen) > patience_s else None

    def lost(self) -> str:
        """The machines that nothing is heard of any more, in words; nothing if there are none."""
        return explain([], self._gone()) if self._num_machines > 1 else ""

    def close(self) -> None:
        """Look at nothing any more, signals included."""
        self._closed = True
        signal.set_wakeup_fd(self._woken_before)

    # The thread that does not hang

    def _watch(self) -> None:
        while not self._closed:
            ready, _, _ = select.select([self._awake], [], [], LOOK_S)
            if ready:
                number = os.read(self._awake, 4096)[0]
                self._signal = self._signal or (number, time.monotonic())
            if not self._closed:
                self._look_on()

    def _look_on(self) -> None:
        """Nothing that one look meets may end the watch."""
        try:
            self._look()
        except Exception:
            if not self._failed:
                self._failed = True
                self._say(f"warning: the watch of this job failed once, and goes on:\n{traceback.format_exc()}")

    def _look(self) -> None:
        now = time.monotonic()
        if self._signal and not self._obeyed and now - self._signal[1] > OBEY_S:
            self._end_all(128 + self._signal[0], f"stopped by {signal.Signals(self._signal[0]).name}")
        elif self._joining and now - self._joining[1] > max(QUIET_S, 3 * self._told_s):
            self._told_s = now - self._joining[1]
            self._say(missing(self._joining[0], self._told_s))
        elif seen := self._seen():
            self._judge(seen)

    def _seen(self) -> list[Seen]:
        seen = [see(rank, self.host, self._since_s) for rank in self._ranks]
        return [rank for rank in seen if rank.state]

    def _judge(self, seen: list[Seen]) -> None:
        still_s, step = shortest_still_s(seen), min(rank.step for rank in seen)
        if still_s < self._still_s and self._step > 1:
            self._longest_s = max(self._longest_s, self._still_s)
        self._still_s, self._step = still_s, step
        if still_s < QUIET_S:
            self._told_s = 0.0
            return
        speaks = self._machine == 0 or 0 in self._unheard() or self._contact_age_s() > UNHEARD_S
        if still_s > max(self._patience_s(seen), 3 * self._told_s) and speaks:
            self._told_s = still_s
            self._say(
                f"warning: no rank has come to a new point for {still_s:.0f} s: {self._words(seen)}. {self._end()}"
            )
        stall_s = self._stall_s()
        late_s = still_s - max(stall_s, 3 * self._longest_s) - (0 if speaks else OBEY_S)
        if stall_s and late_s > 0:
            if self.verdict is None:
                words = f"no rank has come to a new point for {still_s / 60:.3g} min (train.stall_minutes): "
                words += f"{self._words(seen)}. {self._stacks_or_not(seen)}"
                self.verdict = Failure(seen[0].rank, self.host, 1, words, at=time.time(), stalled=True)
            elif late_s > OBEY_S:
                self._end_all(1, self.verdict.words)

    def _patience_s(self, seen: list[Seen]) -> float:
        """Longer where all ranks together may take long: at some points, in a first step, in a job of slow steps."""
        known = self._known(seen)
        together = len({rank.place for rank in known}) == 1 and not self._unheard()
        if together and not any(rank.is_stopped for rank in known) and (seen[0].point in LONG or not self._longest_s):
            return 3 * QUIET_S
        return max(QUIET_S, 3 * self._longest_s)

    def _end(self) -> str:
        stall_s = self._stall_s()
        by_itself = f"The job ends after {stall_s / 60:g} min of this (train.stall_minutes); " if stall_s else ""
        return f"{by_itself}Ctrl-C ends it now, and the same command goes on from the last checkpoint"

    def _stall_s(self) -> float:
        positions = [whereabouts.read(rank.error_file) for rank in self._ranks]
        return max((position.stall_s for position in positions if position), default=0.0)

    def _known(self, seen: list[Seen]) -> list[Seen]:
        """The ranks of this machine, and those that others have reported."""
        others = [of for number, (_, of, _, _) in dict(self._reports).items() if number != self._machine]
        return seen + [rank for of in others for rank in of]

    def _words(self, seen: list[Seen]) -> str:
        return explain(seen if self._contact_age_s() > UNHEARD_S else self._known(seen), self._gone())

    def _contact_age_s(self) -> float:
        """Since the store answered."""
        return time.monotonic() - self._contact_s

    def _unheard(self) -> dict[int, float]:
        """Machines that have not reported for `UNHEARD_S`, and for how long."""
        now = time.monotonic()
        reports = dict(self._reports)  # which other threads change
        return {number: now - report[3] for number, report in reports.items() if now - report[3] > UNHEARD_S}

    def _gone(self) -> dict[str, float]:
        """The hosts that nothing is heard of, and for how long. Without the store nothing is known of any."""
        if (age_s := self._contact_age_s()) > UNHEARD_S:
            return {"the machine that hosts the rendezvous": age_s}
        reports = dict(self._reports)
        return {reports[number][0]: age_s for number, age_s in self._unheard().items() if number in reports}

    def _stacks_or_not(self, seen: list[Seen]) -> str:
        """The run folder may be what all wait for: then the job ends without them."""
        told: list[str] = []
        writing = threading.Thread(target=lambda: told.append(self._stacks(seen)), daemon=True)
        writing.start()
        writing.join(STACKS_S)
        return told[0] if told else f"The stacks of its ranks could not be written in {STACKS_S:.0f} s"

    def _stacks(self, seen: list[Seen]) -> str:
        """Have all ranks of this machine write Python's stacks, and collect them in the run folder."""
        stacks = []
        for rank in seen:
            if not rank.is_stopped:
                with contextlib.suppress(OSError):
                    os.kill(rank.pid, signal.SIGUSR2)
        time.sleep(1)
        run = ""
        for watched in self._ranks:
            with contextlib.suppress(OSError):
                stacks.append(f"rank {watched.rank}\n{whereabouts.stacks_file(watched.error_file).read_text()}")
            position = whereabouts.read(watched.error_file)
            run = position.run if position else run
        path = Path(run or ".", f"stacks-{self.host}-{datetime.now():%Y%m%d-%H%M%S}.txt")
        try:
            path.write_text("\n".join(stacks))
        except OSError as error:
            return f"The stacks of its ranks could not be written ({error})"
        return f"What its ranks were at: {path}"

    def _end_all(self, code: int, words: str) -> None:
        """When the launcher hangs too."""
        for watched in self._ranks:
            with contextlib.suppress(OSError):
                os.kill(watched.pid, signal.SIGKILL)
        self._say(
            f"\nerror: {words}. The launcher hangs too, so its ranks are killed. What came after the last checkpoint "
            f"is lost; the same command goes on from it"
        )
        os._exit(code)

    # The thread that may hang

    def _exchange(self) -> None:
        number = 0
        while not self._closed:
            time.sleep(REPORT_S)
            store, number = self._store, number + 1
            if not self._ranks or store is None:
                continue
            try:
                store.set(f"{AT}{self._machine}", json.dumps([self.host, self._seen(), number]))
                all_of_them = self._machine == 0 or 0 in self._unheard()
                for machine in range(self._num_machines if all_of_them else 1):
                    if store.check([f"{AT}{machine}"]):
                        self._hear(machine, store.get(f"{AT}{machine}"))
                self._contact_s = time.monotonic()
            except (RuntimeError, ValueError, TypeError):  # the store is gone, or another one is there
                continue

    def _hear(self, machine: int, report: bytes) -> None:
        host, seen, number = json.loads(report)
        before = self._reports.get(machine)
        if before is None or before[2] != number:
            self._reports[machine] = host, [Seen(*rank) for rank in seen], number, time.monotonic()
