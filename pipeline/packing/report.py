"""What is said of a finished pack: the sets, doubts, the next command, what was left out.

In: what pack.pack returns. Out: lines for people.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import hints
from pipeline.wording import counted


def lines(packed: dict[str, Any], out: Path) -> Iterator[str]:
    """What was made of the sources, and the next command."""
    for name, counts in packed["sets"].items():
        images, shards = counted(counts["images"], "image"), counted(counts["shards"], "shard")
        yield f"{out / name}: {images} in {shards}, {counted(packed['num_classes'], 'class', 'classes')}"
    for doubt in packed["doubts"]:
        yield f"warning: {doubt}"
    if "train" in packed["sets"]:
        config = hints.ours("configs/alexnet.yaml" if shutil.which("nvidia-smi") else "configs/alexnet_cpu.yaml")
        validation = out / "validation" if "validation" in packed["sets"] else "none"
        words = [config, f"data.train={out / 'train'}", f"data.validation={validation}"]
        yield f"next: {hints.script('launch/single_node.sh', *words)}"
    else:
        scored = out / next(iter(packed["sets"]))
        yield f"next: {hints.command('launch.evaluate', 'RUN_OR_NETWORK', '--data', scored)}"
    if packed["kind"] == "WebDataset shards":
        yield f"images were not decoded, only their headers read; to do that: {hints.command('launch.lint', out)}"
    elif packed.get("converted"):
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in packed["converted"].items())
        yield f"stored as PNG, without loss, since training would not decode their bytes as Pillow does: {kinds}"
    if packed["num_rejected"]:
        yield f"{counted(packed['num_rejected'], 'file')} left out, listed in {out / 'rejected.tsv'}"
