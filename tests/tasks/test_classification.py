"""Counts against a slow count in plain Python."""

import math

import pytest
import torch

from pipeline.config import Config
from pipeline.evaluation.score import Score
from pipeline.tasks.classification import Classification, score


def count(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Rows with label -1 are not valid, and have any other label."""
    return Classification(Config()).counts(logits, labels.clamp(min=0), labels >= 0)


def batch(rows: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=generator)
    return logits, torch.randint(-1, classes, (rows,), generator=generator)


def counted_slowly(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    seen = correct1 = correct5 = 0
    losses = []
    for row, label in zip(logits.log_softmax(dim=1).tolist(), labels.tolist(), strict=True):
        if label == -1:
            continue
        better = sum(value > row[label] for value in row)
        seen, correct1, correct5 = seen + 1, correct1 + (better < 1), correct5 + (better < 5)
        losses.append(-row[label])
    return [seen, correct1, correct5, math.fsum(losses)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 4, 5, 6, 100])
def test_counts_equal_a_slow_count(classes, seed):
    logits, labels = batch(200, classes, seed)
    assert (labels == -1).any()
    counts = count(logits, labels).tolist()
    expected = counted_slowly(logits, labels)
    expected[2] = math.nan if classes <= 5 else expected[2]  # nobody misses five of five
    assert counts == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_rows_labelled_minus_one_are_ignored_whatever_they_hold():
    logits, labels = batch(200, 10)
    spoiled = logits.clone()
    spoiled[labels == -1] = float("nan")
    assert torch.equal(count(spoiled, labels), count(logits, labels))
    assert count(spoiled, torch.full((200,), -1)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("classes", [3, 5])
def test_five_classes_and_fewer_have_no_top_five(classes):
    counts = count(*batch(50, classes)) + count(*batch(50, classes, seed=1))
    found = score(counts)
    assert (found.correct5, found.top5_error) == (None, None)
    assert found.seen > found.correct1 > 0
    assert score(count(*batch(50, 6))).correct5 is not None


@pytest.mark.parametrize("label", range(6))
def test_row_with_nan_is_wrong(label):
    row = torch.full((1, 6), -9.0)
    row[0, label] = -0.1
    assert count(row, torch.tensor([label])).tolist()[:3] == [1, 1, 1]
    for broken in (torch.full((1, 6), float("nan")), row.index_fill(1, torch.tensor([2]), float("nan"))):
        assert count(broken, torch.tensor([label])).tolist()[:3] == [1, 0, 0]


@pytest.mark.parametrize("sizes", [[100, 100], [1, 199], [64, 64, 64, 8]])
def test_counts_add_up_over_splits(sizes):
    logits, labels = batch(200, 20)
    parts = zip(logits.split(sizes), labels.split(sizes), strict=True)
    added = sum(count(*part) for part in parts)
    whole = count(logits, labels)
    assert torch.equal(added[:3], whole[:3])
    torch.testing.assert_close(added[3], whole[3], rtol=1e-13, atol=0)


def test_count_is_exact_beyond_the_integers_of_float32():
    logits, labels = batch(1, 5)
    many = torch.tensor([2.0**24, 2.0**24, 2.0**24, 0.0], dtype=torch.float64)
    assert (many + count(logits, labels.fill_(0)))[0] == 2**24 + 1


def test_score_of_counts():
    result = score(torch.tensor([8.0, 5.0, 7.0, 4.0], dtype=torch.float64))
    assert result == Score(seen=8, correct1=5, correct5=7, loss=0.5)
    assert (result.top1_error, result.top5_error) == (0.375, 0.125)
