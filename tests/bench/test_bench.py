"""launch.bench: contestants take turns and are told of when they cannot; nonsense is refused. No time is asserted."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import called, jpeg, photo, refused

from launch import bench as command
from pipeline.bench import contest, field
from pipeline.bench.race import NO_ROUND
from pipeline.errors import UserError

ROOT = Path(__file__).parents[2]


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


def test_without_the_peers_scripts_ours_and_the_limits_run(photos, tmp_path, monkeypatch):
    """As in an installed package, which has no tests."""
    monkeypatch.setattr(field, "PEERS", tmp_path / "nowhere")
    asked = {"photos": photos, "work": tmp_path / "work"}
    for kind in ("loader", "train"):
        names = contest.Contest(kind, **asked).field()
        assert "ours" in names
        assert all(name.startswith(("ours", "limit_")) for name in names)
    with pytest.raises(UserError, match=f"--contestants timm_loader: there is no {tmp_path}/nowhere/loaders/timm_load"):
        contest.Contest("loader", contestants=("ours", "timm_loader"), **asked)


def test_each_contestant_is_a_program_that_is_here():
    for contestants in field.FIELDS.values():
        for one in contestants.values():
            assert one.is_here
            assert one.script or find_spec(one.command[-1])
