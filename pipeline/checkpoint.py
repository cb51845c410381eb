"""Checkpoints: engine state and progress on disk, whole or not there at all.

In: an engine and a `Progress`. Out: RUN/checkpoints/step-00000500/ with
    engine/            DeepSpeed's own files: weights, momentum
    model.safetensors  the weights alone, which any tool reads without unpickling
    progress.json      epoch, step, evaluations, the config, and size and SHA-256 of every other file
Written under a temporary name, its weights read back and compared, renamed; `latest` moves last; old ones are pruned.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.index import file_sha256
from pipeline.errors import UserError
from pipeline.runtime import Runtime

PROGRESS = "progress.json"
WEIGHTS = "model.safetensors"


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
    classes: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)


def save(engine: Any, progress: Progress, run: Path, runtime: Runtime, keep: int) -> Path:
    """Write the checkpoint of `progress.step`; called by all ranks together. Returns its folder.

    Raises UserError, naming the folder, when the disk gives back other weights than were written.
    """
    import torch.distributed as dist

    root = run / "checkpoints"
    final = root / f"step-{progress.step:08d}"
    temporary = root / f".writing-step-{progress.step:08d}"
    if runtime.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(temporary), tag="engine", save_latest=False)
    if runtime.is_main:
        _write_weights(engine.module, temporary / WEIGHTS)
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


def load(engine: Any, folder: Path) -> None:
    """Bring the engine's weights and momentum back; called by all ranks, after `read` has found the files whole."""
    from pipeline import optim

    loaded, _ = engine.load_checkpoint(str(folder), tag="engine", load_lr_scheduler_states=False)
    if loaded is None:
        raise UserError(f"{folder}: DeepSpeed found no state there. Remove this folder to start from an older one")
    optim.settle(engine.optimizer)


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


def _write_weights(module: Any, path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    save_file(state, path)
    written = load_file(path)
    if not all(torch.equal(value, written[name]) for name, value in state.items() if not value.isnan().any()):
        raise UserError(f"{path}: the disk gave back other weights than were written. Check the disk, then start again")


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
