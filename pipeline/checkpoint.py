"""Checkpoints: weights, momentum and progress on disk, whole or not there at all.

In: an engine and a `Progress`. Out: RUN/checkpoints/step-00000500/ with
    model.safetensors      weights and buffers
    optimizer.safetensors  the momentum of each parameter, by its name, whatever the ZeRO stage and number of ranks
    progress.json          epoch, step, evaluations, the config, and size and SHA-256 of every other file
Nothing is unpickled; older checkpoints, with DeepSpeed's engine/*.pt, are read with torch's safe loader. Written under
a temporary name, values read back and compared, renamed; `latest` moves last; old ones are pruned.
"""

import json
import os
import pickle
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.index import file_sha256
from pipeline.errors import UserError
from pipeline.runtime import Runtime

if TYPE_CHECKING:
    from pipeline.optimizer_state import OptimizerState

PROGRESS = "progress.json"
WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
VELOCITY_LR = "velocity_lr"  # in OPTIMIZER, beside the names of parameters
OLD_ENGINE = "engine/mp_rank_00_model_states.pt"


@dataclass
class Progress:
    """Where a run stands: `step` optimizer steps are done. All that a resumed run needs beside the engine's state."""

    step: int = 0
    epoch: float = 0.0
    samples_seen: int = 0
    errors: list[float] = field(default_factory=list)  # validation top-1 error of every evaluation, oldest first
    best_error: float | None = None
    best_step: int | None = None
    wandb_id: str | None = None
    data_fingerprint: str = ""
    quarantine_fingerprint: str = ""  # of the rows that the run leaves out from its start; "" in older checkpoints
    classes: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)


def save(engine: Any, progress: Progress, run: Path, runtime: Runtime, keep: int) -> Path:
    """Write the checkpoint of `progress.step`; called by all ranks together. Returns its folder.

    Raises UserError, naming the folder, when the disk gives back other weights than were written.
    """
    import torch
    import torch.distributed as dist

    from pipeline.optimizer_state import collect

    root = run / "checkpoints"
    final = root / f"step-{progress.step:08d}"
    temporary = root / f".writing-step-{progress.step:08d}"
    if runtime.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    state = collect(engine, keep=runtime.is_main)
    if runtime.is_main:
        _write(engine.module.state_dict(), temporary / WEIGHTS)
        extra = {} if state.velocity_lr is None else {VELOCITY_LR: torch.tensor(state.velocity_lr, dtype=torch.float64)}
        _write({**state.momentum, **extra}, temporary / OPTIMIZER)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        sums = {str(path.relative_to(temporary)): [path.stat().st_size, _synced_sha256(path)] for path in files}
        _write_json(temporary / PROGRESS, {**asdict(progress), "files": sums})
        shutil.rmtree(final, ignore_errors=True)  # of an earlier run of the same step
        os.replace(temporary, final)
        _point(root / "latest", final.name)
        if progress.best_step == progress.step:
            _point(root / "best", final.name)
        _prune(root, keep)
    dist.barrier()
    return final


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
        raise UserError(f"{folder} has neither {OPTIMIZER} nor {OLD_ENGINE}: nothing to go on from. {_way_out(folder)}")
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
    found = {name: value for name, value in state.items() if value is not None}
    return OptimizerState(found, optimizer["param_groups"][0].get("velocity_lr"))


def find(source: Path, which: str = "latest") -> Path:
    """The checkpoint that `source` means: itself, or the run's `latest` or `best` one. Raises UserError if none."""
    if (source / PROGRESS).exists():
        return source
    folder = latest(source, which)
    if folder is None:
        if which == "best" and latest(source):
            raise UserError(f"{source} was never evaluated, so it has no best checkpoint. Leave --best out")
        what = "has no checkpoint yet" if (source / "config.yaml").exists() else "is neither a run nor a checkpoint"
        raise UserError(f"{source} {what}. Give a run folder (it holds checkpoints/{which}) or a checkpoint's folder")
    return folder


def latest(run: Path, which: str = "latest") -> Path | None:
    """The folder of the newest (or `best`) checkpoint of a run, or None. Raises UserError if it is gone."""
    pointer = run / "checkpoints" / which
    if not pointer.exists():
        return None
    folder = pointer.parent / pointer.read_text().strip()
    if not folder.is_dir():
        others = ", ".join(sorted(path.name for path in pointer.parent.glob("step-*"))) or "none"
        raise UserError(f"{pointer} names {folder.name}, which is not there (there are: {others}). Write one into it")
    return folder


def read(folder: Path, verify: bool = True) -> Progress:
    """The progress of a checkpoint; with `verify`, all its files must have the size and checksum written with them.

    Raises UserError, naming the file, for a corrupt checkpoint.
    """
    path = folder / PROGRESS
    try:
        facts = json.loads(path.read_text())
        files = {name: (int(size), str(sha256)) for name, (size, sha256) in facts.pop("files").items()}
        progress = Progress(**facts)
    except FileNotFoundError:
        raise UserError(f"{folder} is no checkpoint: it has no {PROGRESS}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}). {_way_out(folder)}") from None
    for name, (size, sha256) in files.items() if verify else ():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file} is missing, so this checkpoint is corrupt. {_way_out(folder)}")
        if file.stat().st_size != size or file_sha256(file) != sha256:
            raise UserError(f"{file} is not what was written (its checksum differs): corrupt. {_way_out(folder)}")
    return progress


def _way_out(folder: Path) -> str:
    older = sorted(path.name for path in folder.parent.glob("step-*") if path.name < folder.name)
    if not older:
        return f"There is no older one: remove {folder.parent} to start over"
    return f"To go on from the one before: echo {older[-1]} > {folder.parent / 'latest'}"


def _write(state: dict[str, Any], path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(state, path)
    written = load_file(path)
    if not all(torch.equal(value, written[name]) for name, value in state.items() if not value.isnan().any()):
        raise UserError(f"{path}: the disk gave back other values than were written. Check the disk, then start again")


def _synced_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return file_sha256(path)


def _write_json(path: Path, value: Any) -> None:
    with open(path, "w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _point(pointer: Path, name: str) -> None:
    temporary = pointer.with_name(f".{pointer.name}")
    temporary.write_text(name + "\n")
    os.replace(temporary, pointer)


def _prune(root: Path, keep: int) -> None:
    kept = {pointer.read_text().strip() for pointer in (root / "latest", root / "best") if pointer.exists()}
    for folder in sorted(root.glob("step-*"))[:-keep]:
        if folder.name not in kept:
            folder.rename(root / f".writing-{folder.name}")  # no half of it may look like a checkpoint
    for leftover in root.glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
