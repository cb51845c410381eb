"""Counts and times of training between two logged points: scores, images/s, and what a step waits for.

In: counts of each step, what stopwatches say. Out: a point in the journal, over all ranks, at each `log`.
"""

import math
import resource
import time

import torch
import torch.distributed as dist

from pipeline.config import Config
from pipeline.engine import Stepper
from pipeline.errors import UserError
from pipeline.runtime import Runtime
from pipeline.stopwatch import Stopwatch
from pipeline.tracking import points as keys
from pipeline.tracking.journal import Journal


class Meter:
    """Counts and times since the last logged point, of all ranks together."""

    def __init__(self, config: Config, runtime: Runtime, stepper: Stepper, journal: Journal):
        self.config, self.runtime, self.stepper, self.journal = config, runtime, stepper, journal
        self.task = stepper.task
        self.data_wait = Stopwatch(runtime.device)
        self._clear()

    def _clear(self) -> None:
        self.counts = torch.zeros(self.task.num_counts, dtype=torch.float64, device=self.runtime.device)
        self.steps, self.busy_s = 0, 0.0
        self.skip_time()

    def skip_time(self) -> None:
        """Count no time from the last `add` to here: evaluations and checkpoints are not training."""
        self.since = time.perf_counter()

    def add(self, counts: torch.Tensor) -> None:
        """One step is done: this rank's counts (see Task.counts)."""
        self.counts += counts
        self.steps += 1
        now = time.perf_counter()
        self.busy_s, self.since = self.busy_s + now - self.since, now

    def log(self, step: int, epoch: float, lr: float) -> None:
        """Reduce over ranks, log the point, begin anew. Raises UserError when the loss is no number any more."""
        if self.runtime.on_gpu:  # so that the times are whole
            torch.cuda.synchronize(self.runtime.device)
        self.busy_s += time.perf_counter() - self.since
        measured = self.stepper.communication
        waited_s, communicated_s = self.data_wait.take_s(), measured.take_s() if measured else 0.0
        times = torch.tensor([waited_s, communicated_s], dtype=torch.float64, device=self.runtime.device)
        everything = torch.cat([self.counts, times])
        dist.all_reduce(everything)
        own_s = torch.zeros(self.runtime.world, dtype=torch.float64, device=self.runtime.device)
        own_s[self.runtime.rank] = (self.busy_s - communicated_s if measured else waited_s) / self.steps
        dist.all_reduce(own_s)
        memory_gb = torch.tensor(self._most_memory_gb(), dtype=torch.float64, device=self.runtime.device)
        dist.all_reduce(memory_gb, dist.ReduceOp.MAX)
        wait_s, communication_s = (everything[-2:] / self.runtime.world / self.steps).tolist()
        step_s = self.busy_s / self.steps
        scores = self.task.scores(everything[:-2])
        if not math.isfinite(scores["loss"]):
            raise UserError(
                f"the training loss is {scores['loss']} at step {step}: training diverged. Lower optimizer.lr "
                f"(now {self.config.optimizer.lr:g}) or lengthen schedule.warmup_epochs; the last checkpoint is older"
            )
        communication = {keys.COMMUNICATION_S: communication_s} if measured else {}  # else it counts as computing
        self.journal.log(
            {
                keys.STEP: step,
                keys.EPOCH: epoch,
                **{f"train/{name}": value for name, value in scores.items()},
                keys.LEARNING_RATE: lr,
                keys.IMAGES_PER_S: self.config.train.global_batch / step_s,
                keys.STEP_S: step_s,
                keys.DATA_WAIT_S: wait_s,
                **communication,
                keys.COMPUTE_S: step_s - wait_s - communication_s,
                **({} if self.runtime.world == 1 else self._slowest(own_s)),
                keys.MEMORY_GB: memory_gb.item(),
            }
        )
        self._clear()

    def _slowest(self, own_s: torch.Tensor) -> dict[str, float]:
        most, rank = own_s.max(dim=0)
        return {keys.SLOWEST_RANK: rank.item(), keys.SLOWEST_S: most.item()}

    def _most_memory_gb(self) -> float:
        """10^9 bytes that this rank has had at most."""
        if self.runtime.on_gpu:
            return torch.cuda.max_memory_allocated(self.runtime.device) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
