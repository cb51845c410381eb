"""What is refused before a GPU is touched, each with the key or file, the value and the next action."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.build import build
from pipeline import network
from pipeline.checkpoint import Progress
from pipeline.config import Config, Data, Model
from pipeline.config_io import parse
from pipeline.data import index
from pipeline.errors import UserError
from pipeline.run_plan import _changes, num_classes, prepare

SMALL = {"name": "alexnet", "width": 0.125}


@pytest.fixture
def settle(photos: Path, tmp_path: Path) -> Callable[..., Config]:
    """settle(train={...}): a config on the photos, whose sections are changed by the given ones."""

    def settled(**sections) -> Config:
        tree: dict = {"run": str(tmp_path / "run"), "data": {"train": str(photos)}, "train": {"global_batch": 10}}
        for name, section in sections.items():
            tree[name] = tree.get(name, {}) | section if isinstance(section, dict) else section
        return parse(tree, "test")

    return settled


def leave_checkpoint(config: Config, photos: Path, **facts) -> Path:
    """A checkpoint that holds no more than its progress: all that a run_plan reads."""
    found, step = index.load(photos), facts.get("step", 7)
    trained_on = {"data_fingerprint": found.fingerprint, "classes": list(found.classes)}
    progress = Progress(**({"step": step, "config": config.model_dump(mode="json")} | trained_on | facts))
    folder = config.run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    files = {"model.safetensors": [0, hashlib.sha256().hexdigest()]}
    (folder / "progress.json").write_text(json.dumps(asdict(progress) | {"files": files}))
    (folder.parent / "latest").write_text(f"{folder.name}\n")
    return folder


def refused(config: Config, world: int = 1) -> str:
    with pytest.raises(UserError) as caught:
        prepare(config, world)
    return str(caught.value)


def test_a_fresh_plan(settle, photos, held_out):
    plan = prepare(settle(data={"validation": str(held_out)}), world=2)
    assert (plan.index.num_samples, plan.validation.num_samples) == (50, 23)
    assert (plan.progress.step, plan.checkpoint, plan.changes) == (0, None, ())
    assert plan.progress.data_fingerprint == index.load(photos).fingerprint
    assert plan.progress.classes == [f"class-{n}" for n in range(5)]
    assert not plan.run.exists()


def test_a_packed_set_is_no_run_folder(settle, photos):
    for run in (photos, photos.parent):
        text = refused(settle(run=str(run)))
        assert text.startswith(f"run={run} holds a packed set ({photos}/manifest.json). Give another folder")


def test_validation_is_optional(settle):
    assert prepare(settle(), 1).validation is None


@pytest.mark.parametrize(("given", "expected"), [(None, 5), (8, 8)])
def test_the_network_has_as_many_outputs_as_classes_unless_told(settle, given, expected):
    config = settle(model={"num_classes": given})
    assert num_classes(config, prepare(config, 1).progress) == expected


# The config


@pytest.mark.parametrize(
    ("sections", "world", "reason"),
    [
        ({"run": None}, 1, "run is not set: give the run folder, for example run=runs/first"),
        ({"data": {"train": None}}, 1, "data.train is not set: give the folder of a packed set"),
        ({"model": {"name": "alexnt"}}, 1, "model.name=alexnt: unknown model 'alexnt'. Did you mean alexnet"),
        ({}, 4, "train.global_batch=10 does not divide among 4 processes. Start 1 or 2 or 5 or 10 processes"),
        ({"train": {"global_batch": 51}}, 1, "train.global_batch=51 is more than the 50 samples of"),
        ({"train": {"global_batch": 52}}, 4, "Choose at most 48"),  # which four processes can share
        ({"data": {"pca": "shards"}}, 1, "was indexed without RGB statistics. Use data.pca=imagenet"),
        ({"model": {"num_classes": 4}}, 1, "Leave model.num_classes out, or give at least 5"),
        ({"data": {"train": "/nowhere/at/all"}}, 1, "/nowhere/at/all does not exist. Give the folder of a packed set"),
        ({"data": {"validation": "/nowhere/at/all"}}, 1, "/nowhere/at/all does not exist"),
    ],
)
def test_refusal(settle, sections, world, reason):
    assert reason in refused(settle(**sections), world)


@pytest.mark.parametrize(
    "sections",
    [{"train": {"global_batch": 50}}, {"data": {"pca": "shards", "pca_std": 0}}, {"model": {"num_classes": 5}}],
)
def test_values_next_to_a_refusal_are_fine(settle, sections):
    assert prepare(settle(**sections), 1).index.num_samples == 50


def test_validation_set_with_another_class_list(settle, photos, make_set):
    other = make_set("other", 12, num_classes=3)
    text = refused(settle(data={"validation": str(other)}))
    assert f"data.validation={other} has another class list than data.train={photos} (3 and 5 classes)" in text
    assert f"--classes {photos}" in text


def test_run_folder_that_is_a_file(settle, tmp_path):
    (tmp_path / "taken").write_text("")
    assert "taken" in refused(settle(run=str(tmp_path / "taken")))


# Going on


def test_going_on_with_the_same_config(settle, photos):
    folder = leave_checkpoint(settle(), photos, errors=[0.5], wandb_id="abc")
    plan = prepare(settle(), 1)
    assert (plan.checkpoint, plan.changes) == (folder, ())
    assert (plan.progress.step, plan.progress.errors, plan.progress.wandb_id) == (7, [0.5], "abc")


@pytest.mark.parametrize(
    ("sections", "changes"),
    [
        ({"optimizer": {"lr": 0.5}}, ("optimizer.lr: 0.01 -> 0.5",)),
        (
            {"train": {"epochs": 2, "micro_batch": 5}},
            ("train.epochs: 90.0 -> 2.0", "train.micro_batch: None -> 5"),
        ),
        ({"schedule": {"kind": "cosine"}}, ("schedule.kind: constant -> cosine",)),
        ({"model": {"weights": "some.safetensors"}}, ("model.weights: None -> some.safetensors",)),
    ],
)
def test_changes_are_reported(settle, photos, sections, changes):
    leave_checkpoint(settle(), photos)
    assert prepare(settle(**sections), 1).changes == changes


def test_what_a_run_grew_from_is_asked_for_at_its_start_only(settle, photos):
    leave_checkpoint(settle(model={"name": "vgg13", "grow_from": "runs/gone"}), photos)
    assert prepare(settle(model={"name": "vgg13", "grow_from": "runs/gone"}), 1).changes == ()
    assert prepare(settle(model={"name": "vgg13"}), 1).changes == ("model.grow_from: runs/gone -> None",)


def test_moved_sets_and_run_folder_are_no_change(settle, photos, held_out, tmp_path):
    leave_checkpoint(settle(), photos)
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(photos)
    data = {"train": str(tmp_path / "link"), "validation": str(held_out)}
    plan = prepare(settle(run=str(tmp_path / "moved"), data=data), 1)
    assert plan.progress.step == 7
    assert plan.changes == ()


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"seed": 1}, "seed=1, but {folder} was trained with 0"),
        ({"train": {"global_batch": 5}}, "train.global_batch=5, but {folder} was trained with 10"),
        ({"data": {"shuffle": "windowed"}}, "data.shuffle=windowed, but {folder} was trained with global"),
        ({"data": {"crop_px": 192}}, "data.crop_px=192, but {folder} was trained with 224"),
        ({"model": {"name": "vgg11"}}, "model.name=vgg11, but {folder} was trained with alexnet"),
        ({"model": {"width": 0.5}}, "model.width=0.5, but {folder} was trained with None"),
        ({"model": {"num_classes": 9}}, "model.num_classes=9, but {folder} was trained with None"),
    ],
)
def test_what_would_make_another_run_of_it_is_refused(settle, photos, sections, told):
    folder = leave_checkpoint(settle(), photos)
    text = refused(settle(**sections))
    assert text.startswith(told.format(folder=folder))
    assert "Set it back, or start another run with run=..." in text


def test_other_classes_than_the_checkpoints(settle, photos):
    folder = leave_checkpoint(settle(), photos, classes=["cat", "dog"])
    text = refused(settle())
    assert text.startswith(f"{folder} was trained on 2 classes (cat, dog), {photos} has 5 (class-0, class-1,")
    assert "Give the old data.train, or start another run with run=..." in text


def test_another_set_of_the_same_classes(settle, photos, make_set):
    folder = leave_checkpoint(settle(), photos)
    other = make_set("other", 20, seed=3)
    text = refused(settle(data={"train": str(other)}))
    assert text.startswith(f"{other} is not the set that {folder} was trained on (its fingerprint is ")
    assert index.load(other).fingerprint in text
    assert index.load(photos).fingerprint in text


@pytest.mark.parametrize("lost", [None, b"", b"\xff\xfe"])
def test_a_lost_latest_beside_checkpoints_never_starts_over(settle, photos, lost):
    folder = leave_checkpoint(settle(), photos)
    pointer = folder.parent / "latest"
    pointer.unlink() if lost is None else pointer.write_bytes(lost)
    assert refused(settle()).endswith(f"To go on from the newest whole one: echo {folder.name} > {pointer}")


def test_damaged_metrics(settle, photos):
    folder = leave_checkpoint(settle(), photos)
    (folder.parents[1] / "metrics.jsonl").write_text('{"step": "x"}\n')
    assert refused(settle()).startswith(f"{folder.parents[1] / 'metrics.jsonl'}, line 1: step='x' must be a valid int")


def test_a_run_goes_on_without_the_images_that_it_began_without_and_no_others(settle, photos):
    rows = json.dumps([["shard-000000.tar", "00003"]]).encode()
    folder = leave_checkpoint(settle(), photos, quarantine_fingerprint=hashlib.sha256(rows).hexdigest()[:16])
    own = settle().run / "quarantine.tsv"
    own.write_text("shard\tkey\treason\nshard-000000.tar\t00003\ttorn\n")
    assert prepare(settle(), 1).checkpoint == folder
    own.write_text("shard\tkey\treason\nshard-000000.tar\t00004\ttorn\n")
    assert refused(settle()).startswith(f"{own} leaves out other images than {folder} was trained without (fingerprint")
    own.unlink()
    text = refused(settle())
    assert text.startswith(f"{photos}/quarantine.tsv leaves out other images than")
    assert f"Put back {own} as it was, or start another run with run=..." in text


def test_older_checkpoints_do_not_say_what_they_began_without(settle, photos):
    folder = leave_checkpoint(settle(), photos)
    facts = json.loads((folder / "progress.json").read_text())
    del facts["quarantine_fingerprint"]
    (folder / "progress.json").write_text(json.dumps(facts))
    (settle().run / "quarantine.tsv").write_text("shard\tkey\treason\nshard-000000.tar\t00003\ttorn\n")
    assert prepare(settle(), 1).checkpoint == folder


def test_damaged_checkpoint(settle, photos):
    folder = leave_checkpoint(settle(), photos)
    (folder / "progress.json").write_text("{")
    assert refused(settle()).startswith(f"{folder / 'progress.json'} is damaged")


def test_checkpoint_of_a_config_that_is_no_longer_understood(settle, photos):
    folder = leave_checkpoint(settle(), photos)
    facts = json.loads((folder / "progress.json").read_text()) | {"config": {"optimizer": {"learning_rate": 1}}}
    (folder / "progress.json").write_text(json.dumps(facts))
    text = refused(settle())
    assert text.startswith(f"{folder}/progress.json:\n")
    assert "optimizer.learning_rate is no known key" in text


# The network


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Model(name="vgg17"), "model.name=vgg17: unknown model 'vgg17'. Did you mean vgg1"),
        (Model(name="alexnet", groups=2), "model.name=alexnet: model alexnet has no setting groups; it has"),
        (Model(name="torchvision:resnet18", width=0.5), "model.name=torchvision:resnet18"),
        (Model(name="no_such_package:net"), "there is no package no_such_package"),
        (Model(reset_head=True), "model.reset_head=true does something only together with model.weights"),
        (
            Model(name="vgg16", reset_head=True, grow_from="runs/vgg11"),
            "model.reset_head=true does something only together with model.weights",
        ),
        (
            Model(name="vgg11", grow_from="runs/vgg11"),
            "model.grow_from=runs/vgg11 does nothing for model.name=vgg11, only for vgg13, vgg16c, vgg16, vgg19, ",
        ),
        (Model(name="vgg11_bn", grow_from="runs/vgg11"), "does nothing for model.name=vgg11_bn, only for vgg13"),
        (Model(name="alexnet", grow_from="a.pth"), "does nothing for model.name=alexnet, only for vgg13"),
        (Model(name="torchvision:vgg16", grow_from="a.pth"), "does nothing for model.name=torchvision:vgg16, only for"),
        (
            Model(name="vgg16", grow_from="runs/vgg11", weights="torchvision"),
            "model.grow_from=runs/vgg11 and model.weights=torchvision both say what to start from. Leave one of",
        ),
    ],
)
def test_network_check_refuses(model, reason):
    with pytest.raises(UserError) as caught:
        network.check(model, Data())
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "model",
    [
        Model(),
        Model(name="alexnet_2012", groups=1),
        Model(name="torchvision:resnet18"),
        Model(name="models.build:build"),
        Model(name="vgg16c_bn", grow_from="runs/vgg11_bn"),
    ],
)
def test_network_check_accepts(model):
    network.check(model, Data())


def test_images_too_small_for_the_network():
    with pytest.raises(UserError, match=r"model.name=alexnet, data.crop_px=32: .* too small"):
        network.build(Model(**SMALL), Data(crop_px=32), 5)


def test_starting_from_weights(tmp_path):
    path, given = tmp_path / "given.safetensors", build("alexnet", num_classes=5, width=0.125)
    save_file(given.state_dict(), path)
    fresh = network.build(Model(**SMALL), Data(crop_px=64), 5)
    network.start_from(fresh, Model(**SMALL, weights=str(path)))
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in given.state_dict().items())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist. Give a run folder"),
        (b"nonsense", "is not a readable safetensors file"),
        ("3 classes", "has 3 classes, the model 5; model.reset_head=true keeps a fresh last layer"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, content, reason):
    path = tmp_path / "given.safetensors"
    if content == "3 classes":
        save_file(build("alexnet", num_classes=3, width=0.125).state_dict(), path)
    elif content:
        path.write_bytes(content)
    fresh = network.build(Model(**SMALL), Data(crop_px=64), 5)
    with pytest.raises(UserError) as caught:
        network.start_from(fresh, Model(**SMALL, weights=str(path)))
    assert str(caught.value).startswith(f"model.weights={path}")
    assert reason in str(caught.value)


def test_missing_weights(settle, tmp_path):
    text = refused(settle(model={"weights": str(tmp_path / "nothing.pt")}))
    assert "nothing.pt does not exist" in text


# Growing from VGG A


VGG13 = {"name": "vgg13", "width": 0.125}


def leave_vgg11(run: Path, **steps: int) -> None:
    """A run of vgg11 with checkpoints, as leave_vgg11(run, latest=2, best=1), whose conv1_1 is full of their step."""
    for pointer, step in steps.items():
        state = build("vgg11", num_classes=5, width=0.125).state_dict()
        state["features.0.weight"].fill_(step)
        folder = run / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        save_file(state, folder / "model.safetensors")
        (folder / "progress.json").write_text("{}")
        (folder.parent / pointer).write_text(f"{folder.name}\n")


def step_grown_from(path: Path) -> float:
    config = Model(**VGG13, grow_from=str(path))
    fresh = network.build(config, Data(crop_px=64), 5)
    network.grow(fresh, config)
    (step,) = fresh.state_dict()["features.0.weight"].unique()
    return float(step)


def test_growing_from_a_run_a_checkpoint_or_a_file(tmp_path, settle):
    leave_vgg11(tmp_path / "one", latest=2, best=1)
    leave_vgg11(tmp_path / "other", latest=4)
    last = tmp_path / "one/checkpoints/step-00000002"
    torch.save({"model": build("vgg11", num_classes=5, width=0.125).state_dict()}, tmp_path / "a.pth")
    assert step_grown_from(tmp_path / "one") == 1  # the best one
    assert step_grown_from(tmp_path / "other") == 4  # the last one: this run was never evaluated
    assert step_grown_from(last) == step_grown_from(last / "model.safetensors") == 2
    for source in (tmp_path / "one", last, tmp_path / "a.pth"):
        assert prepare(settle(model=VGG13 | {"grow_from": str(source)}), 1).checkpoint is None


def test_misfit_of_a_run_names_its_file(tmp_path):
    leave_vgg11(tmp_path / "vgg11", best=1)
    config = Model(**VGG13, grow_from=str(tmp_path / "vgg11"))
    with pytest.raises(UserError) as caught:
        network.grow(network.build(config, Data(crop_px=64), 6), config)
    file = tmp_path / "vgg11/checkpoints/step-00000001/model.safetensors"
    assert str(caught.value).startswith(
        f"model.grow_from={tmp_path}/vgg11: {file}: the weights of the checkpoint do not"
    )


def test_nothing_to_grow_from(settle, tmp_path):
    path = tmp_path / "vgg11"
    config = settle(model=VGG13 | {"grow_from": str(path)})
    assert refused(config).startswith(
        f"model.grow_from={path} does not exist. Give a run folder of vgg11, a checkpoint's"
    )
    path.mkdir()
    assert refused(config).startswith(f"model.grow_from={path}: {path} is neither a run nor a checkpoint. Give a run")
    (path / "config.yaml").write_text("")
    assert refused(config).startswith(f"model.grow_from={path}: {path} has no checkpoint yet. Give a run")


@pytest.mark.parametrize(
    ("shallow", "reason"),
    [
        ({"num_classes": 3}, "the checkpoint has 3 classes, the VGG A that is needed 5"),
        ({"width": 0.25}, "features.0.weight is (16, 3, 3, 3) in the checkpoint and (8, 3, 3, 3) in the VGG A that"),
        ({"name": "vgg11_bn"}, "the checkpoint has batch normalisation, the model has not"),
        (None, "is not a readable safetensors file"),
    ],
)
def test_growing_from_weights_that_do_not_fit(tmp_path, shallow, reason):
    file = tmp_path / "vgg11.safetensors"
    if shallow is None:
        file.write_bytes(b"nonsense")
    else:
        save_file(build(**({"name": "vgg11", "num_classes": 5, "width": 0.125} | shallow)).state_dict(), file)
    with pytest.raises(UserError) as caught:
        step_grown_from(file)
    assert str(caught.value).startswith(f"model.grow_from={file}: ")
    assert reason in str(caught.value)
    assert str(caught.value).endswith("vgg11 with the same model.width and classes, or leave model.grow_from out")


def test_another_window_of_a_windowed_shuffle_is_another_order(tmp_path, photos):
    words = {"data": {"train": str(photos), "shuffle": "windowed", "window_shards": 1}, "train": {"global_batch": 10}}
    old = parse(words | {"run": tmp_path / "run"}, "test")
    packed = index.load(photos)
    progress = Progress(classes=list(packed.classes), data_fingerprint=packed.fingerprint)
    progress.config = old.model_dump(mode="json")
    new = old.model_copy(update={"data": old.data.model_copy(update={"window_shards": 3})})
    with pytest.raises(UserError, match=r"data\.window_shards=3"):
        _changes(new, packed, progress, tmp_path)
