"""A log keeps what counts."""

from tests.benchmarks.short_log import shortened


def test_a_log_keeps_few_of_a_warning_and_all_of_a_table():
    lines = ["| a | 1 |\n", *(f"[dali.cc:{n}] Warning: image {n} is odd\n" for n in range(9)), "step 1\n", "step 2\n"]
    kept = list(shortened(lines))
    assert kept == [*lines[:4], *lines[-2:], "(6 lines left out: repeated warnings, or too much for a log)\n"]
    kept = list(shortened(["x\n"] * 99 + ["| warn |\n"] * 9, most_bytes=10))
    assert kept[:-1] == ["x\n"] * 6 + ["| warn |\n"] * 9
