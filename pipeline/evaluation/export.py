"""A classifier as two files that last: weights that any tool reads, and a JSON of what they are.

In: a classifier. Out: OUT.safetensors, with torchvision's names where torchvision has the network, and OUT.json.
"""

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from pipeline.data.index import file_sha256
from pipeline.evaluation.classifier import EXPORTED_BY, Classifier
from pipeline.versions import versions

KEPT = ("data", "model")  # sections of the config that scoring needs
FORGOTTEN = {
    "data": ("train", "validation", "cache"),
    "model": ("weights", "reset_head"),
}  # paths of the training machine


def export(one: Classifier, out: Path) -> Path:
    """Write both, the weights first, each whole or not at all. Returns the JSON's path."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    state = {name: value.detach().cpu().contiguous() for name, value in one.network.state_dict().items()}
    save_file(state, temporary, metadata={"format": "pt"})
    os.replace(temporary, out)
    tree = one.config.model_dump(mode="json")
    config: dict[str, Any] = {
        section: {key: value for key, value in tree[section].items() if key not in FORGOTTEN[section]}
        for section in KEPT
    }
    facts = {
        EXPORTED_BY: "tencrop",
        "source": one.source,
        "weights_sha256": file_sha256(out),
        "num_outputs": one.num_outputs,
        "classes": list(one.classes) if one.classes else None,
        "step": one.step,
        "epoch": one.epoch,
        "config": config,
        "versions": versions(),
    }
    beside = out.with_suffix(".json")
    temporary = beside.with_name(f".{beside.name}.tmp")
    temporary.write_text(json.dumps(facts, indent=1) + "\n")
    os.replace(temporary, beside)
    return beside
