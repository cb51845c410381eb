"""DeepSpeed on the CPU in one process, against torch.optim.SGD alone: same weights, no hidden clipping, same masks."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline import engine, optim, optimizer_state
from pipeline.config import Config
from pipeline.config_io import parse
from pipeline.runtime import Runtime

ROWS, STEPS = 8, 5
ALL = torch.ones(ROWS, dtype=torch.bool)


def settle(**sections: dict) -> Config:
    return parse({**sections, "train": {"global_batch": ROWS, "precision": "fp32"} | sections.get("train", {})}, "test")


def network(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * 6 * 6, 16), nn.Linear(16, 5)
    )


def stepper_of(model: nn.Module, config: Config, alone: Runtime) -> engine.Stepper:
    return engine.Stepper(engine.build(model, optim.build(model, config.optimizer), config, alone), config, alone)


def batch(step: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = scale * torch.randn(ROWS, 3, 8, 8, generator=generator)
    return images, torch.randint(0, 5, (ROWS,), generator=generator)


def after_engine(config: Config, alone: Runtime, scale: float = 1.0, steps: int = STEPS) -> dict[str, torch.Tensor]:
    model = network()
    stepper = stepper_of(model, config, alone)
    rows, micro_steps = config.train.split(1)
    for step in range(steps):
        images, labels = batch(step, scale)
        for n, (some, theirs) in enumerate(zip(images.split(rows), labels.split(rows), strict=True)):
            stepper.micro_step(some, theirs, ALL[:rows], step, n)
        assert n + 1 == micro_steps
    return model.state_dict()


def after_plain_sgd(
    config: Config,
    scale: float = 1.0,
    steps: int = STEPS,
    change: Callable[[nn.Module], Any] = lambda model: None,
    micro_steps: int = 1,
) -> dict[str, torch.Tensor]:
    """The same steps in five lines of PyTorch; `change` sees the gradients before each step."""
    model, chosen = network(), config.optimizer
    settings = {"momentum": chosen.momentum, "weight_decay": chosen.weight_decay, "nesterov": chosen.nesterov}
    sgd = torch.optim.SGD(model.parameters(), lr=chosen.lr, **settings)
    for step in range(steps):
        for images, labels in zip(*(part.chunk(micro_steps) for part in batch(step, scale)), strict=True):
            loss = F.cross_entropy(model(images), labels, label_smoothing=config.train.label_smoothing)
            (loss / micro_steps).backward()
        change(model)
        sgd.step()
        sgd.zero_grad()
    return model.state_dict()


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def gradient_norm(model: nn.Module) -> float:
    return float(torch.cat([weight.grad.flatten() for weight in model.parameters()]).norm())


@pytest.mark.parametrize(
    "config",
    [
        settle(optimizer={"lr": 0.1}),
        settle(optimizer={"lr": 0.1, "nesterov": True, "weight_decay": 0.01}),
        settle(optimizer={"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}),
        settle(train={"label_smoothing": 0.1}),
    ],
    ids=["defaults", "nesterov", "bare", "smoothing"],
)
def test_steps_equal_plain_sgd_bit_for_bit(config, alone):
    trained, untouched = after_engine(config, alone), network().state_dict()
    assert not any(torch.equal(trained[name], untouched[name]) for name in trained)
    assert equal(trained, after_plain_sgd(config))


def test_the_papers_update_equals_plain_sgd_at_a_constant_learning_rate(alone):
    papers = after_engine(settle(optimizer={"lr": 0.1, "lr_in_velocity": True}), alone)
    for name, weight in after_plain_sgd(settle(optimizer={"lr": 0.1})).items():
        torch.testing.assert_close(papers[name], weight, rtol=1e-5, atol=1e-6)


def test_the_papers_update_across_a_drop_of_the_learning_rate(alone):
    """Against v = 0.9 v - 5e-4 lr w - lr g; w += v in float64, and away from PyTorch's SGD."""
    lrs = [0.1] * 5 + [0.01] * 5

    def after(lr_in_velocity: bool) -> np.ndarray:
        stepper = stepper_of(model := network(), settle(optimizer={"lr_in_velocity": lr_in_velocity}), alone)
        for step, lr in enumerate(lrs):
            for group in stepper.engine.optimizer.param_groups:  # as the loop does
                group["lr"] = lr
            stepper.micro_step(*batch(step), ALL, step, 0)
        return nn.utils.parameters_to_vector(model.parameters()).detach().numpy()

    expected = network().double()
    w = nn.utils.parameters_to_vector(expected.parameters()).detach().numpy().copy()
    v = np.zeros_like(w)
    for step, lr in enumerate(lrs):
        nn.utils.vector_to_parameters(torch.from_numpy(w), expected.parameters())
        images, labels = batch(step)
        loss = F.cross_entropy(expected(images.double()), labels)
        g = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(expected.parameters()))]).numpy()
        v = 0.9 * v - 5e-4 * lr * w - lr * g
        w = w + v
    np.testing.assert_allclose(after(lr_in_velocity=True), w, rtol=1e-5, atol=1e-6)
    assert np.abs(after(lr_in_velocity=False) - w).max() > 0.1


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_accumulated_steps_equal_plain_accumulation_bit_for_bit(micro_batch, alone):
    config = settle(train={"micro_batch": micro_batch}, optimizer={"lr": 0.1})
    assert equal(after_engine(config, alone), after_plain_sgd(config, micro_steps=ROWS // micro_batch))


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_accumulation_changes_a_step_by_rounding_only(micro_batch, alone):
    parts = after_engine(settle(train={"micro_batch": micro_batch}, optimizer={"lr": 0.1}), alone)
    whole = after_engine(settle(optimizer={"lr": 0.1}), alone)
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-5, atol=1e-6)


# Clipping


def test_large_gradients_are_not_clipped(alone):
    config = settle(optimizer={"lr": 1e-9})
    norms: list[float] = []
    expected = after_plain_sgd(config, 1e4, change=lambda model: norms.append(gradient_norm(model)))
    assert min(norms) > 1000
    assert equal(after_engine(config, alone, 1e4), expected)


def test_clip_norm_clips_the_norm_of_the_whole_gradient(alone):
    config = settle(optimizer={"lr": 0.1, "clip_norm": 0.5})
    norms: list[float] = []

    def clip(model: nn.Module) -> None:
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.5)))

    expected = after_plain_sgd(config, 10.0, change=clip)
    assert min(norms) > 1
    for name, weight in after_engine(config, alone, 10.0).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)


def test_clip_norm_leaves_small_gradients_alone(alone):
    config = settle(optimizer={"lr": 0.1, "clip_norm": 1e6})
    assert equal(after_engine(config, alone, steps=1), after_plain_sgd(config, steps=1))


# Rows that are padding


def test_row_of_padding_costs_one_row_and_no_more(alone):
    config = settle(optimizer={"lr": 0.1, "weight_decay": 0.0})
    ours, theirs = network(), network()
    images, labels = batch(0)
    valid = torch.tensor([row not in (1, 6) for row in range(ROWS)])
    images[[1, 6]] = 1e3
    stepper_of(ours, config, alone).micro_step(images, labels, valid, 0, 0)

    loss = F.cross_entropy(theirs(images[valid]), labels[valid], reduction="sum") / ROWS
    loss.backward()
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found.detach(), expected.detach() - 0.1 * expected.grad, rtol=1e-5, atol=1e-6)


def test_batch_of_padding_alone_changes_nothing(alone):
    config, model = settle(optimizer={"weight_decay": 0.0}), network()
    stepper_of(model, config, alone).micro_step(*batch(0), torch.zeros(ROWS, dtype=torch.bool), 0, 0)
    assert equal(model.state_dict(), network().state_dict())


# Dropout


def logits_at(alone: Runtime, step: int, micro_step: int = 0, seed: int = 0) -> torch.Tensor:
    """Logits of a fresh network at a step of a run, with torch's own generator left in an arbitrary state."""
    stepper = stepper_of(network(dropout=0.5), settle(seed=seed), alone)
    torch.seed()
    return stepper.micro_step(*batch(0), ALL, step, micro_step)


def test_dropout_draws_the_same_mask_at_the_same_step(alone):
    assert torch.equal(logits_at(alone, step=7), logits_at(alone, step=7))


def test_dropout_draws_another_mask_at_another_step_micro_step_seed_and_rank(alone):
    places = [
        logits_at(alone, step=7),
        logits_at(alone, step=8),
        logits_at(alone, step=7, micro_step=1),
        logits_at(alone, step=7, seed=1),
        logits_at(replace(alone, rank=1), step=7),
    ]
    assert len(torch.stack(places).flatten(1).unique(dim=0)) == len(places)


def test_resumed_run_draws_the_masks_of_an_uninterrupted_one(alone):
    config = settle(optimizer={"lr": 0.1, "momentum": 0.0})

    def run(model: nn.Module, *steps: int) -> dict[str, torch.Tensor]:
        stepper = stepper_of(model, config, alone)
        for step in steps:
            stepper.micro_step(*batch(step), ALL, step, 0)
        return model.state_dict()

    resumed = network(seed=1, dropout=0.5)
    resumed.load_state_dict(run(network(dropout=0.5), 0, 1))
    torch.seed()
    assert equal(run(resumed, 2, 3), run(network(dropout=0.5), 0, 1, 2, 3))


# What the loop sees


def test_logits_come_back_as_float32_without_a_graph(alone):
    config = settle(train={"precision": "bf16"})
    logits = stepper_of(network(), config, alone).micro_step(*batch(0), ALL, 0, 0)
    assert (logits.dtype, logits.requires_grad, tuple(logits.shape)) == (torch.float32, False, (ROWS, 5))


def test_bf16_keeps_the_weights_in_float32_and_trains_nearly_the_same(alone):
    fp32 = after_engine(settle(optimizer={"lr": 0.01}), alone)
    bf16 = after_engine(settle(optimizer={"lr": 0.01}, train={"precision": "bf16"}), alone)
    assert {weight.dtype for weight in bf16.values()} == {torch.float32}
    assert not equal(bf16, fp32)
    for name, weight in fp32.items():
        torch.testing.assert_close(bf16[name], weight, rtol=0.05, atol=5e-3)


def test_one_process_reduces_nothing(alone, monkeypatch):
    """DeepSpeed would copy all gradients to and fro."""
    stepper = stepper_of(network(), settle(), alone)
    monkeypatch.setattr(stepper.engine, "allreduce_gradients", lambda: pytest.fail("reduced"))
    stepper.micro_step(*batch(0), ALL, 0, 0)
    assert stepper.communication.take_s() == 0


# What a GPU asks for, as far as a CPU can show it


def test_a_step_never_waits_for_the_device(alone, monkeypatch):
    """DeepSpeed's throughput timer does, twice in each micro-step, unless it is turned off. It begins at the third."""
    from deepspeed.accelerator import get_accelerator

    stepper = stepper_of(network(), settle(), alone)
    monkeypatch.setattr(get_accelerator(), "synchronize", lambda *_: pytest.fail("waited"))

    def train() -> None:
        for step in range(5):
            stepper.micro_step(*batch(step), ALL, step, 0)

    train()
    with torch.no_grad():
        stepper.engine.module(batch(0)[0])  # evaluation calls the module, on which the engine's hooks stay
    stepper.engine.tput_timer.config.enabled = True
    with pytest.raises(pytest.fail.Exception, match="waited"):
        train()


def test_weights_momentum_and_gradients_are_channels_last(alone):
    """After deepspeed.initialize; and training goes on as before, but for rounding."""
    config, model = settle(optimizer={"lr": 0.1}), network()
    stepper = stepper_of(model, config, alone)
    engine.use_channels_last(stepper.engine.module)
    for step in range(STEPS):
        stepper.micro_step(*batch(step), ALL, step, 0)
    weight = model[0].weight
    momentum = stepper.engine.optimizer.state[weight]["momentum_buffer"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert momentum.stride() == weight.stride()
    for name, expected in after_plain_sgd(config).items():
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=1e-5, atol=1e-6)


def test_momentum_is_laid_out_as_its_weight_and_the_device_chooses_the_kernel(alone):
    """A checkpoint says neither: one of a CPU goes on with the fused kernel on a GPU, and the other way round."""
    stepper, other = (stepper_of(network(), settle(), alone) for _ in range(2))
    stepper.micro_step(*batch(0), ALL, 0, 0)
    state = optimizer_state.collect(stepper.engine)
    engine.use_channels_last(other.engine.module)
    for group in other.engine.optimizer.param_groups:
        group["fused"] = "as built"
    optimizer_state.restore(other.engine, state)
    assert {group["fused"] for group in other.engine.optimizer.param_groups} == {"as built"}
    for name, weight in other.engine.module.named_parameters():
        momentum = other.engine.optimizer.state[weight]["momentum_buffer"]
        assert torch.equal(momentum, state.momentum[name])
        assert momentum.stride() == weight.stride()


@pytest.mark.slow
def test_gradients_of_a_compiled_part_are_there_before_the_others():
    """A graph of the whole network would call all hooks at its end, and reductions would overlap with nothing."""

    from torch._dynamo.utils import counters

    counters.clear()
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.ReLU(), nn.Sequential(nn.Linear(8, 8)))
    seen: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: seen.append(name))
    engine.compile_module(model, by_part=True)
    features, relu, classifier = model
    maps = features(torch.randn(4, 8))
    maps.register_hook(lambda _: seen.append("the features' backward pass begins"))
    classifier(relu(maps)).sum().backward()
    assert counters["stats"]["unique_graphs"] == 2
    assert set(seen[:2]) == {"2.0.weight", "2.0.bias"}
    assert seen[2] == "the features' backward pass begins"


# DeepSpeed's dictionary


def test_deepspeed_config_follows_from_the_config():
    config = settle(train={"global_batch": 128, "micro_batch": 10}, optimizer={"clip_norm": 2.5})
    found = engine.deepspeed_config(config, world=4, on_gpu=True)
    assert (
        found["train_batch_size"],
        found["train_micro_batch_size_per_gpu"],
        found["gradient_accumulation_steps"],
        found["gradient_clipping"],
        found["zero_optimization"],
    ) == (128, 8, 4, 2.5, {"stage": 0})


def test_clipping_is_off_in_so_many_words():
    """DeepSpeed's default is to clip to norm 1."""
    assert engine.deepspeed_config(Config(), 1, False)["gradient_clipping"] == 0.0


@pytest.mark.parametrize(
    ("precision", "on_gpu", "bf16"),
    [("auto", True, True), ("auto", False, False), ("bf16", False, True), ("fp32", True, False)],
)
def test_precision(precision, on_gpu, bf16):
    found = engine.deepspeed_config(settle(train={"precision": precision}), 1, on_gpu)
    assert found["torch_autocast"] == {"enabled": bf16, "dtype": "bfloat16"}
    assert not {"bf16", "fp16"} & found.keys()
