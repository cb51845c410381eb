"""Parts of the bench that are cut tell what their whole rounds gave."""

from pipeline.bench import evaluation, step, turns
from pipeline.bench.race import NO_ROUND


def interrupted_in(number: int):
    """A clock that is interrupted when it is asked to time a turn for the so manieth time."""
    calls = iter(range(10**6))

    def seconds(turn, runtime) -> float:
        if next(calls) == number:
            raise KeyboardInterrupt
        return 0.5

    return seconds


def test_steps_that_are_cut_tell_what_they_have(monkeypatch):
    work = {name: turns.Turn(lambda: None, 4) for name in (turns.OURS, turns.BARE)}
    limits = {name: turns.Turn(lambda: None, 1e9) for name in ("matrix product", "memory copy")}
    monkeypatch.setattr(turns, "limits_of", lambda *_: limits)
    monkeypatch.setattr(turns, "steps_of", lambda *_: work)
    monkeypatch.setattr(turns, "seconds", interrupted_in(4 * 3 + 2 * 4 + 1))  # in the third round
    said: list[str] = []
    rows, facts = step.measure(step.Steps(("alexnet", "alexnet_2012"), batches=(4, 5), rounds=3), said.append)
    assert [row.part for row in rows] == ["step", "engine"]
    assert {len(rates) for rates in facts["networks"]["alexnet"]["rates"][4].values()} == {2}
    assert facts["cut"] == "alexnet, 4 images: cut after 2 of 3 rounds"
    assert [line for line in said if NO_ROUND in line] == [
        f"alexnet, 5 images: {NO_ROUND}",
        f"alexnet_2012: {NO_ROUND}",
    ]


def test_views_that_are_cut_tell_what_they_have(monkeypatch, held_out):
    said: list[str] = []
    monkeypatch.setattr(evaluation, "_turns", lambda *_: dict.fromkeys(("ours", "network alone", "decoding alone")))
    wanted = evaluation.Race(str(held_out), views=("centre", "ten"), rounds=3, images=3)
    for number, of_rounds, num_rows in ((6 * 2 + 1, 1, 2), (1, 0, 0)):
        monkeypatch.setattr(evaluation, "_timed", interrupted_in(number))
        rows, facts = evaluation.measure(wanted, said.append)
        assert len(rows) == num_rows
        assert said[-1] == facts["cut"] == f"alexnet: cut after {of_rounds} of 3 rounds"
