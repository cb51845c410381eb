"""What a mistake looks like: under torchrun too, whichever process makes it."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import called, refused

ROOT = Path(__file__).parents[2]
MISTAKE = """
import os, time
from launch.command import run
from pipeline.errors import UserError
def main():
    if os.environ["RANK"] in {ranks}:
        raise UserError("shard-7.tar cannot be opened")
    time.sleep(60)
run(lambda: main() or 0, as_rank=True)
"""


@pytest.mark.parametrize("ranks", ["01", "0", "1"])
def test_a_mistake_is_told_once_whichever_process_makes_it(tmp_path, ranks):
    script = tmp_path / "script.py"
    script.write_text(MISTAKE.format(ranks=repr(ranks)))
    done = subprocess.run(
        [sys.executable, "-m", "launch.torchrun", "--standalone", "--nproc-per-node", "2", script],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.endswith("error: shard-7.tar cannot be opened\n") or ranks == "1"  # then it says which rank
    assert done.stderr.count("error: shard-7.tar cannot be opened") == 1
    assert [line for line in done.stderr.splitlines() if "/torch/" in line] == []


def test_a_folder_that_cannot_be_made_is_no_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "launch.draw", tmp_path / "file" / "out", "--train", "10", "--validation", "10"]
    done = subprocess.run([*command, "--workers", "1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "module",
    [
        f"launch.{name}"
        for name in ["pack", "lint", "train", "evaluate", "export", "bench", "draw", "torchrun", "network"]
    ]
    + ["models.summary"],
)
def test_without_the_environment_each_command_says_one_line(module):
    """-S leaves the installed packages out, as a Python beside the environment does."""
    words = [sys.executable, "-S", "-m", module, "x", "y"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {sys.executable} lacks numpy, ")
    assert done.stderr.endswith("torch, yaml. Run make install, then .venv/bin/python\n")


@pytest.mark.parametrize("module", ["launch.lint", "launch.train"])
def test_a_reader_that_leaves_is_no_traceback(tmp_path, held_out, module):
    """As `| head -1` does."""
    words = [held_out, "--out", tmp_path, "--workers", "1"]
    if module == "launch.train":
        words = [
            "configs/alexnet_cpu.yaml",
            f"data.train={held_out}",
            "data.validation=none",
            f"run={tmp_path / 'run'}",
        ]
        words += ["train.global_batch=4", "--check"]
    command = [sys.executable, "-m", module, *words]
    ended = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert ended.stdout
    assert ended.stderr
    ended.stdout.close()
    assert ended.stderr.read() == ""
    assert ended.wait() == 128 + signal.SIGPIPE


def test_a_package_that_is_missing_is_told_in_one_message(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')")
    variables = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-m", "launch.lint", tmp_path]
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no torch: ")
    assert done.stderr.endswith("Run make install, then .venv/bin/python\n")


COMMANDS = ["pack", "lint", "train", "evaluate", "export", "bench", "draw"]


@pytest.mark.parametrize(
    ("module", "words", "told"),
    [
        ("pack", ["a", "b", "--workers", "x"], "--workers: invalid int value: 'x'"),
        ("lint", ["a", "--workers", "1.5"], "--workers: invalid int value: '1.5'"),
        ("train", ["a.yaml", "--processes", "two"], "--processes: invalid int value: 'two'"),
        ("evaluate", ["a", "--micro-batch", "x"], "--micro-batch: invalid int value: 'x'"),
        ("export", ["a"], "the following arguments are required: OUT.safetensors"),
        ("bench", ["step", "--rounds", "x"], "--rounds: invalid int value: 'x'"),
        ("draw", ["a", "--tarin", "1"], "unrecognized arguments: --tarin 1"),
    ],
)
def test_an_ill_typed_option_is_told_in_one_line(module, words, told):
    main = importlib.import_module(f"launch.{module}").main
    assert refused(called(main, *words)) == f"error: {told}. See --help\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_run_by_its_path_says_how(name):
    done = subprocess.run([sys.executable, f"launch/{name}.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: launch/{name}.py is not run by its path: run it as python -m launch.{name}\n"
