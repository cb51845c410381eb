"""A classifier as two files that last: weights that any tool reads, and a JSON of what they are.

In: a classifier. Out: OUT.safetensors, with torchvision's names where torchvision has the network, and OUT.json.
"""

import json
from pathlib import Path
from typing import Any

import torch

from models.weights import to_torchvision
from pipeline import network
from pipeline.config_io import resolved
from pipeline.errors import UserError
from pipeline.evaluation.classifier import EXPORTED_BY, Classifier
from pipeline.files import AGAIN, file_sha256, replace, room, save_tensors, whole
from pipeline.versions import versions

# What scoring needs of a config; paths of the training machine stay there.
KEPT = {
    "data": lambda key: key not in ("train", "validation", "cache"),
    "model": lambda key: key not in ("weights", "reset_head", "grow_from"),
    "evaluation": lambda key: key == "corners",
    "train": lambda key: key == "precision",
}


def export(classifier: Classifier, out: Path) -> tuple[Path, str]:
    """Write both, the weights first, each whole or not at all. Returns the JSON's path, and the Python that loads them.

    Raises UserError if a JSON lies there that is no export's, and on a full disk.
    """
    beside = out.with_suffix(".json")
    if beside.exists() and not _is_export(beside):
        raise UserError(f"{beside} is there and was not written by launch.export. Give another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Copies, since the format has no word for tensors that share memory.
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in classifier.network.state_dict().items()
    }
    with room(out, sum(value.nbytes for value in state.values()), AGAIN), whole(out) as temporary:
        save_tensors(state, temporary, {"format": "pt"})
    tree = resolved(classifier.config)
    config: dict[str, Any] = {
        section: {key: value for key, value in tree[section].items() if keeps(key)} for section, keeps in KEPT.items()
    }
    described = {
        EXPORTED_BY: "tencrop",
        "source": classifier.source,
        "weights_sha256": file_sha256(out),
        "num_outputs": classifier.num_outputs,
        "classes": list(classifier.classes) if classifier.classes else None,
        "step": classifier.step,
        "epoch": classifier.epoch,
        "config": config,
        "versions": versions(),
    }
    replace(
        beside, (json.dumps(described, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace"), AGAIN
    )
    return beside, loading(classifier, out)


def loading(classifier: Classifier, out: Path) -> str:
    """Lines of Python that give the network its weights: with torchvision's constructor where that builds it."""
    name = classifier.config.model.name.removeprefix("torchvision:")
    try:
        to_torchvision(classifier.network, classifier.config.model.name, classifier.num_outputs)
        builds = [
            "plain torch loads it:",
            "import safetensors.torch, torchvision",
            f"model = torchvision.models.{name}(num_classes={classifier.num_outputs})",
        ]
    except ValueError:
        settings = network.settings(classifier.config.model, classifier.config.data)
        words = "".join(f", {key}={value!r}" for key, value in settings.items())
        builds = [
            "torchvision has no such network; these lines load it, in this project's folder:",
            "import safetensors.torch",
            "from models.build import build",
            f"model = build({classifier.config.model.name!r}, {classifier.num_outputs}{words})",
        ]
    return "\n".join([*builds, f"model.load_state_dict(safetensors.torch.load_file({str(out)!r}))"])


def _is_export(path: Path) -> bool:
    try:
        return EXPORTED_BY in json.loads(path.read_text())
    except (ValueError, TypeError, OSError):
        return False
