"""Checkpoints: weights, momentum and progress on disk, whole or not there at all.

In: RUN/checkpoints/step-00000500/ with
    model.safetensors      weights and buffers
    optimizer.safetensors  the momentum of each parameter, by its name, whatever the ZeRO stage and number of ranks
    progress.json          epoch, step, evaluations, the config, and size and SHA-256 of every other file
Out: a `Progress`, an optimizer's state. Nothing is unpickled; older checkpoints, with DeepSpeed's engine/*.pt, are read
with torch's safe loader. `checkpoint_writer.py` writes them.
"""

import json
import pickle
import re
import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.data.manifest import MANIFEST
from pipeline.errors import UserError, first_mistake
from pipeline.files import file_sha256
from pipeline.wording import few

if TYPE_CHECKING:
    from pipeline.optimizer_state import OptimizerState

PROGRESS = "progress.json"
WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
VELOCITY_LR = "velocity_lr"  # in OPTIMIZER, beside the names of parameters
OLD_ENGINE = "engine/mp_rank_00_model_states.pt"
LATER = {"quarantine_fingerprint"}  # fields that older checkpoints do not have
STEP = re.compile(r"step-\d{8,}")  # a checkpoint's folder


Count = Annotated[int, Field(strict=True, ge=0)]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]


@dataclass
class Progress:
    """Where a run stands: `step` optimizer steps are done. All that a resumed run needs beside the engine's state."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: Count = 0
    epoch: NotNegative = 0.0
    samples_seen: Count = 0
    errors: list[Fraction] = field(default_factory=list)  # the task's headline of every validation, oldest first
    best_error: Fraction | None = None
    best_step: Count | None = None
    wandb_id: str | None = None
    data_fingerprint: str = ""
    quarantine_fingerprint: str = ""  # of the rows that the run leaves out from its start; "" in older checkpoints
    classes: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)


_PROGRESS = TypeAdapter(Progress)
_FILES = TypeAdapter(dict[str, tuple[Count, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]])  # size and SHA-256


def read_optimizer(folder: Path) -> "OptimizerState":
    """The optimizer's state of a checkpoint whose files `read` has found whole. Raises UserError if it has none."""
    import torch
    from safetensors.torch import load_file

    from pipeline.optimizer_state import OptimizerState

    if (folder / OPTIMIZER).is_file():
        state = load_file(folder / OPTIMIZER)
        velocity_lr = state.pop(VELOCITY_LR, None)
        return OptimizerState(state, None if velocity_lr is None else velocity_lr.item())
    old = folder / OLD_ENGINE
    if not old.is_file():
        raise UserError(
            f"{folder} has neither {OPTIMIZER} nor {OLD_ENGINE}: nothing to go on from. {_instead_of(folder)}"
        )
    try:
        saved = torch.load(old, map_location="cpu", weights_only=True)
        module, optimizer, buffers = saved["module"], saved["optimizer"], set(saved["buffer_names"])
        # In groups as optim.build makes them: weights, then biases and normalisation layers.
        names = [name for name in module if name not in buffers]
        names = [name for name in names if module[name].ndim > 1] + [name for name in names if module[name].ndim <= 1]
        if sum(len(group["params"]) for group in optimizer["param_groups"]) != len(names):
            raise ValueError("some of its parameters were frozen, and it does not say which")
        state = {name: optimizer["state"].get(number, {}).get("momentum_buffer") for number, name in enumerate(names)}
    except Exception as error:  # whatever is in the file, torch's safe loader or the lines above say what is wrong
        reason = "it may hold code, which is not run" if isinstance(error, pickle.UnpicklingError) else error
        raise UserError(
            f"{old} cannot be used: {reason}. Start another run from its weights: run=... model.weights={folder}"
        ) from None
    momentum = {name: value for name, value in state.items() if value is not None}
    return OptimizerState(momentum, optimizer["param_groups"][0].get("velocity_lr"))


def find(source: Path, which: str = "latest") -> Path:
    """The checkpoint that `source` means: itself, or the run's `latest` or `best` one. Raises UserError if none."""
    if (source / PROGRESS).exists():
        return source
    folder = latest(source, which)
    if folder is None:
        if which == "best" and latest(source):
            raise UserError(f"{source} was never evaluated, so it has no best checkpoint. Leave --best out")
        if (source / MANIFEST).exists():
            raise UserError(f"{source} is a packed set. To score on it: --data {shlex.quote(str(source))}")
        if runs := sorted(path.parent.name for path in source.glob("*/checkpoints")):
            raise UserError(f"{source} is no run, but holds some: {few(runs)}. Give one of them: {source / runs[0]}")
        what = "has no checkpoint yet" if (source / "config.yaml").exists() else "is neither a run nor a checkpoint"
        raise UserError(f"{source} {what}. Give a run folder (it holds checkpoints/{which}) or a checkpoint's folder")
    return folder


def latest(run: Path, which: str = "latest") -> Path | None:
    """The folder of the newest (or `best`) checkpoint of a run, or None if it has none.

    Raises UserError, offering the newest whole one, if there are checkpoints and `latest` names none of them.
    """
    root = run / "checkpoints"
    if which == "best":
        return best_of(root)
    folder, pointer = _pointed(root, "latest"), root / "latest"
    if folder is not None and folder.is_dir():
        return folder
    names = ", ".join(step.name for step in steps_of(root))
    if not names and (folder is None or not pointer.exists()):
        return None
    if not pointer.exists():
        reason = "is missing"
    elif folder is None:
        held = pointer.read_bytes()[:40] if pointer.is_file() else "a folder"
        reason = f"holds {held!r}, which is no checkpoint's name"
    else:
        reason = f"names {folder.name}, which is not there"
    raise UserError(f"{pointer} {reason} (there are: {names or 'none'}). {_way_out(root)}")


def best_of(root: Path) -> Path | None:
    """As progress.json of the latest one states it: a kill may have come before `best` moved, or somebody lost it."""
    pointed, newest = _pointed(root, "best"), _pointed(root, "latest")
    try:
        step = _read(newest, verify=False).best_step if newest else None
    except UserError:  # then `best` is all there is
        step = None
    stated = folder_of(root, step) if step else None
    return next((folder for folder in (stated, pointed) if folder and folder.is_dir()), None)


def read(folder: Path, verify: bool = True) -> Progress:
    """The progress of a checkpoint; with `verify`, all its files must have the size and checksum written with them.

    Raises UserError, naming the file, for a corrupt checkpoint, and offers the newest whole one.
    """
    try:
        return _read(folder, verify)
    except UserError as error:
        if not (folder / PROGRESS).is_file():
            raise
        raise UserError(f"{error}. {_instead_of(folder)}") from None


def _read(folder: Path, verify: bool) -> Progress:
    """`read` without the next action."""
    path = folder / PROGRESS
    try:
        progress, files = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is no checkpoint: it has no {PROGRESS}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from None
    if STEP.fullmatch(folder.name) and folder != folder_of(folder.parent, progress.step):
        raise UserError(f"{path} is damaged (step={progress.step}, but the folder is {folder.name})")
    for name, (size, sha256) in files.items() if verify else ():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file} is missing, so this checkpoint is corrupt")
        if file.stat().st_size != size or file_sha256(file) != sha256:
            raise UserError(f"{file} is not what was written (its checksum differs): corrupt")
    return progress


def _parse(text: str) -> tuple[Progress, dict[str, tuple[int, str]]]:
    """What is in progress.json. Raises ValueError, naming the field and its value."""
    try:
        tree = json.loads(text)
    except RecursionError:
        raise ValueError("its brackets lie too deep") from None
    if not isinstance(tree, dict):
        raise ValueError(f"it holds {tree!r:.80}, not the fields of a checkpoint")
    if missing := {"files", *(field.name for field in fields(Progress))} - LATER - tree.keys():
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    try:
        files = _FILES.validate_python(tree.pop("files"))
        progress = _PROGRESS.validate_python(tree)
    except ValidationError as error:
        raise ValueError(first_mistake(error)) from None
    if WEIGHTS not in files:
        raise ValueError(f"its files have no {WEIGHTS}")
    if (progress.best_step is None) != (progress.best_error is None) or (progress.best_step or 0) > progress.step:
        raise ValueError(
            f"best_step={progress.best_step}, best_error={progress.best_error} cannot be at step={progress.step}"
        )
    return progress, files


def _instead_of(folder: Path) -> str:
    """The next action when a checkpoint is damaged."""
    return _way_out(folder.parent, folder) if folder.parent.name == "checkpoints" else "Copy it here again"


def _way_out(root: Path, damaged: Path | None = None) -> str:
    """The line that makes the newest whole checkpoint the latest one; every file of it has been looked at."""
    for folder in reversed(steps_of(root)):
        if folder != damaged and _is_whole(folder):
            pointer = shlex.quote(str(root / "latest"))
            return f"To go on from the newest whole one: echo {folder.name} > {pointer}"
    return f"There is no whole one: give another run=..., or remove {root} to start over"


def _is_whole(folder: Path) -> bool:
    try:
        _read(folder, verify=True)
    except (UserError, OSError):
        return False
    return True


def folder_of(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def steps_of(root: Path) -> list[Path]:
    """All that look like checkpoints, oldest first."""
    folders = [path for path in root.glob("step-*") if STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")))


def staged(pointer: Path) -> Path:
    return pointer.with_name(f".{pointer.name}")


def _pointed(root: Path, which: str) -> Path | None:
    """The folder that a pointer names, there or not; None if it is lost or holds no name. Without a pointer the staged
    one counts: the first save of a run was killed before it moved."""
    pointer = root / which
    file = pointer if pointer.exists() else staged(pointer)
    name = file.read_text(errors="replace").strip() if file.is_file() else ""
    return root / name if STEP.fullmatch(name) else None
