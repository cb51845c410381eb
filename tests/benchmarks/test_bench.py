"""launch.bench: contestants take turns and are told of when they cannot; nonsense is refused. No time is asserted."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from conftest import jpeg, photo, refused

from tests.benchmarks.rounds import Process, race
from tests.benchmarks.rows import Row, table

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


@pytest.mark.slow
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

    results = race(
        {name: partial(begin, name, turns) for name, turns in (("stays", 99), ("leaves", 2))}, 3, 10, 1, print
    )
    assert results["stays"].rates == [40, 40, 40]  # the first turn told that 20 images take a second
    assert results["stays"].versions == "fake 1"
    assert results["leaves"].failed == "ended: had enough"
    assert len(results["leaves"].rates) == 1


def test_what_makes_no_sense_is_refused(photos, tmp_path):
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
