"""The loop of a peer: the same network, momentum SGD, AMP on a GPU, over the peer's own loader.

Labels are fixed and say nothing: the loaders of the contest hand over images alone, and labels cost nobody anything.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from models.build import build
from pipeline.bench.contestant import LR, SEED, Feed, Task, versions

NUM_CLASSES = 1000


def over(loader: Feed, task: Task, *, dtype: torch.dtype, channels_last: bool) -> Feed:
    """Train over a loader's images; in `dtype` on a GPU (float16 with a GradScaler), in float32 on a CPU."""
    torch.manual_seed(SEED)
    torch.backends.cudnn.benchmark = True
    model = build(task.model, NUM_CLASSES).to(task.device).train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    scaler = torch.amp.GradScaler(task.device, enabled=task.on_gpu and dtype == torch.float16)
    labels = torch.randint(0, NUM_CLASSES, (task.batch,), device=task.device)

    def steps() -> Iterator[None]:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        for batch in loader.batches:
            images = batch.to(task.device, non_blocking=True).contiguous(memory_format=layout)
            with torch.autocast(task.device, dtype=dtype, enabled=task.on_gpu):
                loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            yield None

    return Feed(steps(), loader.ahead, f"{loader.versions}, {versions('torch')}", makes_batches=False)
