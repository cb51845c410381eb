"""A driver too old for the installed builds, DALI missing or installed twice: one message, with the command to run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline import builds, runtime
from pipeline.errors import UserError

ROOT = Path(__file__).parents[1]
BANNER = "| NVIDIA-SMI 550.54.14     Driver Version: 550.54.14     CUDA Version: {} |"
BANNER_610 = "| NVIDIA-SMI 610.43.02     KMD Version: 610.43.02     CUDA UMD Version: {} |"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """nvidia_smi("12.4", gpus=2) puts one on PATH that says so; torch finds no GPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(cuda: str, gpus: int = 2, banner: str = BANNER) -> None:
        cards = "".join(f"GPU {n}: NVIDIA H100 (UUID: GPU-{n})\n  MIG 1g.10gb Device 0:\n" for n in range(gpus))
        script = (
            f'#!/bin/sh\nif [ "$1" = --list-gpus ]; then printf "%s" "{cards}"; else echo "{banner.format(cuda)}"; fi\n'
        )
        (tmp_path / "nvidia-smi").write_text(script)
        (tmp_path / "nvidia-smi").chmod(0o755)

    return put


def installed(monkeypatch, torch_cuda: str | None, **dali: int) -> None:
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(builds, "_dali", lambda: {f"nvidia-dali-{name}": cuda for name, cuda in dali.items()})


@pytest.mark.parametrize("banner", [BANNER, BANNER_610])
def test_nvidia_smi_is_read(nvidia_smi, banner):
    nvidia_smi("12.4", gpus=3, banner=banner)
    assert builds.driver() == builds.Driver(3, (12, 4))
    nvidia_smi("N/A", banner=banner)
    assert builds.driver() == builds.Driver(2, None)
    nvidia_smi("13.0", gpus=0, banner=banner)
    assert builds.driver() is None


def test_a_driver_too_old_is_refused_with_both_versions_and_the_command(nvidia_smi, monkeypatch):
    nvidia_smi("12.4")
    installed(monkeypatch, "13.0", cuda130=13)
    with pytest.raises(UserError) as refused:
        runtime.has_gpu()
    said = str(refused.value)
    assert said.startswith("nvidia-smi lists 2 GPUs, but the driver supports CUDA up to 12.4, and torch ")
    assert "and nvidia-dali-cuda130 need CUDA 13, so driver 580 or newer" in said
    assert "make install CUDA=12, or without make: pip install -e '.[cuda12]'" in said
    assert 'To use the CPU all the same, set CUDA_VISIBLE_DEVICES=""' in said


def test_no_build_helps_a_driver_of_cuda_11(nvidia_smi, monkeypatch):
    nvidia_smi("11.8")
    installed(monkeypatch, "12.8", cuda120=12)
    with pytest.raises(UserError, match=r"supports CUDA up to 11.8, .* Update the driver, at least to 525"):
        runtime.has_gpu()


def test_a_torch_without_cuda_is_refused(nvidia_smi, monkeypatch):
    nvidia_smi("13.0", gpus=1)
    installed(monkeypatch, None, cuda130=13)
    with pytest.raises(UserError, match=r"lists 1 GPU, but torch .* is a build without CUDA.*make install CUDA=13"):
        runtime.has_gpu()


def test_gpus_that_torch_cannot_use_for_another_reason_are_refused_with_it(nvidia_smi, monkeypatch):
    nvidia_smi("13.0")
    installed(monkeypatch, "13.0", cuda130=13)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(UserError, match=r"can use none: Error 802.*Check CUDA_VISIBLE_DEVICES=7"):
        builds.require_usable_gpus("2.14.0", "13.0", "Error 802: system not yet initialized")


@pytest.mark.parametrize("visible", ["", "-1"])
def test_the_cpu_can_be_asked_for(nvidia_smi, monkeypatch, visible):
    nvidia_smi("12.4")
    installed(monkeypatch, "13.0", cuda130=13)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert not runtime.has_gpu()


def test_a_machine_without_gpus_uses_the_cpu(nvidia_smi, monkeypatch):
    nvidia_smi("13.0", gpus=0)
    installed(monkeypatch, "13.0", cuda130=13)
    assert not runtime.has_gpu()


def test_dali_must_run_on_the_driver_that_torch_runs_on(nvidia_smi, monkeypatch):
    nvidia_smi("12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    installed(monkeypatch, "12.8", cuda120=12)
    assert runtime.has_gpu()
    installed(monkeypatch, "12.8", cuda130=13)
    with pytest.raises(
        UserError, match=r"DALI cannot: the driver supports CUDA up to 12.8, and nvidia-dali-cuda130 needs CUDA 13"
    ):
        runtime.has_gpu()
    nvidia_smi("13.0")
    assert runtime.has_gpu()


def test_dali_missing_or_there_twice_is_refused(nvidia_smi, monkeypatch):
    installed(monkeypatch, "13.0", cuda120=12, cuda130=13)
    with pytest.raises(UserError, match="nvidia-dali-cuda120 and nvidia-dali-cuda130 are both installed"):
        builds.require_dali()
    installed(monkeypatch, "13.0")
    builds.require_dali()  # there, if not by the name of a package
    monkeypatch.setattr(builds, "find_spec", lambda name: None)
    nvidia_smi("12.4")
    with pytest.raises(UserError, match=r"DALI is not installed.*pip install -e '.\[cuda12\]'"):
        builds.require_dali()
    nvidia_smi("", gpus=0)
    with pytest.raises(UserError, match=r"DALI is not installed.*pip install -e '.\[cuda13\]'"):
        builds.require_dali()


def test_a_training_command_is_refused_with_one_message(nvidia_smi, photos, tmp_path):
    """The real torch, of whatever build, with a driver that is too old for all of them."""
    if torch.cuda.device_count():
        pytest.skip("torch finds GPUs here, whatever nvidia-smi says")
    nvidia_smi("11.4")
    config = tmp_path / "tiny.yaml"
    config.write_text(f"data: {{train: {photos}}}\ntrain: {{epochs: 1, global_batch: 10}}\n")
    words = [sys.executable, "-m", "launch.train", config, f"run={tmp_path / 'run'}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1
    assert "supports CUDA up to 11.4" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_scripts_start_one_process_per_gpu_unless_the_cpu_is_asked_for(nvidia_smi, monkeypatch):
    nvidia_smi("12.4", gpus=3)
    monkeypatch.delenv("NPROC", raising=False)
    command = ["bash", "-c", f". {ROOT / 'launch' / 'environment.sh'}; echo $NPROC"]
    assert subprocess.check_output(command, text=True) == "3\n"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert subprocess.check_output(command, text=True) in ("1\n", "2\n")


@pytest.mark.parametrize(
    ("cuda", "words", "chosen"),
    [("12.4", "", "12"), ("13.1", "", "13"), ("N/A", "", "13"), ("13.0", "CUDA=12", "12"), ("12.9", "CUDA=13", "13")],
)
def test_make_install_takes_the_builds_for_the_driver(nvidia_smi, tmp_path, cuda, words, chosen):
    nvidia_smi(cuda)
    said = make(tmp_path, "install", *words.split()).stdout
    assert f"-c constraints-cuda{chosen}.txt -e '.[cuda{chosen}]'" in said


def test_make_install_stays_with_what_is_installed(nvidia_smi, tmp_path):
    nvidia_smi("13.0")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch()
    (tmp_path / ".venv/cuda12").touch()
    assert "'.[cuda12,dev]'" in make(tmp_path, "test").stdout


def test_make_install_refuses_another_cuda(tmp_path):
    done = make(tmp_path, "install", "CUDA=11")
    assert done.returncode == 2
    assert "CUDA=11 must be 12 or 13" in done.stderr


def make(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """What make would do in `folder`. Clusters set a variable CUDA to a path."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "constraints-cuda12.txt", "constraints-cuda13.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    variables = os.environ | {"CUDA": "/usr/local/cuda"}
    return subprocess.run(
        ["make", "-n", *words], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
