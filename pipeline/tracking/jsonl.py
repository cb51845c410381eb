"""RUN/metrics.jsonl: one JSON object a point, on disk as soon as it is logged."""

import errno
import json
import math
import os
import shlex
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError, first_mistake
from pipeline.files import GO_ON, replace, room
from pipeline.tracking.points import Point
from pipeline.tracking.sink import Sink

METRICS = "metrics.jsonl"


class JsonLines(Sink):
    """One line of JSON a point."""

    def __init__(self, path: Path, resume_step: int | None):
        """With `resume_step`, points after it leave the file. Raises UserError for a line that is no point's."""
        if path.exists() and resume_step is not None:
            kept = [line for step, line in read_lines(path) if step <= resume_step]
            replace(path, b"".join(kept), GO_ON)
        self.path = path
        with room(path, 0, GO_ON):
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115  (closed by close)
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self._write(b"\n")  # behind half a line of a process that was killed

    def log(self, point: Point) -> None:
        """Raises UserError on a full disk."""
        finite = {key: value if math.isfinite(value) else None for key, value in point.items()}  # JSON has no NaN
        self._write(json.dumps(finite).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        size = self.path.stat().st_size
        with room(self.path, len(line), GO_ON):
            if self.file.write(line) != len(line):  # the last bytes that had room
                self.file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self.file.close()


class _Line(BaseModel):
    """A line of metrics.jsonl: `step`, and numbers of any other name."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, float | None]
    step: Annotated[int, Field(ge=0)]


def read_lines(path: Path) -> list[tuple[int, bytes]]:
    """(step, line) of each point in a metrics.jsonl, without half a line that a killed process left.

    Raises UserError, naming file, line and field, for a line that no process of ours wrote.
    """
    points = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        try:
            step = _Line.model_validate_json(line).step
        except ValidationError as error:
            if error.errors()[0]["type"] == "json_invalid":
                continue
            raise UserError(
                f"{path}, line {number}: {first_mistake(error)}. Mend that line, or remove it: "
                f"sed -i {number}d {shlex.quote(str(path))}"
            ) from None
        if line.endswith(b"\n"):
            points.append((step, line))
    return points
