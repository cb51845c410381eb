"""Writing checkpoints: whole or not there at all, beside the training.

In: an engine and a `Progress`, on all ranks. Out: RUN/checkpoints/step-00000500/ (see checkpoint.py). A copy of the
state is written under a temporary name, values read back and compared, renamed; then the pointers `latest` and `best`
move, and old ones are pruned. Which is best stands in progress.json: `best` says it again, for people.
"""

import copy
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from pipeline.checkpoint import (
    OPTIMIZER,
    PROGRESS,
    VELOCITY_LR,
    WEIGHTS,
    Progress,
    best_of,
    folder_of,
    staged,
    steps_of,
)
from pipeline.errors import UserError
from pipeline.files import GO_ON, cannot_write, save_tensors, synced_sha256, write_synced
from pipeline.refusal import shared_refusal
from pipeline.runtime import Runtime

if TYPE_CHECKING:
    from pipeline.optimizer_state import OptimizerState


class Writer:
    """Writes the checkpoints of a run, keeping `keep` and the best: rank 0 copies the state to the host, and a thread
    of it writes, hashes and syncs while training goes on. Only the next one, or `finish`, waits for it."""

    def __init__(self, run: Path, runtime: Runtime, keep: int):
        self.run, self.runtime, self.keep = run, runtime, keep
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def save(self, engine: Any, progress: Progress) -> Path:
        """Begin the checkpoint of `progress.step`, when the one before is whole; called by all ranks together. Returns
        its folder, which is there after `finish`. Raises what `finish` raises, of the one before."""
        from pipeline.optimizer_state import collect

        self.finish()
        final = folder_of(self.run / "checkpoints", progress.step)
        state = collect(engine, keep=self.runtime.is_main)
        if self.runtime.is_main:
            weights = {name: value.detach().to("cpu", copy=True) for name, value in engine.module.state_dict().items()}
            tensors = {WEIGHTS: weights, OPTIMIZER: _as_tensors(state)}
            self._thread = Thread(target=self._write, args=(tensors, copy.deepcopy(progress), final))
            self._thread.start()
        return final

    def _write(self, tensors: dict[str, dict[str, Any]], progress: Progress, final: Path) -> None:
        try:
            _save(tensors, progress, final)
            _prune(final.parent, self.keep, final.name)
        except OSError as error:
            remove_leftovers(self.run)
            needed = sum(value.nbytes for values in tensors.values() for value in values.values())
            self._error = cannot_write(final, error, needed, GO_ON)
        except BaseException as error:  # for the thread that trains
            self._error = error

    def finish(self) -> None:
        """Wait until what was begun is on the disk; called by all ranks together.

        Raises UserError, on all ranks and naming the folder, when the disk is full (no half-written folder stays then)
        or gives back other weights than were written. The one before is still the latest.
        """
        with shared_refusal(self.runtime):
            self.join()
            if error := self._error:
                self._error = None
                raise error

    def join(self) -> None:
        """Wait alone, on the way out after an error: what was begun is still wanted."""
        if self._thread:
            self._thread.join()
            self._thread = None


def _as_tensors(state: "OptimizerState") -> dict[str, Any]:
    import torch

    extra = {} if state.velocity_lr is None else {VELOCITY_LR: torch.tensor(state.velocity_lr, dtype=torch.float64)}
    return {**state.momentum, **extra}


def _save(tensors: dict[str, dict[str, Any]], progress: Progress, final: Path) -> None:
    root = final.parent
    temporary = root / f".writing-{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, values in tensors.items():
        _write(values, temporary / name)
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    sums = {str(path.relative_to(temporary)): [path.stat().st_size, synced_sha256(path)] for path in files}
    write_synced(temporary / PROGRESS, json.dumps({**asdict(progress), "files": sums}, indent=1))
    best = folder_of(root, progress.best_step) if progress.best_step else None
    pointers = {"latest": final.name}
    if best and (best == final or best.is_dir()):
        pointers["best"] = best.name
    for pointer, name in pointers.items():
        write_synced(staged(root / pointer), name + "\n")  # so that moving it needs no room
    shutil.rmtree(final, ignore_errors=True)  # of an earlier run of the same step
    os.replace(temporary, final)
    for pointer in pointers:
        os.replace(staged(root / pointer), root / pointer)


def remove_leftovers(run: Path) -> None:
    """Remove what a killed process was writing or pruning: it may fill the disk."""
    for leftover in (run / "checkpoints").glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write(state: dict[str, Any], path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_tensors(state, path)
    written = load_file(path)
    if not all(torch.equal(_bytes(value), _bytes(written[name])) for name, value in state.items()):
        raise UserError(f"{path}: the disk gave back other values than were written. Check the disk, then start again")


def _bytes(value: Any) -> Any:
    """Of a tensor: NaN is not equal to itself."""
    import torch

    return value.reshape(-1).view(torch.uint8)


def _prune(root: Path, keep: int, newest: str) -> None:
    """Keep `keep` checkpoints up to the newest, and the best. Later ones, from before somebody went back, stay."""
    best = best_of(root)
    steps = steps_of(root)
    names = [folder.name for folder in steps]
    for folder in steps[: names.index(newest) + 1][:-keep]:
        if folder != best:
            folder.rename(root / f".writing-{folder.name}")  # no half of it may look like a checkpoint
    remove_leftovers(root.parent)
