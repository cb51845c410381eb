"""The summary of a bench."""

from pipeline.bench.rows import Row, table


def test_a_row_is_a_share_of_its_smallest_limit():
    row = Row("train", "ours", [8.0, 9.0, 10.0], {"step": [20.0, 10.0, 20.0], "decoding": [16.0, 18.0, 5.0]})
    assert row.bottleneck == "decoding"
    assert row.share == 9 / 16
    assert row.ratios == [0.5, 0.9, 2.0]
    assert table([row]).splitlines()[-1].endswith("| 0.56 | 0.90 (0.50..2.00) | decoding |")
