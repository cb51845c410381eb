"""Files are whole or not there, whoever else writes them."""

import subprocess
import sys
from threading import Event, Thread

import pytest

from pipeline.files import replace, whole


def test_two_that_write_one_file_at_once_do_not_tear_it(tmp_path):
    """One waits for the other; before, they shared a temporary file, and the second rename found none."""
    path, begun, done = tmp_path / "evaluation.json", Event(), []

    def second() -> None:
        begun.wait()
        replace(path, b"second", "")
        done.append(path.read_bytes())

    other = Thread(target=second)
    other.start()
    with whole(path) as temporary:
        temporary.write_bytes(b"fir")
        begun.set()
        other.join(0.2)
        assert done == []
        with open(temporary, "ab") as file:
            file.write(b"st")
    other.join()
    assert done == [b"second"]
    assert [found.name for found in tmp_path.iterdir()] == ["evaluation.json"]


def test_what_a_killed_process_left_is_written_over(tmp_path):
    path = tmp_path / "report.json"
    code = "import sys, time; from pathlib import Path; from pipeline.files import whole\n"
    code += "with whole(Path(sys.argv[1])) as file:\n"
    code += "    file.write_text('half of a long one'); print(flush=True); time.sleep(60)"
    killed = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert killed.stdout
    killed.stdout.readline()
    killed.kill()
    killed.wait()
    assert [found.name for found in tmp_path.iterdir()] == ["report.json.tmp"]
    replace(path, b"new", "")  # it holds no lock any more
    assert [found.name for found in tmp_path.iterdir()] == ["report.json"]
    assert path.read_bytes() == b"new"


def test_an_error_leaves_the_old_one_and_no_half(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("old")

    def fail() -> None:
        with whole(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("classes.txt", "old")]


def test_a_file_system_that_numbers_files_anew_is_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr("os.path.samestat", lambda one, other: False)
    replace(tmp_path / "a.json", b"whole", "")
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a.json", "whole")]
