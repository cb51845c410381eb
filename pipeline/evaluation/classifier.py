"""Any classifier, by what people call it: where its weights are, how its images are prepared, what its outputs mean.

    runs/vgg16                          a run folder: its last checkpoint (or its best one)
    runs/vgg16/checkpoints/step-...     one of its checkpoints
    vgg16.safetensors                   what launch.export wrote, with vgg16.json beside it
    torchvision:vgg16                   torchvision's published weights, fetched if need be
    torchvision:vgg16=vgg16.pth         a state dict of torchvision's network; so are vgg16=FILE and the like
    package.module:factory=FILE         a function of your own, called with num_classes, and a state dict

Out: a `Classifier`, on the CPU. Weights are read without running what is in them. Raises UserError that names the file.
"""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.build import check_name
from models.weights import head_of, load_weights, published_file, read_weights, torchvision_weights, without_relics
from pipeline import checkpoint, network
from pipeline.config import Config
from pipeline.config_io import apply, parse
from pipeline.errors import UserError
from pipeline.evaluation.published import torchvision_entries
from pipeline.files import file_sha256
from pipeline.locks import lock

CHANGEABLE = ("data", "evaluation", "wandb", "tracking", "train.precision")  # settings that may differ from training's
# Keys of these that training alone reads.
OF_TRAINING = (
    *("data.train", "data.area", "data.aspect", "data.pca", "data.pca_std", "data.shuffle", "data.window_shards"),
    "evaluation.every_epochs",
)
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
EXPORTED_BY = "exported_by"  # the key that an export's JSON is known by


@dataclass(frozen=True)
class Classifier:
    """A network and what is known of it.

    `weights` is the file that they came from, with its checksum; `classes` name the outputs, if that is known; `run` is
    the run's folder if it is one, `step` and `epoch` where its training stood.
    """

    source: str
    network: nn.Module
    config: Config
    num_outputs: int
    classes: tuple[str, ...] | None
    weights: Path
    weights_sha256: str
    run: Path | None = None
    step: int = 0
    epoch: float = 0.0
    wandb_id: str | None = None
    quarantine_fingerprint: str = ""  # of the images that training left out from its start; "" if it is not known


def read(source: str, changes: list[str], best: bool = False) -> Classifier:
    """The classifier called `source`, its settings changed by key=value words; of a run the last checkpoint, or the
    best. The network has been tried on one crop."""
    loaded = _read_any(source, changes, best)
    px = loaded.config.data.crop_px
    try:
        with torch.inference_mode():
            scores = loaded.network.eval()(torch.zeros(1, 3, px, px))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{source}: the network refuses a crop of data.crop_px={px}: {error}") from None
    if not isinstance(scores, torch.Tensor) or scores.ndim != 2:
        raise UserError(f"{source}: the network returns no scores (images, classes), but {type(scores).__name__}")
    if scores.shape[1] != loaded.num_outputs:
        raise UserError(
            f"{source}: the network has {scores.shape[1]} outputs, not {loaded.num_outputs}. "
            f"Say it: model.num_classes={scores.shape[1]}"
        )
    return loaded


def _read_any(source: str, changes: list[str], best: bool) -> Classifier:
    path = Path(source)
    if path.is_dir():
        return _checkpoint(path, changes, best)
    if path.is_file():
        return _export(path, changes)
    name, equals, file = source.partition("=")
    if equals:
        return _state_dict(source, name, Path(file), changes)
    try:
        check_name(name)
    except ValueError as error:
        if ":" in source:
            raise UserError(f"{source}: {error}") from None
        raise UserError(
            f"{source} does not exist. Give a run folder, a checkpoint, an exported .safetensors file, torchvision:"
            f"NAME, or a network and the file of its weights: torchvision:alexnet=alexnet.pth"
        ) from None
    if source.startswith("torchvision:"):
        return _published(source, changes)
    raise UserError(f"{source} is a network without weights. Name their file: {source}=FILE")


def _checkpoint(path: Path, changes: list[str], best: bool) -> Classifier:
    folder = checkpoint.find(path, "best" if best else "latest")
    progress = checkpoint.read(folder)
    config = _config(progress.config, changes, str(folder))
    if config.task != "classification":
        raise UserError(
            f"{path} was trained for task={config.task}, and classifiers are what is scored and exported here. Its own "
            f"scores are in {path}/metrics.jsonl, at each validation; its weights are {folder / checkpoint.WEIGHTS}"
        )
    num_outputs = config.model.num_classes or len(progress.classes)
    return Classifier(
        str(path),
        network.from_checkpoint(folder, config.model, config.data, num_outputs),
        config,
        num_outputs,
        tuple(progress.classes),
        folder / checkpoint.WEIGHTS,
        file_sha256(folder / checkpoint.WEIGHTS),
        folder.parent.parent if folder.parent.name == "checkpoints" else folder,
        progress.step,
        progress.epoch,
        progress.wandb_id,
        progress.quarantine_fingerprint,
    )


def _export(path: Path, changes: list[str]) -> Classifier:
    beside = path.with_suffix(".json")
    try:
        described = json.loads(beside.read_text())
        tree, classes, num_outputs = described["config"], described["classes"], int(described["num_outputs"])
        sha256 = described["weights_sha256"]
        step, epoch, _ = int(described["step"]), float(described["epoch"]), described[EXPORTED_BY]
    except FileNotFoundError:
        if path.suffix not in WEIGHT_FILES:
            raise UserError(
                f"{path} is no file of weights ({', '.join(WEIGHT_FILES)}). Give a run folder, a checkpoint's folder, "
                f"or what launch.export wrote"
            ) from None
        named = shlex.quote(f"torchvision:alexnet={path}")
        raise UserError(
            f"{path} has no {beside.name} beside it, so its network is not known. Name it, for example: {named}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{beside} was not written by launch.export, or is damaged ({error!r})") from None
    if file_sha256(path) != sha256:
        raise UserError(f"{path} and {beside.name} do not belong together (its checksum is another). Export it again")
    config = _config(tree, changes, str(beside))
    built = network.build(config.model, config.data, num_outputs)
    _fit(built, _read(path, str(path)), str(path))
    names = tuple(classes) if classes else None
    return Classifier(str(path), built, config, num_outputs, names, path, sha256, step=step, epoch=epoch)


def _published(source: str, changes: list[str]) -> Classifier:
    name = source.removeprefix("torchvision:")
    try:
        file = published_file(name)
        if not file.exists():
            with _alone(file.parent):
                torchvision_weights(name)
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{source}: {error}") from None
    state = _read(file, source)
    return _of_state(source, source, file, state, changes)


def _state_dict(source: str, name: str, file: Path, changes: list[str]) -> Classifier:
    try:
        check_name(name)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    return _of_state(source, name, file, _read(file, source), changes)


def _of_state(source: str, name: str, file: Path, state: dict[str, torch.Tensor], changes: list[str]) -> Classifier:
    entries = torchvision_entries(name)  # alexnet and most VGGs are torchvision's, whichever way they are called
    entry = next((known for known in entries if known.file == file.name), None)
    entry = entry or next((known for known in entries if known.is_default), None)
    tree = {"data": entry.data if entry else {}, "model": {"name": name}}
    config = _config(tree, changes, source, (*CHANGEABLE, "model"))
    network.check(config.model, config.data)
    if entries:
        state = without_relics(state)
    num_outputs = config.model.num_classes or 1000
    built = network.build(config.model, config.data, num_outputs)
    head = head_of(built)
    if config.model.num_classes is None and head and head[0] in state and len(state[head[0]]) != num_outputs:
        num_outputs = len(state[head[0]])
        built = network.build(config.model, config.data, num_outputs)
    _fit(built, state, source)
    classes = entry.classes if entry and len(entry.classes) == num_outputs else None
    return Classifier(source, built, config, num_outputs, classes, file, file_sha256(file))


def _config(tree: dict[str, Any], changes: list[str], source: str, changeable: tuple[str, ...] = CHANGEABLE) -> Config:
    tree = json.loads(json.dumps(tree))
    for word in changes:
        key = word.partition("=")[0]
        if not any(key == section or key.startswith(f"{section}.") for section in changeable):
            raise UserError(f"{word}: {source} can be scored with other {', '.join(changeable)}, but not with this")
        if key in OF_TRAINING:
            raise UserError(f"{word}: training alone reads {key}. Leave it out")
        apply(tree, word)
    return parse(tree, source, [word.partition("=")[0] for word in changes])


def _read(file: Path, source: str) -> dict[str, torch.Tensor]:
    try:
        return read_weights(file)
    except FileNotFoundError:
        raise UserError(f"{source}: there is no file {file}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{source}: {error}") from None


def _fit(built: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    try:
        load_weights(built, state)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    built.eval()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of a machine fetches, the others find it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".tencrop.lock", "w") as file:
        lock(file)
        yield
