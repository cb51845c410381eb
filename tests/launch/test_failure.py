"""A rank's words for its launcher: whole, or not there."""

import contextlib
import errno

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from launch import failure


def torchs_reading(file) -> ProcessFailure:
    """As torch's agent reads the file; it raises what json raises."""
    return ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(file))


@pytest.fixture
def error_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    return tmp_path / "error.json"


def test_torch_and_we_read_what_a_rank_left(error_file, capsys):
    failure.leave(ValueError("batch 7 is rotten"), mistake=None)
    assert "ValueError: batch 7 is rotten" in capsys.readouterr().err
    assert torchs_reading(error_file).message["message"] == "ValueError: batch 7 is rotten"
    assert failure.read(error_file, 1, rank=3, final=True).words == "ValueError: batch 7 is rotten"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("end", [OSError(errno.ENOSPC, "No space left on device"), Killed()])
def test_half_a_file_is_no_file(error_file, monkeypatch, end):
    whole = type(error_file).write_text

    def write_half(path, text, *args, **kwargs):
        whole(path, text[:0], *args, **kwargs)
        raise end

    monkeypatch.setattr(type(error_file), "write_text", write_half)
    with contextlib.suppress(Killed):
        failure.leave(ValueError("batch 7 is rotten"), mistake=None)
    assert torchs_reading(error_file).error_file == "<N/A>"  # as of a rank that left nothing
    assert failure.read(error_file, 1, rank=3, final=True).words == "exit code 1; its own words are above"
