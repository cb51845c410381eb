"""Momentum SGD: which parameters decay, and the update against the formula written out."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import optim
from pipeline.config import Optimizer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))


def decay_by_name(model: nn.Module, built: torch.optim.Optimizer) -> dict[str, float]:
    decays = {id(weight): group["weight_decay"] for group in built.param_groups for weight in group["params"]}
    return {name: decays[id(weight)] for name, weight in model.named_parameters() if id(weight) in decays}


@pytest.mark.parametrize(("other", "expected"), [(None, 5e-4), (0.0, 0.0), (0.1, 0.1)])
def test_biases_and_normalisation_have_a_decay_of_their_own(other, expected):
    model = network()
    built = optim.build(model, Optimizer(weight_decay_bias_norm=other))
    weights = {"0.weight": 5e-4, "4.weight": 5e-4}
    others = dict.fromkeys(["0.bias", "1.weight", "1.bias", "4.bias"], expected)
    assert decay_by_name(model, built) == weights | others


def test_frozen_parameters_are_left_out():
    model = network()
    model[0].requires_grad_(False)
    assert decay_by_name(model, optim.build(model, Optimizer())).keys() == {"1.weight", "1.bias", "4.weight", "4.bias"}


def test_network_without_biases():
    model = nn.Linear(3, 2, bias=False)
    assert len(optim.build(model, Optimizer()).param_groups) == 1


@pytest.mark.parametrize("nesterov", [False, True])
def test_update_equals_the_formula(nesterov):
    model = nn.Linear(3, 2).double()
    settings = Optimizer(lr=0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.01, weight_decay_bias_norm=0.002)
    built = optim.build(model, settings)
    expected = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    velocity = {name: torch.zeros_like(weight) for name, weight in expected.items()}
    for step in range(4):
        for name, weight in model.named_parameters():
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)).double()
            slope = weight.grad + {"weight": 0.01, "bias": 0.002}[name] * expected[name]
            velocity[name] = 0.8 * velocity[name] + slope
            expected[name] = expected[name] - 0.1 * (slope + 0.8 * velocity[name] if nesterov else velocity[name])
        built.step()
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-14, atol=1e-14)


# The papers' form


LRS = [0.1] * 6 + [0.01] * 6
GRADIENTS = np.random.default_rng(0).standard_normal((len(LRS), 5))


def papers_path(decay: float = 5e-4, lrs: list[float] = LRS) -> np.ndarray:
    """Weights [step, 5] by the formula of the paper (Krizhevsky et al. 2012, section 5), from ones."""
    w, v, path = np.ones(5), np.zeros(5), []
    for lr, g in zip(lrs, GRADIENTS, strict=False):
        v = 0.9 * v - decay * lr * w - lr * g
        w = w + v
        path.append(w)
    return np.array(path)


def start(lr_in_velocity: bool, decay: float = 5e-4) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    model = nn.Linear(5, 1, bias=False).double()
    nn.init.ones_(model.weight)
    return model.weight, optim.build(model, Optimizer(lr=0.1, weight_decay=decay, lr_in_velocity=lr_in_velocity))


def walk(weight: nn.Parameter, built: torch.optim.Optimizer, first: int = 0, last: int = len(LRS)) -> np.ndarray:
    """Weights [step, 5] after each of the steps `first` to `last`."""
    path = []
    for step in range(first, last):
        for group in built.param_groups:
            group["lr"] = LRS[step]
        weight.grad = torch.from_numpy(GRADIENTS[step])[None]
        built.step()
        path.append(weight.detach().numpy()[0].copy())
    return np.array(path)


def test_the_papers_form_is_the_papers_formula_across_a_drop_of_the_learning_rate():
    np.testing.assert_allclose(walk(*start(lr_in_velocity=True)), papers_path(), rtol=1e-13)


def test_pytorchs_form_is_the_same_until_the_learning_rate_drops_and_no_longer():
    papers, pytorchs = papers_path(), walk(*start(lr_in_velocity=False))
    np.testing.assert_allclose(pytorchs[:6], papers[:6], rtol=1e-13)
    assert np.abs(pytorchs[6:] - papers[6:]).max(axis=1).min() > 0.1


def test_by_how_much_the_two_forms_differ_after_a_drop():
    """The papers' velocity is -lr times PyTorch's. k steps after a drop, what it carries of the old rate has moved the
    weights by (new lr - old lr) (0.9 + ... + 0.9^k) times PyTorch's velocity of before; decay aside."""
    papers = walk(*start(lr_in_velocity=True, decay=0.0))
    weight, built = start(lr_in_velocity=False, decay=0.0)
    before = walk(weight, built, last=6)
    velocity = built.state[weight]["momentum_buffer"].numpy()[0].copy()
    after = walk(weight, built, first=6)
    np.testing.assert_allclose(before, papers[:6], rtol=1e-13)
    sums = np.cumsum(0.9 ** np.arange(1, 7))
    np.testing.assert_allclose(papers[6:] - after, (0.01 - 0.1) * sums[:, None] * velocity, rtol=1e-10)


def test_the_papers_velocity_is_in_the_state():
    """Saved at the drop, where the velocity of the old rate matters most."""
    weight, built = start(lr_in_velocity=True)
    path = walk(weight, built, last=6)
    file = io.BytesIO()
    torch.save(built.state_dict(), file)
    resumed, other = start(lr_in_velocity=True)
    with torch.no_grad():
        resumed.copy_(weight)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    velocity = -other.param_groups[0]["velocity_lr"] * other.state[resumed]["momentum_buffer"][0]
    np.testing.assert_allclose(velocity, path[5] - path[4], rtol=1e-12)
    assert np.array_equal(walk(resumed, other, first=6), walk(weight, built, first=6))


def test_the_papers_form_has_a_decay_a_group_and_leaves_frozen_weights():
    model = network()
    model[0].requires_grad_(False)
    frozen = model[0].weight.clone()
    built = optim.build(model, Optimizer(lr=0.1, weight_decay_bias_norm=0.0, lr_in_velocity=True))
    for weight in model[4].parameters():
        weight.grad = torch.zeros_like(weight)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    built.step()
    assert torch.equal(model[0].weight, frozen)
    assert torch.equal(model[4].bias, before["4.bias"])
    torch.testing.assert_close(model[4].weight, before["4.weight"] * (1 - 0.1 * 5e-4))
    assert torch.equal(model[1].weight, before["1.weight"])  # no gradient, no update
