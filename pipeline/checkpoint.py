"""Checkpoints: weights, momentum and progress on disk, whole or not there at all.

In: an engine and a `Progress`. Out: RUN/checkpoints/step-00000500/ with
    model.safetensors      weights and buffers
    optimizer.safetensors  the momentum of each parameter, by its name, whatever the ZeRO stage and number of ranks
    progress.json          epoch, step, evaluations, the config, and size and SHA-256 of every other file
Nothing is unpickled; older checkpoints, with DeepSpeed's engine/*.pt, are read with torch's safe loader. A copy of the
state is written beside the training, under a temporary name, values read back and compared, renamed; then the pointers
`latest` and `best` move, and old ones are pruned. Which is best stands in progress.json: `best` says it again, for
people.
"""

import copy
import json
import os
import pickle
import re
import shlex
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.data.manifest import MANIFEST
from pipeline.errors import UserError, first_mistake
from pipeline.files import GO_ON, cannot_write, file_sha256, save_tensors, synced_sha256, write_synced
from pipeline.runtime import Runtime
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
        final = _folder(self.run / "checkpoints", progress.step)
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
        from pipeline.refusal import shared_refusal

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
    best = _folder(root, progress.best_step) if progress.best_step else None
    pointers = {"latest": final.name}
    if best and (best == final or best.is_dir()):
        pointers["best"] = best.name
    for pointer, name in pointers.items():
        write_synced(_staged(root / pointer), name + "\n")  # so that moving it needs no room
    shutil.rmtree(final, ignore_errors=True)  # of an earlier run of the same step
    os.replace(temporary, final)
    for pointer in pointers:
        os.replace(_staged(root / pointer), root / pointer)


def remove_leftovers(run: Path) -> None:
    """Remove what a killed process was writing or pruning: it may fill the disk."""
    for leftover in (run / "checkpoints").glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)


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
        return _best(root)
    folder, pointer = _pointed(root, "latest"), root / "latest"
    if folder is not None and folder.is_dir():
        return folder
    names = ", ".join(step.name for step in _steps(root))
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


def _best(root: Path) -> Path | None:
    """As progress.json of the latest one states it: a kill may have come before `best` moved, or somebody lost it."""
    pointed, newest = _pointed(root, "best"), _pointed(root, "latest")
    try:
        step = _read(newest, verify=False).best_step if newest else None
    except UserError:  # then `best` is all there is
        step = None
    stated = _folder(root, step) if step else None
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
    if STEP.fullmatch(folder.name) and folder != _folder(folder.parent, progress.step):
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
        facts = json.loads(text)
    except RecursionError:
        raise ValueError("its brackets lie too deep") from None
    if not isinstance(facts, dict):
        raise ValueError(f"it holds {facts!r:.80}, not the fields of a checkpoint")
    if missing := {"files", *(field.name for field in fields(Progress))} - LATER - facts.keys():
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    try:
        files = _FILES.validate_python(facts.pop("files"))
        progress = _PROGRESS.validate_python(facts)
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
    for folder in reversed(_steps(root)):
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


def _folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def _steps(root: Path) -> list[Path]:
    """All that look like checkpoints, oldest first."""
    found = [path for path in root.glob("step-*") if STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


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


def _staged(pointer: Path) -> Path:
    return pointer.with_name(f".{pointer.name}")


def _pointed(root: Path, which: str) -> Path | None:
    """The folder that a pointer names, there or not; None if it is lost or holds no name. Without a pointer the staged
    one counts: the first save of a run was killed before it moved."""
    pointer = root / which
    file = pointer if pointer.exists() else _staged(pointer)
    name = file.read_text(errors="replace").strip() if file.is_file() else ""
    return root / name if STEP.fullmatch(name) else None


def _prune(root: Path, keep: int, newest: str) -> None:
    """Keep `keep` checkpoints up to the newest, and the best. Later ones, from before somebody went back, stay."""
    best = _best(root)
    steps = _steps(root)
    names = [folder.name for folder in steps]
    for folder in steps[: names.index(newest) + 1][:-keep]:
        if folder != best:
            folder.rename(root / f".writing-{folder.name}")  # no half of it may look like a checkpoint
    remove_leftovers(root.parent)
