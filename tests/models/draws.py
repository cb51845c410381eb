"""Are these weights drawn from that law? Three statistics, each within four standard errors.

A right draw leaves four standard errors once in 16,000 times; the tests fix their seed.
"""

from math import sqrt
from typing import Literal

import torch

# Of a law with deviation 1: the share within one deviation, and the kurtosis, on which the deviation's error depends.
LAWS = {"normal": (0.682689, 3.0), "uniform": (1 / sqrt(3), 1.8)}


def require_drawn(weights: torch.Tensor, law: Literal["normal", "uniform"], std: float) -> None:
    """Fails unless `weights` look drawn from `law` around 0 with deviation `std`; uniform ones must keep its bounds."""
    drawn, n = weights.detach().double().flatten() / std, weights.numel()
    within, kurtosis = LAWS[law]
    share = (drawn.abs() < 1).double().mean().item()
    standard_errors = {
        "mean": drawn.mean().item() * sqrt(n),
        "deviation": (drawn.std().item() - 1) / sqrt((kurtosis - 1) / (4 * n)),
        "share within one deviation": (share - within) / sqrt(within * (1 - within) / n),
    }
    assert max(map(abs, standard_errors.values())) < 4, standard_errors
    if law == "uniform":
        assert drawn.abs().max() <= sqrt(3) * (1 + 1e-6)
