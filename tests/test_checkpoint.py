"""Checkpoints on a real disk with a real engine: whole or not there, pruned, refused by name when they are corrupt."""

import errno
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline import checkpoint, checkpoint_writer, engine, optim, optimizer_state
from pipeline.checkpoint import Progress
from pipeline.config import Config
from pipeline.config_io import parse
from pipeline.errors import UserError
from pipeline.runtime import Runtime
from tests.conftest import disk_of, fill

CONFIG = parse({"train": {"global_batch": 4}, "optimizer": {"lr": 0.1}}, "test")


def stepper_of(alone: Runtime, seed: int = 0, config: Config = CONFIG) -> engine.Stepper:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    return engine.Stepper(engine.build(model, optim.build(model, config.optimizer), config, alone), config, alone)


def train(stepper: engine.Stepper, *steps: int) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images, labels = torch.randn(4, 3, 2, 2, generator=generator), torch.randint(0, 3, (4,), generator=generator)
        stepper.micro_step(images, labels, torch.ones(4, dtype=torch.bool), step, 0)


def write(engine: Any, progress: Progress, run: Path, runtime: Runtime, keep: int) -> Path:
    """One checkpoint, waited for."""
    writer = checkpoint_writer.Writer(run, runtime, keep)
    folder = writer.save(engine, progress)
    writer.finish()
    return folder


def weights(stepper: engine.Stepper) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in stepper.engine.module.state_dict().items()}


def momentum(stepper: engine.Stepper, name: str = "momentum_buffer") -> list[torch.Tensor]:
    state = stepper.engine.optimizer.state
    return [state[weight][name].clone() for weight in stepper.engine.module.parameters()]


def load(stepper: engine.Stepper, folder: Path) -> None:
    """Weights before the engine is built, in pipeline.train; momentum after it."""
    stepper.engine.module.load_state_dict(load_file(folder / "model.safetensors"))
    optimizer_state.restore(stepper.engine, checkpoint.read_optimizer(folder))


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def trained(alone: Runtime) -> engine.Stepper:
    """After steps 0, 1, 2. Read only."""
    stepper = stepper_of(alone)
    train(stepper, 0, 1, 2)
    return stepper


@pytest.fixture
def save(trained, alone, tmp_path):
    """save(3, keep=2, best_step=3) into tmp_path/run."""
    (tmp_path / "run").mkdir()

    def save_step(step: int, keep: int = 3, **facts) -> Path:
        if facts.get("best_step"):
            facts.setdefault("best_error", 0.5)
        return write(trained.engine, Progress(step=step, **facts), tmp_path / "run", alone, keep)

    return save_step


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_dir())


# There and back


def test_weights_and_momentum_come_back(save, trained, alone):
    folder, other = save(3), stepper_of(alone, seed=1)
    assert not equal(weights(other), weights(trained))
    load(other, folder)
    assert equal(weights(other), weights(trained))
    pairs = zip(momentum(other), momentum(trained), strict=True)
    assert all(torch.equal(ours, theirs) and theirs.abs().max() > 0 for ours, theirs in pairs)


def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(save, alone):
    whole, resumed = stepper_of(alone), stepper_of(alone, seed=1)
    train(whole, 0, 1, 2, 3, 4)
    load(resumed, save(3))
    train(resumed, 3, 4)
    assert equal(weights(resumed), weights(whole))


def test_the_papers_velocity_comes_back_too(alone, tmp_path):
    """Saved where the learning rate drops, which the velocity of before survives by some dozen steps."""
    config = CONFIG.model_copy(update={"optimizer": CONFIG.optimizer.model_copy(update={"lr_in_velocity": True})})
    whole, resumed, forgetful = (stepper_of(alone, seed, config) for seed in (0, 1, 1))
    train(whole, 0, 1, 2)
    (tmp_path / "run").mkdir()
    folder = write(whole.engine, Progress(step=3), tmp_path / "run", alone, 3)
    for stepper in (resumed, forgetful):
        load(stepper, folder)
    pairs = list(zip(momentum(resumed), momentum(whole), strict=True))
    assert all(torch.equal(ours, theirs) and theirs.abs().max() > 0 for ours, theirs in pairs)
    for state in forgetful.engine.optimizer.state.values():
        state["momentum_buffer"].zero_()
    for stepper in (whole, resumed, forgetful):
        for group in stepper.engine.optimizer.param_groups:
            group["lr"] = 0.01
        train(stepper, 3, 4)
    assert equal(weights(resumed), weights(whole))
    assert not equal(weights(forgetful), weights(whole))


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_a_network_with_a_frozen_part_goes_on(alone, tmp_path, zero_stage):
    config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"zero_stage": zero_stage})})

    def built(seed: int) -> engine.Stepper:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8).requires_grad_(False), nn.BatchNorm1d(8), nn.Linear(8, 3))
        return engine.Stepper(engine.build(model, optim.build(model, config.optimizer), config, alone), config, alone)

    whole, resumed = built(0), built(1)
    train(whole, 0, 1)
    (tmp_path / "run").mkdir()
    folder = write(whole.engine, Progress(step=2), tmp_path / "run", alone, 3)
    state = checkpoint.read_optimizer(folder)
    assert sorted(state.momentum) == ["2.bias", "2.weight", "3.bias", "3.weight"]
    if zero_stage == 0:  # weights are loaded before the engine is built, which at stage 1 takes copies of them
        load(resumed, folder)
        train(whole, 2)
        train(resumed, 2)
        assert equal(weights(resumed), weights(whole))


def test_momentum_of_another_network_is_refused(save, alone):
    state = checkpoint.read_optimizer(save(3))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.BatchNorm1d(9), nn.Dropout(0.5), nn.Linear(9, 3))
    other = engine.build(model, optim.build(model, CONFIG.optimizer), CONFIG, alone)
    with pytest.raises(ValueError, match=r"momentum of 1.bias is \(8,\), the parameter is \(9,\)"):
        optimizer_state.restore(other, state)


def test_progress_comes_back(save):
    facts = {
        "epoch": 1.5,
        "samples_seen": 12,
        "errors": [0.5, 0.25],
        "best_error": 0.25,
        "best_step": 2,
        "wandb_id": "abc",
        "data_fingerprint": "0123",
        "classes": ["cat", "dög"],
        "config": CONFIG.model_dump(mode="json"),
    }
    assert checkpoint.read(save(3, **facts)) == Progress(step=3, **facts)


def test_weights_file_is_the_module_and_needs_no_deepspeed(save, trained):
    assert equal(load_file(save(3) / "model.safetensors"), weights(trained))


def test_saving_a_step_again_replaces_it(save, tmp_path):
    save(3, epoch=0.1)
    folder = save(3, epoch=0.2)
    assert checkpoint.read(folder).epoch == 0.2
    assert folders(tmp_path / "run") == ["step-00000003"]


# Latest, best, pruned


def test_latest_moves_and_best_stays(save, tmp_path):
    first, second = save(1, best_step=1), save(2, best_step=1)
    assert checkpoint.latest(tmp_path / "run") == second
    assert checkpoint.latest(tmp_path / "run", "best") == first


def test_best_points_to_the_step_that_is_best_alone(save, tmp_path):
    best, later = save(1000, best_step=int("1000")), save(1001, best_step=1000)
    assert checkpoint.latest(tmp_path / "run", "best") == best
    assert checkpoint.latest(tmp_path / "run") == later


@pytest.mark.parametrize(
    ("keep", "best_step", "left"),
    [(1, 1, [1, 5]), (2, 2, [2, 4, 5]), (3, 5, [3, 4, 5]), (9, 1, [1, 2, 3, 4, 5]), (2, None, [4, 5])],
)
def test_pruning_keeps_the_best_and_the_newest(save, tmp_path, keep, best_step, left):
    for step in range(1, 6):
        save(step, keep, best_step=best_step if best_step and step >= best_step else None)
    assert folders(tmp_path / "run") == [f"step-{step:08d}" for step in left]
    assert checkpoint.read(checkpoint.latest(tmp_path / "run")).step == 5


def test_pruning_leaves_the_best_whose_pointer_is_lost(save, tmp_path):
    best = save(1, best_step=1)
    (tmp_path / "run" / "checkpoints" / "best").unlink()
    for step in (2, 3, 4):
        save(step, keep=1, best_step=1)
    assert folders(tmp_path / "run") == [best.name, "step-00000004"]
    assert (tmp_path / "run" / "checkpoints" / "best").read_text() == f"{best.name}\n"


def test_pruning_after_somebody_went_back_leaves_what_is_newer(save, tmp_path):
    for step in (1, 2, 5, 6):
        save(step, keep=4)
    save(3, keep=2)
    assert folders(tmp_path / "run") == [f"step-{step:08d}" for step in (2, 3, 5, 6)]


def test_run_without_checkpoints_has_no_latest(tmp_path):
    assert checkpoint.latest(tmp_path) is None


# Interrupted


def test_interrupted_write_leaves_the_one_before(save, tmp_path, monkeypatch):
    before = save(1)

    def killed(*args) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writer, "write_synced", killed)
        with pytest.raises(KeyboardInterrupt):
            save(2)
    assert folders(tmp_path / "run") == [".writing-step-00000002", "step-00000001"]
    assert checkpoint.latest(tmp_path / "run") == before
    assert checkpoint.read(before).step == 1

    save(2)
    assert folders(tmp_path / "run") == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("name", ["latest", "best"])
def test_a_pointer_moves_only_when_its_folder_is_there(save, tmp_path, monkeypatch, name):
    """The rename of the folder fails, as on a full disk: what was last, and best, is still so, and whole."""
    before, real = save(1, best_step=1), os.replace

    def full(source, target) -> None:
        if Path(source).name == ".writing-step-00000002":
            raise OSError("no space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match="no space"):
            save(2, best_step=2)
    assert checkpoint.latest(tmp_path / "run", name) == before
    assert checkpoint.read(before).step == 1
    assert save(2, best_step=2) == checkpoint.latest(tmp_path / "run", name)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["model.safetensors", "optimizer.safetensors", "progress.json", "latest", "folder"])
def test_a_full_disk_is_told_and_the_next_save_works(save, tmp_path, monkeypatch, number, where):
    before, root = save(1), tmp_path / "run" / "checkpoints"

    def full(*args) -> None:
        if Path(args[-1 if where in ("model.safetensors", "optimizer.safetensors", "folder") else 0]).name.endswith(
            where if where != "folder" else "step-00000002"
        ):
            raise OSError(number, os.strerror(number))
        real(*args)

    patched = "write_synced" if where in ("progress.json", "latest") else "_write"
    with monkeypatch.context() as patch:
        if where == "folder":
            real: Callable[..., Any] = os.replace
            patch.setattr(os, "replace", full)
        else:
            real = getattr(checkpoint_writer, patched)
            patch.setattr(checkpoint_writer, patched, full)
        text = refused(save, 2)
    why = "the disk is full" if number == errno.ENOSPC else "your disk quota is used up"
    assert text.startswith(f"{root / 'step-00000002'} cannot be written: {why} (it takes 1,")
    assert text.endswith("then start the same command again: it goes on from the last checkpoint")
    assert folders(tmp_path / "run") == [before.name]
    assert checkpoint.latest(tmp_path / "run") == before
    assert checkpoint.read(save(2)).step == 2


def test_a_disk_that_is_really_full(trained, alone, tmp_path):
    with disk_of(tmp_path / "small", 64 << 10) as disk:
        before = write(trained.engine, Progress(step=1), disk, alone, 3)
        filler = fill(disk, 4096)
        with pytest.raises(
            UserError, match=r"step-00000002 cannot be written: the disk is full \(it takes 1,\d{3} bytes"
        ):
            write(trained.engine, Progress(step=2), disk, alone, 3)
        assert folders(disk) == [before.name]
        filler.unlink()
        assert write(trained.engine, Progress(step=2), disk, alone, 3) == checkpoint.latest(disk)


def test_a_disk_without_inodes(trained, alone, tmp_path):
    with disk_of(tmp_path / "small", 1 << 20, inodes=12) as disk:
        before = write(trained.engine, Progress(step=1), disk, alone, 3)
        (disk / "one").touch()
        (disk / "two").touch()
        (disk / "three").touch()
        with pytest.raises(UserError, match=r"step-00000002 cannot be written: its file system has \d inodes left"):
            write(trained.engine, Progress(step=2), disk, alone, 3)
        assert folders(disk) == [before.name]


def test_leftover_of_another_step_is_ignored_and_removed(save, tmp_path):
    leftover = tmp_path / "run" / "checkpoints" / ".writing-step-00000009"
    leftover.mkdir(parents=True)
    (leftover / "progress.json").write_text("{")
    assert checkpoint.latest(tmp_path / "run") is None
    assert checkpoint.latest(tmp_path / "run") != save(1)
    assert folders(tmp_path / "run") == ["step-00000001"]


@pytest.mark.parametrize("moved", [0, 1, 2])
@pytest.mark.parametrize("first", [True, False])
def test_killed_between_the_last_moves(save, tmp_path, monkeypatch, first, moved):
    """After the folder, after `latest`, after `best` too: nothing that is whole is lost, nor which is the best."""
    run = tmp_path / "run"
    before = None if first else save(1, best_step=1)
    pointers, real = ["latest", "best"][moved:], os.replace

    def killed(source, target) -> None:
        if Path(target).name in pointers:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        if pointers:
            with pytest.raises(KeyboardInterrupt):
                save(2, keep=1, best_step=2)
        else:
            save(2, keep=1, best_step=2)
    second = run / "checkpoints" / "step-00000002"
    expected = before if before and moved == 0 else second
    assert checkpoint.latest(run) == checkpoint.latest(run, "best") == expected
    third = save(3, keep=1, best_step=2 if expected == second else 1)
    assert checkpoint.latest(run) == third
    assert checkpoint.latest(run, "best") == expected
    assert checkpoint.read(expected).step == (1 if expected == before else 2)


def test_killed_before_the_first_folder_moved(save, tmp_path, monkeypatch):
    def killed(source, target) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save(1)
    assert checkpoint.latest(tmp_path / "run") is None


# Lost pointers


LOST = {
    "missing": None,
    "empty": b"",
    "binary": b"\xff\xfe\x00\x93",
    "a path": b"../../elsewhere",
}


def lose(pointer: Path, how: str) -> None:
    pointer.unlink()
    if (content := LOST[how]) is not None:
        pointer.write_bytes(content)


@pytest.mark.parametrize("how", LOST)
def test_lost_latest_is_refused_and_the_newest_whole_one_offered(save, tmp_path, how):
    run, root = tmp_path / "run", tmp_path / "run" / "checkpoints"
    save(1)
    whole, damaged = save(2), save(3)
    cut_short(damaged / "optimizer.safetensors")
    lose(root / "latest", how)
    text = refused(checkpoint.latest, run)
    assert text.startswith(f"{root / 'latest'} {'is missing' if how == 'missing' else 'holds b'}")
    assert "(there are: step-00000001, step-00000002, step-00000003)" in text
    line = text.partition("To go on from the newest whole one: ")[2]
    subprocess.run(line, shell=True, check=True)
    assert checkpoint.latest(run) == whole


def test_the_line_to_paste_is_quoted(save, tmp_path):
    folder = save(1)
    spaced = tmp_path / "my run"
    shutil.copytree(folder.parents[1], spaced)
    (spaced / "checkpoints" / "latest").unlink()
    subprocess.run(refused(checkpoint.latest, spaced).partition("one: ")[2], shell=True, check=True)
    assert checkpoint.latest(spaced) == spaced / "checkpoints" / folder.name


def test_lost_latest_beside_damaged_ones_only(save, tmp_path):
    folder = save(1)
    cut_short(folder / "model.safetensors")
    (folder.parent / "latest").unlink()
    text = refused(checkpoint.latest, tmp_path / "run")
    assert text.endswith(f"There is no whole one: give another run=..., or remove {folder.parent} to start over")


@pytest.mark.parametrize("how", [*LOST, "stale", "gone"])
def test_lost_best_is_what_progress_states(save, tmp_path, how):
    run, pointer = tmp_path / "run", tmp_path / "run" / "checkpoints" / "best"
    save(1)
    best = save(2, best_step=2)
    save(3, best_step=2)
    if how in LOST:
        lose(pointer, how)
    else:
        pointer.write_text({"stale": "step-00000001\n", "gone": "step-00000009\n"}[how])
    assert checkpoint.find(run, "best") == best


def test_best_where_the_latest_is_damaged(save, tmp_path):
    best, folder = save(1, best_step=1), save(2, best_step=1)
    (folder / "progress.json").write_text("{")
    assert checkpoint.find(tmp_path / "run", "best") == best


# Corrupt


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def refused(action, *args) -> str:
    with pytest.raises(UserError) as caught:
        action(*args)
    return str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [(flip_a_byte, "is not what was written"), (cut_short, "is not what was written"), (Path.unlink, "is missing")],
)
def test_corrupt_file_is_named_with_the_way_out(save, name, damage, reason):
    older, folder = save(1), save(2)
    damage(folder / name)
    text = refused(checkpoint.read, folder)
    assert f"{folder / name} {reason}" in text
    assert "corrupt" in text
    assert text.endswith(f"To go on from the newest whole one: echo {older.name} > {folder.parent / 'latest'}")
    (folder.parent / "latest").write_text(f"{older.name}\n")  # as the text says
    assert checkpoint.read(checkpoint.latest(folder.parents[1])).step == 1


def test_only_checkpoint_corrupt(save):
    folder = save(1)
    cut_short(folder / "model.safetensors")
    text = refused(checkpoint.read, folder)
    assert text.endswith(f"There is no whole one: give another run=..., or remove {folder.parent} to start over")


def test_the_newest_whole_one_is_offered_not_the_one_before(save):
    oldest, older, folder = save(1), save(2), save(3)
    for damaged in (older, folder):
        cut_short(damaged / "model.safetensors")
    assert f": echo {oldest.name} > {folder.parent / 'latest'}" in refused(checkpoint.read, folder)


def test_a_copy_of_a_checkpoint_that_is_damaged_endangers_nothing_beside_it(save, tmp_path):
    copy = tmp_path / "kept" / "best-model"
    shutil.copytree(save(1), copy)
    cut_short(copy / "model.safetensors")
    text = refused(checkpoint.read, copy)
    assert text.endswith("corrupt. Copy it here again")


def test_files_that_were_added_do_no_harm(save):
    folder = save(1)
    (folder / "notes.txt").write_text("the good one")
    assert checkpoint.read(folder).step == 1


def with_files(files: object) -> str:
    return json.dumps({"step": 1, "files": files})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"step": 1}',
        '{"files": {}, "stride": 1}',
        "\udcff",
        with_files([]),
        with_files({"model.safetensors": 5}),
        with_files({}),
    ],
)
def test_damaged_progress_is_named(save, content):
    folder = save(1)
    (folder / "progress.json").write_bytes(content.encode(errors="surrogateescape"))
    assert refused(checkpoint.read, folder).startswith(f"{folder / 'progress.json'} is damaged (")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("step", "x", "step='x' must be a valid integer"),
        ("step", True, "step=True must be a valid integer"),
        ("step", 3.0, "step=3.0 must be a valid integer"),
        ("step", -1, "step=-1 must be greater than or equal to 0"),
        ("step", 7, "step=7, but the folder is step-00000003"),
        ("epoch", "1", "epoch='1' must be a valid number"),
        ("epoch", float("nan"), "epoch=nan must be "),
        ("samples_seen", None, "samples_seen=None must be a valid integer"),
        ("errors", None, "errors=None must be a valid list"),
        ("errors", [0.5, 50.0], "errors.1=50.0 must be less than or equal to 1"),
        ("errors", [0.5, None], "errors.1=None must be a valid number"),
        ("best_error", 0.5, "best_step=None, best_error=0.5 cannot be at step=3"),
        ("best_step", "2", "best_step='2' must be a valid integer"),
        ("wandb_id", 7, "wandb_id=7 must be a valid string"),
        ("data_fingerprint", None, "data_fingerprint=None must be a valid string"),
        ("classes", None, "classes=None must be a valid list"),
        ("classes", "cat", "classes='cat' must be a valid list"),
        ("classes", ["cat", 1], "classes.1=1 must be a valid string"),
        ("config", [], "config=[] must be a valid dictionary"),
        ("stride", 1, "stride=1 is no field of it"),
        ("files", {}, "its files have no model.safetensors"),
        ("files", {"model.safetensors": ["9", "a" * 64]}, "model.safetensors.0='9' must be a valid integer"),
        ("files", {"model.safetensors": [9, "x"]}, "model.safetensors.1='x' String must match pattern"),
    ],
)
def test_each_field_of_progress_is_checked(save, field, value, told):
    older, folder = save(1), save(3)
    path = folder / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    text = refused(checkpoint.read, folder, False)
    assert text.startswith(f"{path} is damaged ({told}")
    assert f"). To go on from the newest whole one: echo {older.name} > " in text


def test_a_best_after_the_step_itself_is_refused(save):
    folder = save(3)
    path = folder / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"best_step": 4, "best_error": 0.5}))
    assert "(best_step=4, best_error=0.5 cannot be at step=3)" in refused(checkpoint.read, folder)


@pytest.mark.parametrize("field", sorted({field.name for field in fields(Progress)} - {"quarantine_fingerprint"}))
def test_no_field_of_progress_may_be_missing(save, field):
    folder = save(3)
    path = folder / "progress.json"
    facts = json.loads(path.read_text())
    del facts[field]
    path.write_text(json.dumps(facts))
    assert refused(checkpoint.read, folder).startswith(f"{path} is damaged (it has no {field}). ")


def test_folder_that_is_no_checkpoint(tmp_path):
    assert refused(checkpoint.read, tmp_path) == f"{tmp_path} is no checkpoint: it has no progress.json"


def test_latest_that_names_a_folder_that_is_gone(save, tmp_path):
    save(1)
    pointer = tmp_path / "run" / "checkpoints" / "latest"
    pointer.write_text("step-00000007\n")
    text = refused(checkpoint.latest, tmp_path / "run")
    assert text.startswith(f"{pointer} names step-00000007, which is not there (there are: step-00000001)")


def test_disk_that_gives_back_other_weights(save, monkeypatch):
    from safetensors import torch as files

    monkeypatch.setattr(files, "load_file", lambda path: {name: value + 1 for name, value in load_file(path).items()})
    assert "model.safetensors: the disk gave back other values than were written" in refused(save, 1)


# What a person may name


def test_find_takes_a_run_or_a_checkpoint(save, tmp_path):
    first, second = save(1, best_step=1), save(2, best_step=1)
    assert checkpoint.find(tmp_path / "run") == second
    assert checkpoint.find(tmp_path / "run", "best") == first
    assert checkpoint.find(first) == first


def test_find_in_a_run_that_has_none_yet(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    assert refused(checkpoint.find, tmp_path) == (
        f"{tmp_path} has no checkpoint yet. Give a run folder (it holds checkpoints/latest) or a checkpoint's folder"
    )


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_find_in_what_is_no_run(tmp_path, name):
    assert refused(checkpoint.find, tmp_path / name).startswith(
        f"{tmp_path / name} is neither a run nor a checkpoint. Give a run folder (it holds checkpoints/latest)"
    )


def test_find_best_of_a_run_that_was_never_evaluated(save, tmp_path):
    save(1)
    (tmp_path / "run" / "config.yaml").write_text("")
    assert "no checkpoint yet" not in refused(checkpoint.find, tmp_path / "run", "best")


# Beside the training


@pytest.fixture
def held(monkeypatch):
    """Writing begins when `held.set()` lets it."""
    begins, real = threading.Event(), checkpoint_writer._save

    def save(*given):
        assert begins.wait(20)
        real(*given)

    monkeypatch.setattr(checkpoint_writer, "_save", save)
    yield begins
    begins.set()


def test_what_is_written_is_the_state_when_it_was_asked_for(alone, held, tmp_path):
    """Training goes on in the same memory while a thread writes."""
    stepper, progress = stepper_of(alone), Progress(step=1)
    train(stepper, 0)
    weights_then, momentum_then = weights(stepper), momentum(stepper)
    writer = checkpoint_writer.Writer(tmp_path, alone, 3)
    folder = writer.save(stepper.engine, progress)
    assert not folder.exists()
    train(stepper, 1, 2)
    progress.step, progress.config = 3, {"seed": 9}
    held.set()
    writer.finish()
    written = load_file(folder / "model.safetensors")
    assert all(torch.equal(written[name], value) for name, value in weights_then.items())
    assert any(not torch.equal(written[name], value) for name, value in weights(stepper).items())
    other = stepper_of(alone, seed=1)
    load(other, folder)
    assert all(torch.equal(*pair) for pair in zip(momentum(other), momentum_then, strict=True))
    assert checkpoint.read(folder) == Progress(step=1)


def test_the_next_checkpoint_waits_for_the_one_before(trained, alone, held, tmp_path):
    writer = checkpoint_writer.Writer(tmp_path, alone, 3)
    first = writer.save(trained.engine, Progress(step=1))
    threading.Timer(0.3, held.set).start()
    second = writer.save(trained.engine, Progress(step=2))
    assert first.exists()
    writer.finish()
    assert checkpoint.latest(tmp_path) == second


def test_what_goes_wrong_beside_the_training_is_raised_in_it(trained, alone, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_writer, "_save", full)
    writer = checkpoint_writer.Writer(tmp_path, alone, 3)
    writer.save(trained.engine, Progress(step=1))
    with pytest.raises(UserError, match="step-00000001 cannot be written: the disk is full"):
        writer.save(trained.engine, Progress(step=2))
    writer.finish()  # told once


def test_an_error_of_the_training_does_not_cut_a_checkpoint_off(trained, alone, held, tmp_path):
    writer = checkpoint_writer.Writer(tmp_path, alone, 3)
    folder = writer.save(trained.engine, Progress(step=1))
    threading.Timer(0.3, held.set).start()
    writer.join()
    assert checkpoint.read(folder).step == 1
