"""Two "machines" on loopback that do not agree: all refuse, before a step, with what differs and where."""

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.multiprocessing as mp

from pipeline import agreement
from pipeline.config_io import parse
from pipeline.errors import UserError
from pipeline.locks import only_job
from pipeline.runtime import start as join
from tests.distributed.test_scripts import SMALL, config, free_port, start  # noqa: F401  (config is a fixture)

ALL = "Start the same command on all machines, from the same checkout, with the same environment and data"


def refusals(words: list[list[str]], cwd: Path) -> list[str]:
    """What each machine's last lines say; all must end with 2."""
    where = {"NODES": str(len(words)), "NPROC": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    machines = [start("multi_node.sh", *own, cwd=cwd, **where) for own in words]
    said = [machine.communicate(timeout=120)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [2] * len(words), said
    assert not any("Traceback" in text for text in said), said
    return said


@pytest.mark.slow  # 20 s
def test_machines_started_with_other_words_are_refused(config, tmp_path):  # noqa: F811
    common = [str(config), f"run={tmp_path / 'run'}", *SMALL]
    said = refusals([common, [*common, "seed=5", "train.epochs=3", "train.global_batch=10"]], tmp_path)
    for text in said:
        (seed,) = [line for line in text.splitlines() if line.startswith("  seed: ")]
        assert "  train.global_batch: " in text
        assert "  train.epochs: " in text
        assert text.rstrip().endswith(ALL) or f"{ALL} (rank" in text
        assert sorted(seed.removeprefix("  seed: ").split(", ")) in (
            [f"0 on {HOST} (rank 0)", f"5 on {HOST} (rank 1)"],
            [f"0 on {HOST} (rank 1)", f"5 on {HOST} (rank 0)"],
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.prove  # 20 s
def test_machines_with_a_run_folder_each_are_refused(config, tmp_path):  # noqa: F811
    common = [str(config), *SMALL]
    said = refusals([[*common, f"run={tmp_path / name}"] for name in "ab"], tmp_path)
    assert all("is not the run folder of rank 0" in text for text in said), said
    assert sum((tmp_path / name).exists() for name in "ab") == 1


@pytest.mark.slow  # 20 s
def test_a_run_that_is_finished_for_one_machine_alone_is_refused_on_both(config, tmp_path):  # noqa: F811
    """`train.epochs` of one machine is reached already: it left, and the other one waited for it."""
    common = [str(config), f"run={tmp_path / 'run'}", *SMALL]
    alone = start("single_node.sh", *common, cwd=tmp_path, NPROC="2")
    assert alone.wait(timeout=120) == 0
    said = refusals([common, [*common, "train.epochs=2"]], tmp_path)
    assert all("  train.epochs: " in text for text in said), said


HOST = socket.gethostname()


def differing_rank(rank: int, folder: str, port: str) -> None:
    """Three ranks: rank 2 has other code; then they look at a folder that rank 1 does not see."""
    import os

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    agreement.SEEN_S = 0.3
    with join() as runtime:
        agreement.require({"seed": 1, "code": "abc"}, runtime)  # the same on all: nothing
        told = []
        facts = {"seed": 1, "code": "abc"} | ({"code": "xyz", "model.width": 0.5} if rank == 2 else {})
        for check in (
            lambda: agreement.require(facts, runtime),
            lambda: agreement.require_one_folder(Path(folder, "run" if rank != 1 else "other"), runtime),
            lambda: agreement.require_one_folder(Path(folder, "run"), runtime),
        ):
            try:
                check()
                told.append("")
            except UserError as error:
                told.append(str(error))
        Path(folder, f"told-{rank}").write_text("\0".join(told))


def test_all_ranks_tell_the_same_differences(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".seen-0123456789abcdef").touch()  # left by a job that was killed
    mp.spawn(differing_rank, (str(tmp_path), free_port()), 3)
    told = [(tmp_path / f"told-{rank}").read_text().split("\0") for rank in range(3)]
    assert told[0] == told[1] == told[2]
    differences, folders, nothing = told[0]
    assert differences == (
        "the processes of this job differ in"
        f"\n  code: abc on {HOST} (rank 0 to 1), xyz on {HOST} (rank 2)"
        f"\n  model.width: - on {HOST} (rank 0 to 1), 0.5 on {HOST} (rank 2)\n{ALL}"
    )
    assert folders.startswith(
        f"{tmp_path}/other on {HOST} (rank 1) is not the run folder of rank 0 ({tmp_path}/run on "
    )
    assert nothing == ""
    assert list((tmp_path / "run").iterdir()) == []


def test_many_hosts_are_counted():
    places = [(rank, f"node{rank // 2}") for rank in range(12)]
    assert agreement._named(places) == "node0 (rank 0 to 1), node1 (rank 2 to 3), node2 (rank 4 to 5) and 3 more"


def test_scorers_compare_weights_set_and_settings(alone):
    def facts(weights: str = "aa", fingerprint: str = "ff", views: str = "centre") -> dict:
        parsed = parse({"evaluation": {"views": views}}, "test")
        one = SimpleNamespace(weights_sha256=weights, config=parsed)
        return agreement.of_scoring([one], SimpleNamespace(fingerprint=fingerprint), alone)  # type: ignore[arg-type]

    def differing(other: dict) -> set[str]:
        return {key for key, value in facts().items() if other[key] != value}

    assert differing(facts()) == set()
    assert differing(facts("bb")) == {"weights 1 (SHA-256)"}
    assert differing(facts("aa", "ee")) == {"the set (fingerprint)"}
    assert differing(facts("aa", "ff", "ten")) == {"evaluation.views"}
    assert "version of torch" in facts()


def test_code_differs_by_one_byte(tmp_path, monkeypatch):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(agreement, "ROOT", tmp_path)
    before = agreement._code_sha256()
    (tmp_path / "pipeline" / "a.py").write_text("x = 2\n")
    assert len({before, agreement._code_sha256()}) == 2


# A file system without locks


@pytest.fixture
def no_locks(monkeypatch):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_without_locks_two_jobs_do_not_share_a_folder(no_locks, tmp_path):
    with only_job(tmp_path):
        with pytest.raises(UserError, match=f"another job trains in .* rm {tmp_path}/.job"), only_job(tmp_path):
            pass
        assert (tmp_path / ".job").exists()
    assert not (tmp_path / ".job").exists()
    with only_job(tmp_path):
        pass


def test_without_locks_a_killed_job_of_this_machine_is_no_obstacle(no_locks, tmp_path, monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / ".job").write_text(f"{HOST} {dead.pid}")
    with only_job(tmp_path):
        pass
    (tmp_path / ".job").write_text(f"{HOST} {os.getpid()} 12345")  # of a container before this one
    with only_job(tmp_path):
        pass
    (tmp_path / ".job").write_text(f"{HOST} {dead.pid}")
    rename = os.rename

    def late(old, new) -> None:
        """Another job has found the same dead one, and was faster."""
        monkeypatch.setattr(os, "rename", rename)
        (tmp_path / ".job").write_text(living)
        rename(old, new)

    living = f"{HOST} {os.getppid()}"
    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(UserError, match="another job trains in"), only_job(tmp_path):
        pass
    assert [path.read_text() for path in tmp_path.glob(".job*")] == [living]
    (tmp_path / ".job").write_text(f"node7 {dead.pid}")  # who knows
    with pytest.raises(UserError, match=f"process {dead.pid} on node7; "), only_job(tmp_path):
        pass
