"""Where this process runs: rank, world and device, from torchrun's environment, and the way in and out of the group.

In: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE as torchrun sets them (none of them: one process alone). Out: a
`Runtime` that is handed on as an argument; nothing else looks at the environment.

    with runtime.start() as rt:
        print(rt.rank, rt.world, rt.device)
"""

import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import builds
from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
WAIT_S = 10.0  # that a wait for data may go on after a signal
POLL_S = 0.05  # about, between two questions whether any rank wants to stop
MOST_STEPS = 20  # between them: steps may become slow, and a signal leaves two minutes


@dataclass(frozen=True)
class RankInfo:
    """Rank and world over all machines; local_rank and local_world within this one."""

    rank: int
    world: int
    local_rank: int
    local_world: int


@dataclass(frozen=True)
class Runtime(RankInfo):
    device: "torch.device"
    control: Any  # a gloo group for flags that must not wait for the GPU; None in one process

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


def rank_info() -> RankInfo:
    """torchrun's environment, or one process if it has no RANK; no torch is needed. UserError if half is missing."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "RANK" not in os.environ:
        return RankInfo(0, 1, 0, 1)
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise UserError(f"RANK is set, but {', '.join(missing)} not. Start through torchrun")
    return RankInfo(*(int(os.environ[name]) for name in names))


def has_gpu() -> bool:
    """Whether torch finds a GPU. UserError if there are some that torch or DALI cannot use, or DALI is missing."""
    import torch

    builds.require_dali()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        builds.require_dali_for(torch.version.cuda)
    else:
        reason = " ".join(str(warning.message).partition(" (Triggered")[0] for warning in told)
        builds.require_usable_gpus(torch.__version__, torch.version.cuda, reason)
    return usable


def settle_bits() -> None:
    """Let a product of matrices have the same bits on any number of threads, before the first one is computed.

    MKL splits sums by the number of threads on Intel's processors (a linear layer of 9216 inputs and 10 rows differs),
    unless its strict mode is asked for, which costs nothing (128 rows of 9216 x 4096: 37.8 ms, by default 46.2, on two
    busy cores). On AMD's it has no such mode and was not seen to need one. What MKL_CBWR says already stays.
    """
    try:
        words = set(Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].split())
    except OSError:
        return
    widest = next((name for name in ("avx512f", "avx2") if name in words), None)
    if "GenuineIntel" in words and widest:
        os.environ.setdefault("MKL_CBWR", f"{widest.removesuffix('f').upper()},STRICT")


@contextmanager
def start() -> Iterator[Runtime]:
    """Join the process group and leave it again; a process alone is a group of one.

    The device is the GPU numbered by the local rank where there is one, else the CPU. Raises UserError for more
    processes than GPUs, and for GPUs that torch or DALI cannot use.
    """
    import torch
    import torch.distributed as dist

    settle_bits()
    where = rank_info()
    on_gpu = has_gpu()
    if on_gpu and where.local_world > torch.cuda.device_count():
        raise UserError(
            f"{where.local_world} processes on this machine, but {torch.cuda.device_count()} GPUs. "
            f"Start one process a GPU (NPROC={torch.cuda.device_count()} launch/single_node.sh ...)"
        )
    device = torch.device("cuda", where.local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    options: dict[str, Any] = {"backend": "nccl" if on_gpu else "gloo", "timeout": timedelta(minutes=30)}
    if where.world == 1 and "RANK" not in os.environ:
        options |= {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    if on_gpu:
        options["device_id"] = device
    dist.init_process_group(**options)
    try:
        control = dist.new_group(backend="gloo") if where.world > 1 else None
        yield Runtime(where.rank, where.world, where.local_rank, where.local_world, device, control)
    finally:
        if sys.exc_info()[0] is None:
            # After an error the others may be gone, and this would wait for them. DeepSpeed must forget its groups too.
            deepspeed = sys.modules.get("deepspeed.comm")
            (deepspeed if deepspeed and deepspeed.is_initialized() else dist).destroy_process_group()


def seed_everything(seed: int) -> None:
    """Python's, NumPy's and torch's generators, on all devices."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class StopRequest:
    """Whether Ctrl-C, SIGTERM or SIGUSR1 reached any rank, or one refuses to go on, agreed between all ranks without
    waiting for the GPU.

    Ranks are not in the same step when a signal comes. So every few steps `poll` starts a reduction over the CPU group
    and returns the answer to the one before, which all ranks have in the same step. A reduction takes 2 ms at 64 ranks
    and 40 ms at 1,000 (an estimate: a ring of gloo's), so there is about one in POLL_S, of which the slowest rank's
    steps decide; the number of steps until the next is agreed in the same reduction.
    """

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.signal: signal.Signals | None = None  # that reached this rank or, once `poll` has said so, any
        self.refusal: str | None = None  # why this rank will not go on
        self.save_due = False  # this rank's clock asks for a checkpoint
        self.save_now = False  # all ranks write one after this step, as `poll` has agreed
        self._waits = False
        self._pending: Any = None
        self._steps_left, self._since = 1, time.monotonic()
        self._steps = 1  # between two reductions
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)
        signal.signal(signal.SIGALRM, self._give_up)

    def _receive(self, number: int, frame: Any) -> None:
        if self.signal and "RANK" not in os.environ:
            raise KeyboardInterrupt  # a person who cannot wait; torchrun hands each Ctrl-C on a second time
        self.signal = signal.Signals(number)
        if self._waits:
            signal.setitimer(signal.ITIMER_REAL, WAIT_S)

    def _give_up(self, number: int, frame: Any) -> None:
        raise UserError(
            f"stopped by {signal.Signals(self.signal or number).name} while waiting for data, so this step could not "
            f"end. What came after the last checkpoint is lost; the same command goes on from it"
        )

    def refuse(self, reason: str) -> None:
        """End the run as a signal does, with a checkpoint; the caller of the loop tells the reason."""
        self.refusal = self.refusal or reason

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what may never come, such as a shard of a dead server. Raises UserError `WAIT_S` after a signal."""
        self._waits = True
        if self.signal:
            signal.setitimer(signal.ITIMER_REAL, WAIT_S)
        try:
            yield
        finally:
            self._waits = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def poll(self) -> bool:
        """Whether all ranks stop after this step; called by all of them in each step."""
        if self.runtime.control is None:
            self.save_now, self.save_due = self.save_due, False
            return bool(self.signal or self.refusal)
        self.save_now = False
        self._steps_left -= 1
        if self._steps_left:
            return False
        import torch
        import torch.distributed as dist

        now = time.monotonic()
        step_s, self._since = (now - self._since) / self._steps, now
        answer = self._finish()
        # The slowest rank's number of steps counts: of negative numbers, MAX is the one nearest to 0.
        steps = max(1, min(MOST_STEPS, int(POLL_S / max(step_s, 1e-6))))
        flags = torch.tensor([self.signal or 0, self.refusal is not None, self.save_due, -steps])
        self.save_due = False
        work = dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.runtime.control, async_op=True)
        self._pending = (work, flags)
        self._steps_left = self._steps
        return answer

    def any_refusal(self) -> str | None:
        """The refusal of the first rank that has one; called by all ranks together once `poll` has answered yes."""
        import torch.distributed as dist

        if self.runtime.control is None:
            return self.refusal
        refusals: list[str | None] = [None] * self.runtime.world
        dist.all_gather_object(refusals, self.refusal, group=self.runtime.control)
        return next((refusal for refusal in refusals if refusal), None)

    def _finish(self) -> bool:
        if self._pending is None:
            return False
        work, flags = self._pending
        self._pending = None
        work.wait()
        number, refused, due, steps = flags.tolist()
        self.save_now = bool(due)
        if number:
            self.signal = signal.Signals(number)
        self._steps = -steps
        return bool(number or refused)

    def close(self) -> None:
        """Finish what is under way and give the signals back. Under torchrun, once they have stopped the run, they do
        nothing: what is left takes seconds, and a second signal would only cut it off."""
        self._finish()
        ignored = self.signal and "RANK" in os.environ
        for number in STOP_SIGNALS:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, signal.SIG_IGN if ignored else default)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
