"""The journal: JSON lines that survive a crash, W&B offline, silence off rank 0. A W&B that fails stops nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.config_io import parse
from pipeline.errors import UserError
from pipeline.evaluation.score import Score
from pipeline.tracking.journal import open_journal
from pipeline.tracking.points import eval_point
from pipeline.tracking.sink import Sink
from tests.conftest import disk_of, fill

ROOT = Path(__file__).parents[2]
UNTRACKED = parse({"tracking": "none"}, "test")
POINTS = [{"step": step, "train/loss": 1.0 / step} for step in (10, 20, 30)]


class Ear(Sink):
    """A console that remembers what it was told."""

    def __init__(self):
        self.heard: list = []

    def log(self, point):
        self.heard.append(point)

    def print_line(self, text):
        self.heard.append(text)

    def advance(self):
        self.heard.append("advance")

    def close(self):
        self.heard.append("close")


def write(run: Path, points: list[dict], *, resume_step: int | None = None, config: Config = UNTRACKED) -> None:
    with open_journal(config, run, is_main=True, wandb_id=None, resume_step=resume_step) as journal:
        for point in points:
            journal.log(point)


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def run_python(code: str, *words: str, **environment: str | None) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in (os.environ | environment).items() if value is not None}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        env=kept,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# JSON lines


def test_a_point_is_a_line(tmp_path):
    write(tmp_path, POINTS)
    assert lines(tmp_path) == POINTS


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    with open_journal(UNTRACKED, tmp_path, is_main=True, wandb_id=None) as journal:
        journal.log(POINTS[0])
        assert lines(tmp_path) == POINTS[:1]


@pytest.mark.parametrize(("resume_step", "left"), [(0, 0), (10, 1), (15, 1), (20, 2), (30, 3), (99, 3)])
def test_points_after_the_step_resumed_from_leave_the_file(tmp_path, resume_step, left):
    write(tmp_path, POINTS)
    write(tmp_path, [{"step": 1000}], resume_step=resume_step)
    assert lines(tmp_path) == [*POINTS[:left], {"step": 1000}]


@pytest.mark.parametrize("torn", ['{"step": 2', '{"step": 20, "train/lo', "\0\0\0", "\0\0\n", "\udcff"])
def test_torn_last_line_leaves_the_file(tmp_path, torn):
    write(tmp_path, POINTS[:1])
    with open(tmp_path / "metrics.jsonl", "a", errors="surrogateescape") as file:
        file.write(torn)
    write(tmp_path, POINTS[2:], resume_step=25)
    assert lines(tmp_path) == [POINTS[0], POINTS[2]]


def test_last_line_without_a_line_end(tmp_path):
    write(tmp_path, POINTS[:1])
    (tmp_path / "metrics.jsonl").write_text(json.dumps(POINTS[0]))
    write(tmp_path, POINTS[1:], resume_step=10)
    assert lines(tmp_path)[-2:] == POINTS[1:]


def test_a_point_behind_a_torn_line_is_not_torn_itself(tmp_path):
    """launch.evaluate adds its points to the file of a run that was killed."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 2')
    write(tmp_path, [{"step": 5}])
    write(tmp_path, [], resume_step=10)
    assert lines(tmp_path) == [{"step": 10}, {"step": 5}]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"step": "x"}', "step='x' must be a valid integer"),
        ('{"step": null}', "step=None must be a valid integer"),
        ('{"step": -5}', "step=-5 must be greater than or equal to 0"),
        ('{"step": true}', "step=True must be a valid integer"),
        ('{"train/loss": 1.0}', "it has no step"),
        ('{"step": 15, "train/loss": "low"}', "train/loss='low' must be a valid number"),
        ('{"step": 15, "train/loss": [1]}', "train/loss=[1] must be a valid number"),
        ("[]", "[] must be an object"),
        ("null", "None must be an object"),
        ("7", "7 must be an object"),
    ],
)
def test_a_line_that_no_run_wrote_is_named(tmp_path, line, told):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 10, "train/loss": null}}\n{line}\n{{"step": 20}}\n')
    with pytest.raises(UserError) as caught:
        write(tmp_path, [], resume_step=20)
    text = str(caught.value)
    assert text.startswith(f"{path}, line 2: {told}")
    subprocess.run(text.rpartition("remove it: ")[2], shell=True, check=True)
    write(tmp_path, [], resume_step=20)
    assert [point["step"] for point in lines(tmp_path)] == [10, 20]


def test_without_a_step_to_resume_from_points_are_added(tmp_path):
    write(tmp_path, POINTS)
    write(tmp_path, [{"step": 5}])
    assert lines(tmp_path) == [*POINTS, {"step": 5}]


def test_a_full_disk_is_told_and_no_half_line_stays(tmp_path):
    with disk_of(tmp_path / "small", 32 << 10) as disk:
        run = disk / "run"
        run.mkdir()
        write(run, POINTS[:1])
        with open(run / "metrics.jsonl", "a") as file:  # 7 bytes of the page are left
            file.write(
                json.dumps({"step": 11, "": None}).replace('""', f'"{"x" * (4096 - 7 - 23 - file.tell())}"') + "\n"
            )
        whole = (run / "metrics.jsonl").read_bytes()
        assert len(whole) == 4096 - 7
        filler = fill(disk)
        with pytest.raises(UserError) as caught:
            write(run, POINTS[1:])
        text = str(caught.value)
        assert text.startswith(f"{run / 'metrics.jsonl'} cannot be written: the disk is full (it takes 33 bytes, 0 are")
        assert text.endswith("Free that much, then start the same command again: it goes on from the last checkpoint")
        assert (run / "metrics.jsonl").read_bytes() == whole
        filler.unlink()
        write(run, POINTS[1:], resume_step=10)
        assert lines(run) == POINTS


def test_a_full_disk_keeps_the_file_that_a_resumed_run_shortens(tmp_path):
    with disk_of(tmp_path / "small", 32 << 10) as disk:
        write(disk, POINTS)
        filler = fill(disk)
        with pytest.raises(UserError, match=r"metrics.jsonl cannot be written: the disk is full"):
            write(disk, [], resume_step=10)
        assert lines(disk) == POINTS
        assert sorted(path.name for path in disk.iterdir()) == ["filler", "metrics.jsonl"]
        filler.unlink()
        write(disk, [], resume_step=10)
        assert lines(disk) == POINTS[:1]


# Sinks


def test_console_hears_everything_and_is_closed(tmp_path):
    console = Ear()
    with open_journal(UNTRACKED, tmp_path, is_main=True, wandb_id="kept", console=console) as journal:
        journal.print_line("hello")
        journal.log(POINTS[0])
        journal.advance()
        assert (journal.wandb_id, journal.wandb_folder) == ("kept", None)
    assert console.heard == ["hello", POINTS[0], "advance", "close"]


def test_silent_off_rank_0(tmp_path, capfd):
    console = Ear()
    with open_journal(Config(), tmp_path, is_main=False, wandb_id=None, console=console) as journal:
        journal.log(POINTS[0])
        journal.print_line("hello")
        journal.advance()
    assert console.heard == []
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_sinks_are_closed_when_training_fails(tmp_path):
    console = Ear()
    with (
        pytest.raises(ZeroDivisionError),
        open_journal(UNTRACKED, tmp_path, is_main=True, wandb_id=None, console=console),
    ):
        raise ZeroDivisionError
    assert console.heard == ["close"]


def test_point_of_an_evaluation():
    point = eval_point("ten", Score(seen=8, correct1=5, correct5=7, loss=0.5).as_dict())
    assert point == {"eval/ten/top1_error": 0.375, "eval/ten/top5_error": 0.125, "eval/ten/loss": 0.5}


# Weights & Biases


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    import wandb

    wandb.teardown()  # or the processes that later tests start would share its service, by way of WANDB_SERVICE


@pytest.mark.usefixtures("offline")
def test_wandb_writes_an_offline_run_into_the_run_folder_and_keeps_its_id(tmp_path, capfd):
    with open_journal(Config(), tmp_path, is_main=True, wandb_id=None) as journal:
        journal.log(POINTS[0])
        first = journal.wandb_id
        assert journal.wandb_folder is not None
        assert Path(journal.wandb_folder).parent == tmp_path / "wandb"
        assert Path(journal.wandb_folder).name.startswith("offline-run-")
        assert Path(journal.wandb_folder).name.endswith(f"-{first}")
        file = Path(journal.wandb_folder) / f"run-{first}.wandb"
    assert file.stat().st_size > 0

    with open_journal(Config(), tmp_path, is_main=True, wandb_id=first, resume_step=10) as journal:
        assert journal.wandb_id == first
        journal.log(POINTS[1])

        # and when W&B fails in the middle, the rest goes on
        journal.sinks[-1].run.finish()
        journal.log(POINTS[2])
        journal.log({"step": 40})
    assert lines(tmp_path) == [*POINTS, {"step": 40}]
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: W&B failed (")


UNREACHABLE = """
import sys, wandb
from pathlib import Path
settings, run = wandb.Settings, Path(sys.argv[1])
wandb.Settings = lambda **words: settings(**(words | {"init_timeout": 2}))  # for the test's sake, not 20 s

from pipeline.config import Config
from pipeline.tracking.journal import open_journal
with open_journal(Config(), run, is_main=True, wandb_id="0123abcd") as journal:
    journal.log({"step": 1})
    print(journal.wandb_id, journal.wandb_folder)
"""


@pytest.fixture(scope="module")
def unreachable(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A run with an account, but with nobody at the address."""
    run = tmp_path_factory.mktemp("unreachable")
    address = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    return run, run_python(UNREACHABLE, str(run), WANDB_MODE=None, **address)


def test_wandb_that_cannot_be_reached_is_a_warning(unreachable):
    run, ended = unreachable
    assert ended.returncode == 0, ended.stderr
    assert "warning: W&B cannot be reached (" in ended.stderr
    assert "wandb sync" in ended.stderr
    assert lines(run) == [{"step": 1}]


def test_wandb_that_cannot_be_reached_is_logged_offline(unreachable):
    run, ended = unreachable
    assert len(list(run.glob("wandb/offline-run-*-0123abcd/run-0123abcd.wandb"))) == 1
    assert ended.stdout.startswith(f"0123abcd {run}/wandb/offline-run-")


def test_without_tracking_wandb_is_not_imported(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.config import Config; from pipeline.tracking.journal import open_journal\n"
        "with open_journal(Config(tracking='none'), Path(sys.argv[1]), is_main=True, wandb_id=None) as journal:\n"
        "    journal.log({'step': 1})\n"
        "print('wandb' in sys.modules)"
    )
    ended = run_python(code, str(tmp_path))
    assert (ended.stdout, ended.stderr) == ("False\n", "")
