"""Momentum SGD: which parameters decay, and the update against the formula written out."""

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


@pytest.mark.parametrize(("lr_in_velocity", "expected"), [(True, [True] * 6), (False, [True] * 3 + [False] * 3)])
def test_the_papers_form_is_pytorchs_until_the_learning_rate_drops(lr_in_velocity, expected):
    """v = 0.9 v - 5e-4 lr w - lr g; w += v (Krizhevsky et al. 2012, section 5)."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    built = optim.build(model, Optimizer(lr=0.1, lr_in_velocity=lr_in_velocity))
    weight, velocity, agrees = 1.0, 0.0, []
    for lr in (0.1, 0.1, 0.1, 0.01, 0.01, 0.01):
        built.param_groups[0]["lr"] = lr
        model.weight.grad = torch.full_like(model.weight, 0.3)
        built.step()
        velocity = 0.9 * velocity - 5e-4 * lr * weight - lr * 0.3
        weight += velocity
        agrees.append(model.weight.item() == pytest.approx(weight, rel=1e-12))
    assert agrees == expected


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
