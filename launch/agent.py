"""torchrun's agent, which starts and watches the ranks of one machine, with a quick end for all machines.

When a rank fails, the others wait for it in a collective, in C, where Python handles no SIGTERM. torch's own agent
kills those of its machine after 30 s and tells no other machine. This one kills them after `GRACE_S`, and the first
failure goes to all agents through the rendezvous store.

A requested stop, a signal to an agent or to a rank, leaves the ranks `STOP_S` to agree on a step and write their
checkpoint; each then ends with a code of `STOPPED`, each agent with the same code, and nothing starts again. A rank
that a signal ends before that has no such code.
"""

import json
import math
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import DEFAULT_ROLE, RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException

from launch.failure import Failure, cause_first, read
from launch.ranks import Rank
from launch.watch import Watch
from pipeline.runtime import STOP_SIGNALS

STOP_S = int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "110"))  # from a requested stop to SIGKILL
GRACE_S = 4  # from SIGTERM to SIGKILL once a rank has failed
REASON_S = 3  # that a machine whose ranks only lost another one waits to be told why
POLL_S = 0.1
ASK_S = 1.0  # between two looks at what other machines say
# Keys of the store, which is a new one at each restart: the failure, how many machines' ranks have ended, how many know
# that all have.
FAILURE, NUM_ENDED, NUM_SEEN = "tencrop/failure", "tencrop/num_ended", "tencrop/num_seen"
STOPS = {signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
INTERRUPTED = {-number for number in STOPS}  # exit codes of ranks that a signal ended at once
STOPPED = {128 + number for number in STOP_SIGNALS}  # and of ranks that all agreed to stop, and saved (launch.command)
STORE_ERRORS = (RuntimeError, ValueError, TimeoutError)  # the machine that hosts the store is gone


class JobFailed(Exception):
    """With the first failure of the job, whether it was on this machine, and whether its words end the terminal now."""

    def __init__(self, failure: Failure, here: bool, said: bool, exit_code: int):
        super().__init__(failure.words)
        self.failure, self.here, self.said, self.exit_code = failure, here, said, exit_code


class Agent(LocalElasticAgent):
    _first: Failure | None = None
    _asked_s = 0.0
    _late = ""  # why a requested stop did not end the ranks

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self._watch = Watch()
        self._counted: set[str] = set()  # the keys of the store that this agent has counted itself in

    def run(self, role: str = DEFAULT_ROLE) -> RunResult:
        """Raises JobFailed when a rank failed, SignalException after a requested stop."""
        try:
            result = super().run(role)
        except SignalException as stopped:
            self._meet(GRACE_S if self._failures() else STOP_S)
            done = [rank.proc.poll() for rank in self._ranks()] == [0] * self._worker_group.spec.local_world_size
            if done and not self._heard(at_once=True):
                return RunResult(WorkerState.SUCCEEDED, {})  # it came too late: they are done
            if failures := self._failures(interrupted=False):
                code = 128 + stopped.sigval if failures[0].lost_peer else failures[0].exit_code
                raise self._job_failed(failures[0], code) from stopped
            if self._late:
                print(f"\nerror: {self._late}", file=sys.stderr, flush=True)
            raise
        if result.is_failed() and (first := self._first):
            self._meet(GRACE_S + REASON_S)
            raise self._job_failed(first, first.exit_code)
        return result

    def _job_failed(self, first: Failure, exit_code: int) -> JobFailed:
        here = any(worker.global_rank == first.rank for worker in self._worker_group.workers)
        spoken = {each.words for each in self._failures(interrupted=False) if each.told}
        return JobFailed(first, here, spoken == {first.words}, exit_code)

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        # Else a restart's ranks get the store of those before them and call the dead.
        handler: Any = worker_group.spec.rdzv_handler
        handler._shared_tcp_store_server = handler._bootstrap_store_info = None
        self._watch.joining(handler)
        super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._first = None
        self._counted.clear()
        started = super()._start_workers(worker_group)
        assert self._pcontext
        ranks = [
            Rank(worker.global_rank, rank.proc.pid, self._pcontext.error_files[local_rank])
            for local_rank, (worker, rank) in enumerate(zip(worker_group.workers, self._ranks(), strict=True))
        ]
        self._watch.started(ranks, self._store, worker_group.group_rank or 0, worker_group.group_world_size or 1)
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = [rank.proc.poll() for rank in self._ranks()]
        failures = self._failures()
        heard = self._heard()
        if failures or heard or self._watch.verdict:
            self._end(failures[0] if failures else self._watch.verdict, heard)
        elif stopped := STOPPED.intersection(codes):
            raise SignalException("all ranks stop", signal.Signals(min(stopped) - 128))
        elif None in codes:
            return RunResult(WorkerState.HEALTHY)  # torch would look again, and end the job its way on what we missed
        elif not any(codes) and (others := self._of_others()):
            self._first = others
            self._remaining_restarts = 0 if others.final else self._remaining_restarts
            return RunResult(WorkerState.FAILED)
        return super()._monitor_workers(worker_group)

    def _end(self, own: Failure | None, heard: Failure | None) -> None:
        """End the ranks of this machine, and settle with the other machines which failure was the first."""
        self._watch.ending()
        if own and not own.lost_peer:
            self._tell(own)
        self._shutdown()
        if own and own.lost_peer:
            own = self._failures(interrupted=False)[0]  # the one that it lost may have been seen to end only later
            deadline = time.monotonic() + REASON_S
            while own.lost_peer and not heard and time.monotonic() < deadline:
                time.sleep(POLL_S)
                heard = self._heard(at_once=True)
            told = self._tell(own)
            own = told if own.lost_peer else own
        self._first = own or heard
        if heard and heard.final:
            self._remaining_restarts = 0

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int | None = None) -> None:
        if isinstance(sys.exception(), SignalException):
            self._stop(death_sig, STOP_S)
        if self._pcontext:  # torch 2.11 takes no timeout, and would leave them 30 s
            self._pcontext.close(death_sig, GRACE_S)
        super()._shutdown(death_sig)

    def _stop(self, number: signal.Signals, timeout_s: float) -> None:
        """Ask the ranks to stop, and give them time for a checkpoint, unless one fails meanwhile, here or elsewhere."""
        self._watch.obeyed()
        for again in STOPS - {signal.SIGKILL}:
            signal.signal(again, signal.SIG_IGN)  # ours too would only cut off what the first one has begun
        ranks = self._ranks()
        codes = [rank.proc.poll() for rank in ranks]
        for rank in ranks if not STOPPED.intersection(codes) else ():  # else all know, and have saved already
            if rank.proc.poll() is None:
                rank.close(death_sig=number)
        deadline = time.monotonic() + timeout_s
        while running := [local_rank for local_rank, rank in enumerate(ranks) if rank.proc.poll() is None]:
            if self._failures(interrupted=False) or self._heard():
                break
            hangs = self._watch.hangs()
            if hangs or time.monotonic() > deadline:
                late = [self._worker_group.workers[local_rank].global_rank for local_rank in running]
                why = f"the job hangs: {hangs}" if hangs else f"rank {late} did not end in {timeout_s:.0f} s"
                self._late = (
                    f"{why}. {number.name} killed it: what came after the last checkpoint is lost. "
                    f"The same command goes on from it"
                )
                self._tell(Failure(late[0], self._watch.host, 128 + number, self._late, at=time.time(), stalled=True))
                break
            time.sleep(POLL_S)
        failures = self._failures(interrupted=False)
        if not failures and all(rank.proc.poll() for rank in ranks):
            failures = self._failures()  # stopped before they could agree with other machines' ranks, which wait
        if failures:
            self._tell(replace(failures[0], final=True))

    def _ranks(self) -> list[Any]:
        """The processes, by local rank; none before they are started."""
        handlers = getattr(self._pcontext, "subprocess_handlers", {})
        return [handlers[local_rank] for local_rank in sorted(handlers)]

    def _failures(self, interrupted: bool = True) -> list[Failure]:
        """The ranks of this machine that have failed, causes before effects; with those that a signal has ended at once
        if `interrupted`."""
        failures = []
        for local_rank, rank in enumerate(self._ranks()):
            code = rank.proc.poll()
            if code and code not in STOPPED and (interrupted or code not in INTERRUPTED):
                assert self._pcontext
                file = Path(self._pcontext.error_files[local_rank])
                global_rank = self._worker_group.workers[local_rank].global_rank
                failures.append(read(file, code, global_rank, final=self._remaining_restarts == 0))
        return sorted(failures, key=cause_first)

    def _tell(self, failure: Failure) -> Failure:
        """Tell the other machines, unless one was faster. Returns the failure that they know of."""
        if self._store is None:
            return failure
        try:
            return _parse(self._store.compare_set(FAILURE, "", json.dumps(asdict(failure))))
        except STORE_ERRORS:
            return failure

    def _heard(self, at_once: bool = False) -> Failure | None:
        """What another machine has told; asked once in `ASK_S`."""
        if self._store is None or (time.monotonic() - self._asked_s < ASK_S and not at_once):
            return None
        self._asked_s = time.monotonic()
        try:
            return _parse(self._store.get(FAILURE)) if self._store.check([FAILURE]) else None
        except STORE_ERRORS:
            return None

    def _of_others(self) -> Failure | None:
        """The ranks of this machine are done; wait for those of the others. Returns what keeps them from it."""
        met = self._meet(math.inf, unless_failed=True)
        if (heard := self._heard(at_once=True)) or met:
            return heard
        lost = self._watch.lost() or "the machine that hosts the rendezvous has gone"
        words = (
            f"the ranks of this machine are done, but {lost}. Start the same command again: it goes on, or says that "
            f"the run is finished"
        )
        rank = self._worker_group.workers[0].global_rank
        return Failure(rank, self._watch.host, 1, words, at=time.time(), stalled=True)

    def _exit_barrier(self) -> None:
        """`_of_others` has waited."""

    def _meet(self, timeout_s: float, unless_failed: bool = False) -> bool:
        """Wait until all machines' ranks have ended. Returns whether they have; no longer once a machine has gone."""
        deadline = time.monotonic() + timeout_s
        try:
            while not self._all_have(NUM_ENDED):
                if time.monotonic() > deadline or (unless_failed and self._heard()) or self._watch.lost():
                    return False
                time.sleep(POLL_S)
        except STORE_ERRORS:
            return False
        deadline = time.monotonic() + REASON_S
        with suppress(*STORE_ERRORS):  # an agent that hosts the store must leave last, when all have seen that
            while not self._all_have(NUM_SEEN) and time.monotonic() < deadline:
                time.sleep(POLL_S)
        return True

    def _all_have(self, key: str) -> bool:
        """Whether the agents of all machines have come here. Counts this one the first time."""
        if self._store is None:
            return True
        count = self._store.add(key, int(key not in self._counted))
        self._counted.add(key)
        return count >= self._worker_group.group_world_size


def _parse(text: bytes) -> Failure:
    return Failure(**json.loads(text))
