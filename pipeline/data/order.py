"""Which samples are trained on at a step: arithmetic on (seed, epoch, position), with no state and no table.

In: the number of samples, the global batch, a seed, a step. Out: sample ids. `rank` and `world` only cut a global batch
into parts, so every number of ranks trains on the same samples in the same steps, and a restart needs no replay.

    order = Order(num_samples=len(index), global_batch=256, seed=0)
    ids = order.batch(step)              # the 256 ids of that step, whoever asks
    mine = rank_part(ids, rank, world)   # this rank's share of them
"""

from dataclasses import dataclass

import numpy as np

from pipeline.errors import UserError
from pipeline.rng import fold, permute
from pipeline.runtime import RankInfo


@dataclass(frozen=True)
class Order:
    """A permutation of all ids per epoch, cut into global batches; the tail that fills no batch waits for other epochs.

    With `shard_sizes` (samples per shard, in id order) and `window` the shuffle is local, for shards that are fetched
    from afar: shards are permuted, then samples within each run of `window` shards, so an epoch visits a shard once. A
    batch is sorted by shard, so that the parts of different ranks come from different shards as far as possible, and N
    machines do not fetch every shard N times.

    Raises UserError if the set is smaller than one global batch.
    """

    num_samples: int
    global_batch: int
    seed: int
    shard_sizes: np.ndarray | None = None
    window: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < self.global_batch:
            raise UserError(
                f"train.global_batch={self.global_batch} is more than the {self.num_samples} samples of data.train. "
                f"Choose a global batch of at most {self.num_samples}"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.num_samples // self.global_batch

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def batch(self, step: int) -> np.ndarray:
        """The int64 ids, shape [global_batch], of this step's global batch."""
        epoch, row = divmod(step, self.steps_per_epoch)
        positions = np.arange(row * self.global_batch, (row + 1) * self.global_batch)
        if self.shard_sizes is None:
            return permute(positions, self.num_samples, fold(self.seed, epoch))
        return self._windowed(positions, epoch)

    def _windowed(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        sizes = np.asarray(self.shard_sizes, np.int64)
        order = permute(np.arange(len(sizes)), len(sizes), fold(self.seed, epoch, 1))
        starts = np.concatenate([[0], np.cumsum(sizes)])  # first id of each shard
        ends = np.cumsum(sizes[order])  # where each visited shard ends, in positions
        edges = np.concatenate([[0], ends[self.window - 1 :: self.window], ends[-1:]])
        shuffled = np.empty_like(positions)
        which = np.searchsorted(edges, positions, side="right") - 1
        for window in np.unique(which):
            rows, first, last = which == window, int(edges[window]), int(edges[window + 1])
            inner = permute(positions[rows] - first, last - first, fold(self.seed, epoch, 2, int(window)))
            shuffled[rows] = first + inner
        shuffled.sort()
        visit = np.searchsorted(ends, shuffled, side="right")
        return starts[order[visit]] + shuffled - (ends[visit] - sizes[order[visit]])


def rank_part(batch: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The contiguous part of a global batch that `rank` of `world` takes; the length must divide by `world`."""
    part = len(batch) // world
    return batch[rank * part : (rank + 1) * part]


def machine_part(batch: np.ndarray, rank_info: RankInfo) -> np.ndarray:
    """The parts of all ranks of this rank's machine, which torchrun numbers in a row."""
    part, first = len(batch) // rank_info.world, rank_info.rank - rank_info.local_rank
    return batch[first * part : (first + rank_info.local_world) * part]


def sequential_batch(step: int, num_samples: int, global_batch: int) -> np.ndarray:
    """Evaluation's order: ids 0, 1, 2, ... with -1 for the rows that pad the last batch."""
    ids = np.arange(step * global_batch, (step + 1) * global_batch)
    return np.where(ids < num_samples, ids, -1)
