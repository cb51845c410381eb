"""launch.bench: contestants take turns and are told of when they cannot; nonsense is refused. No time is asserted."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from conftest import called, jpeg, photo, refused

from launch import bench as command
from tests.benchmarks import evaluation, step
from tests.benchmarks.rounds import NO_ROUND, Process, race
from tests.benchmarks.rows import Row, table
from tests.benchmarks.short_log import shortened

ROOT = Path(__file__).parents[2]
# Answers as a contestant does; leaves in its second counted turn if told so.
FAKE = """
import json, sys
print(json.dumps({"versions": "fake 1"}), flush=True)
for turn, line in enumerate(sys.stdin):
    if turn == int(sys.argv[1]):
        sys.exit("had enough")
    print(json.dumps({"images": int(line.split()[1]), "seconds": 0.5}), flush=True)
"""


def bench(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.bench", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def photos(tmp_path) -> Path:
    """80 small photos in 4 class folders."""
    folder = tmp_path / "photos"
    for number in range(80):
        path = folder / f"class-{number % 4}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photo(number, number % 4, 60 + number % 7, 90)))
    return folder


@pytest.mark.slow
def test_ours_and_a_peer_take_turns_and_a_missing_one_is_told(photos, tmp_path):
    names = ["ours", "torchvision_folder", "ffcv_raw"]
    out = tmp_path / "loader.json"
    words = ["--photos", str(photos), "--work", str(tmp_path / "work"), "--json", str(out), "--sizes", "original"]
    words += ["--contestants", ",".join(names), "--rounds", "2", "--images", "128", "--min-turn-s", "0", "--cores", "1"]
    done = bench("loader", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split("|")[1].strip(): line for line in done.stdout.splitlines() if line.startswith("| ")}
    assert set(rows) == {"contestant", *names}  # without limits there is no summary
    assert "not installed" in rows["ffcv_raw"]
    results = json.loads(out.read_text())["parts"]["loader"]["results"]["original"]
    for name in names[:2]:
        assert results[name]["failed"] == ""
        assert results[name]["images"] == [128, 128]
        assert min(results[name]["seconds"]) > 0


@pytest.mark.slow
def test_views_are_raced_against_their_limits(held_out, tmp_path):
    out = tmp_path / "views.json"
    words = ["--set", str(held_out), "--views", "centre,dense", "--images", "3", "--rounds", "2", "--json", str(out)]
    done = bench("evaluate", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in done.stdout.splitlines() if line[:2] == "| "]
    assert rows[1:3] == [["centre", "1"], ["dense", "2"]]
    assert rows[3:] == [["part", "what"], ["evaluate", "alexnet: centre"], ["evaluate", "alexnet: dense"]]
    facts = json.loads(out.read_text())
    for rates in facts["parts"]["evaluate"]["images_per_s"].values():
        assert set(rates) == {"ours", "network alone", "decoding alone"}
        assert all(len(turns) == 2 and min(turns) > 0 for turns in rates.values())


@pytest.mark.slow
def test_training_is_raced_against_its_limits_and_a_peer(photos, tmp_path):
    names = ["ours", "torchvision_reference", "dali_example", "limit_step", "limit_dali"]
    out, plot = tmp_path / "train.json", tmp_path / "train.png"
    words = ["--photos", str(photos), "--work", str(tmp_path / "work"), "--json", str(out), "--sizes", "original"]
    words += ["--contestants", ",".join(names), "--rounds", "2", "--images", "16", "--min-turn-s", "0", "--cores", "1"]
    done = bench("train", *words, "--batch", "8", "--plot", str(plot))
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(out.read_text())
    results = facts["parts"]["train"]["results"]["original"]
    assert {name: result["failed"] for name, result in results.items()} == dict.fromkeys(names, "")
    (row,) = facts["rows"]
    assert (row["what"], set(row["limits"])) == ("alexnet, original: ours", {"limit_step", "limit_dali"})
    assert row["bottleneck"] == "limit_step"  # AlexNet at 224 px on a CPU
    assert len(row["rates"]) == 2
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.prove  # 60 s
def test_parts_that_fail_do_not_cost_the_others_figures(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "all.json"
    (photos / "class").mkdir(parents=True)
    (photos / "class" / "1.jpg").write_bytes(b"no JPEG")
    words = ["--photos", str(photos), "--work", str(tmp_path / "work"), "--json", str(out), "--rounds", "1"]
    done = bench("all", *words, "--networks", "alexnet", "--cores", "1")
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert [word in said for word in ("bench step", "bench loader", "bench train", "bench evaluate")] == [0, 1, 1, 1]
    assert [row["part"] for row in json.loads(out.read_text())["rows"]] == ["step", "engine"]


@pytest.mark.slow
def test_steps_are_measured_against_a_bare_loop(tmp_path):
    out = tmp_path / "step.json"
    words = ["--networks", "alexnet", "--batches", "2,3", "--rounds", "2", "--min-turn-s", "0", "--json", str(out)]
    done = bench("step", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(out.read_text())
    found = facts["parts"]["step"]["networks"]["alexnet"]
    assert found["macs"] == 714_188_480  # as models.summary has it
    assert set(found["rates"]) == {"2", "3"}
    for rates in found["rates"].values():
        assert set(rates) == {"matrix product", "memory copy", "ours", "bare loop"}
        assert all(len(turns) == 2 and min(turns) > 0 for turns in rates.values())
    assert [row["part"] for row in facts["rows"]] == ["step", "engine"]


def test_a_row_is_a_share_of_its_smallest_limit():
    row = Row("train", "ours", [8.0, 9.0, 10.0], {"step": [20.0, 10.0, 20.0], "decoding": [16.0, 18.0, 5.0]})
    assert row.bottleneck == "decoding"
    assert row.share == 9 / 16
    assert row.ratios == [0.5, 0.9, 2.0]
    assert table([row]).splitlines()[-1].endswith("| 0.56 | 0.90 (0.50..2.00) | decoding |")


def test_a_picture_of_runs(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    points = [{"step": n, "epoch": n / 2, "train/top1_error": 1 / n} for n in (1, 2, 3)]
    points += [{"step": 2, "epoch": 1.0, "eval/centre/top1_error": 0.4}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    picture = tmp_path / "curves.png"
    command = [sys.executable, "-m", "tests.benchmarks.plot", "curves", str(run), str(picture)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    assert picture.read_bytes().startswith(b"\x89PNG")
    command[-2] = str(tmp_path)
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert "is no run folder" in refused(ended)


def test_one_that_ends_is_left_out_with_its_last_words(tmp_path):
    def begin(name: str, turns: int) -> Process:
        return Process([sys.executable, "-c", FAKE, str(turns)], dict(os.environ), ROOT, tmp_path / name)

    results, num_rounds = race(
        {name: partial(begin, name, turns) for name, turns in (("stays", 99), ("leaves", 2))}, 3, 10, 1, print
    )
    assert num_rounds == 3
    assert results["stays"].rates == [40, 40, 40]  # the first turn told that 20 images take a second
    assert results["stays"].versions == "fake 1"
    assert results["leaves"].failed == "ended: had enough"
    assert len(results["leaves"].rates) == 1


def test_a_race_that_is_cut_keeps_its_whole_rounds(tmp_path):
    begun: list[Process] = []

    def begin(name: str) -> Process:
        begun.append(Process([sys.executable, "-c", FAKE, "99"], dict(os.environ), ROOT, tmp_path / name))
        if name == "last":
            turn = begun[-1].turn
            turns = iter(range(99))
            begun[-1].turn = lambda number: interrupt() if next(turns) == cut_at else turn(number)  # type: ignore[method-assign]
        return begun[-1]

    def interrupt() -> None:
        raise KeyboardInterrupt

    names = ("first", "last")
    cut_at = 3  # its third counted turn
    results, num_rounds = race({name: partial(begin, name) for name in names}, 5, 10, 1, print)
    assert (num_rounds, [len(results[name].rates) for name in names]) == (2, [2, 2])
    assert all(process.process.returncode is not None for process in begun)
    cut_at = 0  # before anything counts
    results, num_rounds = race({name: partial(begin, name) for name in names}, 5, 10, 1, print)
    assert (num_rounds, {results[name].failed for name in names}) == (0, {NO_ROUND})


def cut(signal_number: int, words: list[str], line: str) -> tuple[int, str]:
    """Exit code and output of `launch.bench WORDS`, sent that signal once it has said `line`."""
    command = [sys.executable, "-m", "launch.bench", *words]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    said = []
    for text in process.stdout:
        said.append(text)
        if text.startswith(line):
            process.send_signal(signal_number)
    return process.wait(timeout=60), "".join(said)


@pytest.mark.slow
def test_a_contest_that_is_cut_tells_what_it_has(photos, tmp_path):
    out = tmp_path / "loader.json"
    words = ["loader", "--photos", str(photos), "--work", str(tmp_path / "work"), "--json", str(out)]
    words += ["--sizes", "original", "--contestants", "ours,limit_dali,ffcv_raw", "--rounds", "1000", "--images", "64"]
    code, said = cut(signal.SIGTERM, [*words, "--min-turn-s", "0", "--cores", "1"], "round 2 of 1000")
    assert code == 143, said
    facts = json.loads(out.read_text())
    results = facts["parts"]["loader"]["results"]["original"]
    (num_rounds,) = {len(results[name]["images"]) for name in ("ours", "limit_dali")}
    assert 2 <= num_rounds < 1000
    cut_line = f"original: cut after {num_rounds} of 1000 rounds"
    assert cut_line in said.splitlines()
    assert facts["parts"]["loader"]["cut"] == cut_line
    assert "| ours | DALI" in said
    assert "| ffcv_raw | not installed" in said
    assert [row["what"] for row in facts["rows"]] == ["original: ours"]

    code, said = cut(signal.SIGINT, words, "starting limit_dali")
    assert code == 130, said
    assert f"| ours | {NO_ROUND} |" in said
    assert f"| limit_dali | {NO_ROUND} |" in said
    assert json.loads(out.read_text())["parts"]["loader"]["cut"] == "original: cut after 0 of 1000 rounds"


def test_steps_and_views_that_are_cut_tell_what_they_have(monkeypatch, tmp_path, held_out):
    def interrupted_in(number: int):
        """A clock that is interrupted when it is asked to time a turn for the so manieth time."""
        calls = iter(range(10**6))

        def seconds(turn, runtime) -> float:
            if next(calls) == number:
                raise KeyboardInterrupt
            return 0.5

        return seconds

    work = {name: step.Turn(lambda: None, 4) for name in (step.OURS, step.BARE)}
    monkeypatch.setattr(
        step, "_limits", lambda *_: {"matrix product": (lambda: None, 1e9), "memory copy": (lambda: None, 1e9)}
    )
    monkeypatch.setattr(step, "_turns", lambda *_: work)
    monkeypatch.setattr(step, "_seconds", interrupted_in(4 * 3 + 2 * 4 + 1))  # in the third round
    said: list[str] = []
    rows, facts = step.measure(step.Steps(("alexnet", "alexnet_2012"), batches=(4, 5), rounds=3), said.append)
    assert [row.part for row in rows] == ["step", "engine"]
    assert {len(rates) for rates in facts["networks"]["alexnet"]["rates"][4].values()} == {2}
    assert facts["cut"] == "alexnet, 4 images: cut after 2 of 3 rounds"
    assert [line for line in said if NO_ROUND in line] == [
        f"alexnet, 5 images: {NO_ROUND}",
        f"alexnet_2012: {NO_ROUND}",
    ]

    monkeypatch.setattr(evaluation, "_turns", lambda *_: dict.fromkeys(("ours", "network alone", "decoding alone")))
    wanted = evaluation.Race(str(held_out), views=("centre", "ten"), rounds=3, images=3)
    for number, of_rounds, num_rows in ((6 * 2 + 1, 1, 2), (1, 0, 0)):
        monkeypatch.setattr(evaluation, "_timed", interrupted_in(number))
        rows, facts = evaluation.measure(wanted, said.append)
        assert len(rows) == num_rows
        assert said[-1] == facts["cut"] == f"alexnet: cut after {of_rounds} of 3 rounds"


def test_a_log_keeps_few_of_a_warning_and_all_of_a_table():
    lines = ["| a | 1 |\n", *(f"[dali.cc:{n}] Warning: image {n} is odd\n" for n in range(9)), "step 1\n", "step 2\n"]
    kept = list(shortened(lines))
    assert kept == [*lines[:4], *lines[-2:], "(6 lines left out: repeated warnings, or too much for a log)\n"]
    kept = list(shortened(["x\n"] * 99 + ["| warn |\n"] * 9, most_bytes=10))
    assert kept[:-1] == ["x\n"] * 6 + ["| warn |\n"] * 9


def test_what_makes_no_sense_is_refused(photos, tmp_path, monkeypatch):
    for name, value in command.KEEP_MEMORY.items():
        monkeypatch.setenv(name, value)  # else it starts itself anew with them
    bench = partial(called, command.main)
    given = ["--photos", str(photos), "--work", str(tmp_path / "work")]
    assert "there is no 'theirs'" in refused(bench("loader", *given, "--contestants", "ours,theirs"))
    assert "--rounds 0" in refused(bench("loader", *given, "--rounds", "0"))
    assert "is no folder" in refused(bench("loader", "--photos", str(tmp_path / "nothing")))
    assert "--images 0" in refused(bench("evaluate", "--set", str(photos), "--images", "0"))
    assert "'six' is no view" in refused(bench("evaluate", "--set", str(photos), "--views", "six"))
    assert "there is no 'theirs'" in refused(bench("train", *given, "--contestants", "theirs"))
    assert "unknown model 'alexnot'" in refused(bench("step", "--networks", "alexnot"))
    assert "--batches 0: give 1 or more" in refused(bench("step", "--batches", "4,0"))
    assert "unknown model 'alexnot'" in refused(bench("evaluate", "--set", str(photos), "--model", "alexnot"))
    assert f"--json {tmp_path}: no file can be written" in refused(bench("step", "--json", str(tmp_path)))
    assert "is no picture's name" in refused(bench("all", *given, "--plot", str(tmp_path / "all.xyz")))
    (tmp_path / "empty").mkdir()
    assert "no class folders" in refused(bench("loader", "--photos", str(tmp_path / "empty")))
