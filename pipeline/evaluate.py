"""Exact evaluation: every image of a set counted once, at any number of ranks, over one or more views.

In: a network, an index, the names of views. Out: a `Score` for each view. Softmax is averaged over a view's crops
(Krizhevsky et al. 2012, section 4.1); counts are integers, summed on the device and reduced once; the ids that were
seen are checked to be the ids of the set.
"""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist

from pipeline.config import Data
from pipeline.data.index import Index
from pipeline.data.loader import eval_batches
from pipeline.metrics import Score, count, score
from pipeline.runtime import Runtime
from pipeline.views import VIEWS, crops

MAX_ROWS = 256  # crops in one forward pass: ten times the micro-batch of a VGG would need tens of GB


@torch.inference_mode()
def evaluate(
    forward: Callable[[torch.Tensor], torch.Tensor],
    index: Index,
    data: Data,
    views: Iterable[str],
    *,
    runtime: Runtime,
    micro_batch: int,
    bf16: bool,
    advance: Callable[[int], None] = lambda images: None,
) -> dict[str, Score]:
    """The score of each view, the same on all ranks. `forward` takes images to logits, in evaluation mode;
    `advance` is told of the images done, for a progress bar.

    All views share one pass: the crops of the largest are scored, the smaller ones pick theirs. Called by all ranks
    together. Raises RuntimeError if an image was left out or counted twice.
    """
    views = list(views)
    wanted = tuple(sorted({crop for view in views for crop in VIEWS[view]}))
    counts = torch.zeros(len(views), 4, dtype=torch.float64, device=runtime.device)
    seen = torch.zeros(index.num_samples, dtype=torch.float64, device=runtime.device)
    for batch in eval_batches(index, data, place=runtime, device=runtime.device, micro_batch=micro_batch):
        rows = torch.cat(crops(batch.images, data.crop_px, wanted)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(runtime.device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = torch.cat([forward(part) for part in rows.split(MAX_ROWS)])
        log_probabilities = logits.float().log_softmax(dim=1).view(len(wanted), len(batch.labels), -1)
        for number, view in enumerate(views):
            chosen = log_probabilities[[wanted.index(crop) for crop in VIEWS[view]]]
            counts[number] += count(chosen.logsumexp(dim=0) - torch.tensor(len(chosen)).log(), batch.labels)
        ids = torch.from_numpy(batch.ids[batch.ids >= 0]).to(runtime.device)
        seen[ids] += 1
        advance(len(batch.labels) * runtime.world)
    return _reduce(views, counts, seen)


def _reduce(views: list[str], counts: torch.Tensor, seen: torch.Tensor) -> dict[str, Score]:
    everything = torch.cat([counts.flatten(), seen])
    dist.all_reduce(everything)
    counts, seen = everything[: counts.numel()].view_as(counts), everything[counts.numel() :]
    wrong = torch.nonzero(seen != 1).flatten()
    if len(wrong):
        raise RuntimeError(
            f"evaluation is not exact: {len(wrong)} samples not seen once, ids {wrong[:10].tolist()} ..."
        )
    return {view: score(row) for view, row in zip(views, counts, strict=True)}
