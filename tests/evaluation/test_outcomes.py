"""Counts of outcomes against plain Python, over any number of ranks, and what must not happen."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipeline.evaluation.interval import wilson
from pipeline.evaluation.outcomes import NO_CLASS, Accumulator

CPU = torch.device("cpu")


def filled(labels: np.ndarray, p: torch.Tensor, scored: np.ndarray, parts, monkeypatch) -> Accumulator:
    """The table of rank 0 when `parts` are the ids that each rank has seen; the others' rows come by the reduction."""
    tables = []
    for ids in parts:
        table = Accumulator(labels, ["centre"], CPU)
        for chunk in np.array_split(np.array(ids, int), 3):
            table.add(torch.from_numpy(chunk), torch.from_numpy(scored[chunk]), [p[chunk]])
        tables.append(table)
    rest = [table.rows for table in tables[1:]]
    monkeypatch.setattr(dist, "all_reduce", lambda rows: [rows.add_(other) for other in rest])
    return tables[0]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    p = (3 * torch.randn(40, 9, generator=generator)).double().softmax(dim=1)
    labels = torch.randint(9, (40,), generator=generator).numpy()
    scored = np.arange(40) % 7 != 3
    return labels, p, scored


@pytest.mark.parametrize("world", [1, 2, 3])
def test_scores_equal_a_slow_count(batch, world, monkeypatch):
    labels, p, scored = batch
    parts = [range(rank, 40, world) for rank in range(world)]
    found = filled(labels, p, scored, parts, monkeypatch).reduced()
    ids = np.flatnonzero(scored).tolist()
    better = [int((p[n] > p[n, labels[n]]).sum()) for n in ids]
    score = found.scores()["centre"]
    assert (score.seen, score.correct1, score.correct5) == (len(ids), *(sum(b < k for b in better) for k in (1, 5)))
    assert score.loss == pytest.approx(-math.fsum(math.log(p[n, labels[n]]) for n in ids) / len(ids), rel=1e-12)
    outcome = found.views["centre"]
    assert np.array_equal(outcome.classes[ids], p[ids].topk(5).indices.numpy())
    assert np.array_equal(outcome.probabilities[ids], p[ids].topk(5).values.numpy())  # to the bit
    assert np.array_equal(outcome.label_probability[ids], p[ids, labels[ids]].numpy())
    assert (outcome.classes[~scored] == NO_CLASS).all()


@pytest.mark.parametrize(
    ("parts", "ids"),
    [([range(39)], r"\[39\]"), ([range(40), [5]], r"\[5\]"), ([range(10), range(12, 40)], r"\[10, 11\]")],
)
def test_images_left_out_or_seen_twice_are_an_error(batch, parts, ids, monkeypatch):
    labels, p, scored = batch
    with pytest.raises(RuntimeError, match=f"evaluation is not exact: .* ids {ids}"):
        filled(labels, p, scored, parts, monkeypatch).reduced()


@pytest.mark.parametrize(
    ("num_wrong", "seen", "interval"),
    [  # computed by hand from Wilson's formula, and as R's binom::binom.wilson gives them
        (0, 10, (0.0, 0.2775)),
        (2, 20, (0.0279, 0.3010)),
        (5, 10, (0.2366, 0.7634)),
        (10, 10, (0.7225, 1.0)),
        (21739, 50000, (0.4304, 0.4391)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_wilsons_interval(num_wrong, seen, interval):
    assert wilson(num_wrong, seen) == pytest.approx(interval, abs=1e-4)
