"""Everything that can be refused before a GPU is touched: sets, sizes, the run folder and the checkpoint to go on from.

In: a config and the number of processes. Out: a `RunPlan`, all that training needs. Neither torch nor a GPU is used.
"""

import math
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from models.compiler import c_compiler
from pipeline import builds, checkpoint, network, own
from pipeline.checkpoint import Progress
from pipeline.config import Config
from pipeline.config_io import parse, resolved
from pipeline.data import quarantine
from pipeline.data.bad_images import BadImages
from pipeline.data.index import QUARANTINE, Index
from pipeline.data.manifest import MANIFEST
from pipeline.data.storage.mirror import open_set
from pipeline.errors import UserError
from pipeline.tracking.jsonl import METRICS, read_lines
from pipeline.unread import flat
from pipeline.wording import counted, few

# What a run starts from. A resumed one has its weights already, so another value is told, and changes nothing.
STARTS = ("model.weights", "model.reset_head", "model.grow_from")

# A step means something else when one of these changes, so a run does not go on with another value.
FIXED = ("seed", "train.global_batch", "data.shuffle", "data.crop_px", "optimizer.lr_in_velocity")


@dataclass(frozen=True)
class RunPlan:
    run: Path
    index: Index
    validation: Index | None
    progress: Progress  # of the checkpoint to go on from, or a fresh one
    checkpoint: Path | None
    changes: tuple[str, ...]  # config keys that differ from the checkpoint's, in words


def prepare(config: Config, world: int, verify: bool = True) -> RunPlan:
    """Check everything that the config names. Raises UserError with the file or key, the value and the next action.

    `verify` looks at every shard and checksum; one process a machine is enough for that.
    """
    if config.run is None:
        raise UserError("run is not set: give the run folder, for example run=runs/first")
    if config.data.train is None:
        raise UserError(
            "data.train is not set: give the folder of a packed set, for example data.train=data/mine/train"
        )
    builds.require_dali()
    network.check(config.model, config.data)
    if config.train.compile and not c_compiler():
        raise UserError(
            "train.compile=true, but there is no C compiler here, which torch.compile calls. Install gcc, or set "
            "train.compile=false"
        )
    index = open_set(config.data.train, config.data.cache.expanduser(), verify)
    if index.num_samples < config.train.global_batch:
        raise UserError(
            f"train.global_batch={config.train.global_batch} is more than the {index.num_samples} samples of "
            f"{config.data.train}. Choose at most {max(world, index.num_samples // world * world)}"
        )
    _check_own_code(config, index)
    config.train.split(world)
    if config.data.pca == "shards" and config.data.pca_std and index.rgb_covariance is None:
        raise UserError(
            f"data.pca=shards, but {index.folder} was indexed without RGB statistics. Use data.pca=imagenet, or pack "
            f"the images with launch.pack"
        )
    validation = None
    if config.data.validation:
        validation = open_set(config.data.validation, config.data.cache.expanduser(), verify)
    quarantine.read(index.folder / QUARANTINE)
    if validation is not None:
        BadImages(validation, config.data.max_bad_images)
    _check_cache(config, index, validation)
    if validation is not None and validation.classes != index.classes:
        raise UserError(
            f"data.validation={config.data.validation} has another class list than data.train={config.data.train} "
            f"({len(validation.classes)} and {len(index.classes)} classes). Pack both in one command, or the second "
            f"with {shlex.join(['--classes', config.data.train])}"
        )
    if config.model.num_classes is not None and config.model.num_classes < len(index.classes):
        raise UserError(
            f"model.num_classes={config.model.num_classes}, but {config.data.train} has {len(index.classes)} classes. "
            f"Leave model.num_classes out, or give at least {len(index.classes)}"
        )
    _check_run_folder(config.run)
    folder = checkpoint.latest(config.run)
    if folder is None:
        network.check_start(config.model)
        fresh = Progress(data_fingerprint=index.fingerprint, classes=list(index.classes))
        return RunPlan(config.run, index, validation, fresh, None, ())
    progress = checkpoint.read(folder, verify)
    return RunPlan(config.run, index, validation, progress, folder, _changes(config, index, progress, folder))


def _check_own_code(config: Config, index: Index) -> None:
    """Raises UserError for a recipe, tracker or task of a user's own that is not there, or does not suit the set."""
    if ":" in config.data.recipe:
        own.find("data.recipe", config.data.recipe)
    if ":" in config.tracking:
        own.find_tracker(config.tracking)
    if ":" in config.task:
        from pipeline.data.fields import require  # which needs torch, as the task does

        require(index, own.find_task(config.task).fields, config.task)


def _check_run_folder(run: Path) -> None:
    """Raises UserError if it is no folder, cannot be written, or holds a damaged metrics.jsonl."""
    if run.exists() and not run.is_dir():
        raise UserError(f"run={run} is a file, not a folder. Give another one")
    if packed := next((path for path in (run / MANIFEST, *run.glob(f"*/{MANIFEST}")) if path.exists()), None):
        raise UserError(f"run={run} holds a packed set ({packed}). Give another folder, for example run=runs/first")
    home = next(parent for parent in (run, *run.absolute().parents) if parent.exists())
    if not os.access(home, os.W_OK | os.X_OK):
        raise UserError(f"run={run} cannot be written: {home} does not allow it. Give another run folder")
    if (run / METRICS).exists():
        read_lines(run / METRICS)


def _check_cache(config: Config, index: Index, validation: Index | None) -> None:
    """Raises UserError if data.cache cannot hold what a training step and the next need of remote shards."""
    remote = [loaded for loaded in (index, validation) if loaded and loaded.is_remote]
    if not remote:
        return
    sizes = [shard.size for loaded in remote for shard in loaded.shards]
    needed, why = 4 * max(sizes), "four shards"
    if index.is_remote and config.data.shuffle == "windowed":
        needed, why = 2 * config.data.window_shards * max(sizes), "two windows of data.window_shards"
    elif index.is_remote:
        needed = sum(shard.size for shard in index.shards)
        why = "all shards (or set data.shuffle=windowed), since data.shuffle=global reads from all at every step"
    needed = min(needed, sum(sizes))
    if needed > config.data.cache_gb * 1e9:
        raise UserError(
            f"data.cache_gb={config.data.cache_gb:g} is too small for {config.data.train}: the cache must hold {why}. "
            f"Give at least data.cache_gb={math.ceil(needed / 1e7) / 100:g}"
        )


def num_classes(config: Config, progress: Progress) -> int:
    """Outputs of the network."""
    return config.model.num_classes or len(progress.classes)


def _changes(config: Config, index: Index, progress: Progress, folder: Path) -> tuple[str, ...]:
    start_over = f"or start another run with run=..., since {folder} belongs to the old one"
    if progress.classes != list(index.classes):
        raise UserError(
            f"{folder} was trained on {counted(len(progress.classes), 'class', 'classes')} ({few(progress.classes)}), "
            f"{config.data.train} has {len(index.classes)} ({few(index.classes)}). "
            f"Give the old data.train, {start_over}"
        )
    if progress.data_fingerprint != index.fingerprint:
        raise UserError(
            f"{config.data.train} is not the set that {folder} was trained on (its fingerprint is {index.fingerprint}, "
            f"then it was {progress.data_fingerprint}). Give the old one, {start_over}"
        )
    begun = quarantine.left_out(index, config.run)
    if progress.quarantine_fingerprint not in ("", begun.fingerprint):
        raise UserError(
            f"{begun.file} leaves out other images than {folder} was trained without (fingerprint "
            f"{begun.fingerprint}, then it was {progress.quarantine_fingerprint}). Put back "
            f"{folder.parent.parent / QUARANTINE} as it was, {start_over}"
        )
    old = flat(parse(progress.config, f"{folder}/progress.json").model_dump(mode="json"))
    new = flat(resolved(config))
    changes = []
    for key in new:
        if new[key] == old.get(key) or key in ("run", "data.train", "data.validation"):
            continue
        is_architecture = key.startswith("model.") and key not in STARTS
        moves_windows = key == "data.window_shards" and config.data.shuffle == "windowed"
        if key in FIXED or is_architecture or moves_windows:
            raise UserError(
                f"{key}={new[key]}, but {folder} was trained with {old.get(key)}. Set it back, {start_over}"
            )
        changes.append(f"{key}: {old.get(key)} -> {new[key]}")
    return tuple(changes)


def try_start(config: Config, plan: RunPlan) -> None:
    """What only torch can tell, and only some configs ask: a GPU to decode on, weights that fit. Imports torch."""
    if config.data.decoder == "gpu":
        from pipeline.data.loader import decodes_on_gpu
        from pipeline.runtime import has_gpu

        decodes_on_gpu(config.data, "cuda" if has_gpu() else "cpu")
    if not plan.checkpoint:
        network.try_start(config.model, config.data, num_classes(config, plan.progress))
