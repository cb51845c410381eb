"""What a run says of itself: one JSON line a logged step, the console, Weights & Biases. Silent off rank 0.

In: points, dictionaries from the keys below to numbers. Out: RUN/metrics.jsonl, a progress bar or plain lines, a W&B
run that is resumed with the run folder. A dead W&B is a warning; training goes on.
"""

import errno
import json
import math
import os
import secrets
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.config import Config, resolved
from pipeline.disk import GO_ON, replace, room
from pipeline.errors import UserError, first_mistake

if TYPE_CHECKING:
    from PIL.Image import Image

METRICS = "metrics.jsonl"

# All keys that are ever logged.
STEP, EPOCH = "step", "epoch"
TRAIN_LOSS, TRAIN_TOP1, TRAIN_TOP5 = "train/loss", "train/top1_error", "train/top5_error"
LEARNING_RATE = "train/lr"
IMAGES_PER_S = "speed/images_per_s"
STEP_S = "speed/step_s"
DATA_WAIT_S, COMPUTE_S, COMMUNICATION_S = "speed/data_wait_s", "speed/compute_s", "speed/communication_s"
SLOWEST_RANK = "speed/slowest_rank"  # the one with most seconds a step that are not communication
SLOWEST_S = "speed/slowest_rank_s"  # how many; where communication is not measured, those that it waited for data
MEMORY_GB = "speed/memory_gb"  # the most of any rank since the start: on a GPU allocated there, else resident

Point = dict[str, float]


@dataclass(frozen=True)
class Presentation:
    """What no line of numbers can say, each by its key: `tables` as (column names, rows), `pictures` with their
    captions, and a `summary` of the whole run."""

    step: int
    tables: dict[str, tuple[list[str], list[list[Any]]]]
    pictures: dict[str, tuple["Image", str]]
    summary: dict[str, Any]


def eval_point(view: str, scores: Mapping[str, float], other_set: str | None = None) -> Point:
    """A point of one view's errors (fractions in 0..1) and loss; `other_set` names what is not data.validation."""
    prefix = f"eval/{other_set}/{view}" if other_set else f"eval/{view}"
    return {f"{prefix}/{name}": value for name, value in scores.items()}


class Sink(Protocol):
    def log(self, point: Point) -> None: ...
    def tell(self, text: str) -> None: ...
    def advance(self) -> None: ...
    def present(self, shown: Presentation) -> None: ...
    def close(self) -> None: ...


class Journal:
    """Hands every point to all sinks; on other ranks it has none, so the loop needs no `if`."""

    def __init__(self, sinks: list[Sink], wandb_id: str | None = None, wandb_folder: str | None = None):
        self.sinks = sinks
        self.wandb_id = wandb_id
        self.wandb_folder = wandb_folder

    def log(self, point: Point) -> None:
        """Log a point; it must hold `step`."""
        for sink in self.sinks:
            sink.log(point)

    def tell(self, text: str) -> None:
        """A line for the person at the console."""
        for sink in self.sinks:
            sink.tell(text)

    def advance(self) -> None:
        """One more step is done."""
        for sink in self.sinks:
            sink.advance()

    def present(self, shown: Presentation) -> None:
        """Tables and pictures, for sinks that can show them."""
        for sink in self.sinks:
            sink.present(shown)


@contextmanager
def open_journal(
    config: Config,
    run: Path,
    *,
    is_main: bool,
    wandb_id: str | None,
    console: Sink | None = None,
    resume_step: int | None = None,
) -> Iterator[Journal]:
    """The journal of a run folder. With `resume_step`, points that a dead run logged after that step leave the file."""
    if not is_main:
        yield Journal([])
        return
    sinks: list[Sink] = [console] if console else []
    sinks.append(JsonLines(run / METRICS, resume_step))
    wandb_folder = None
    if config.tracking == "wandb":
        tracker = Wandb(config, run, wandb_id)
        sinks.append(tracker)
        wandb_id, wandb_folder = tracker.id, tracker.folder
    try:
        yield Journal(sinks, wandb_id, wandb_folder)
    finally:
        for sink in reversed(sinks):
            sink.close()


class JsonLines:
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

    def tell(self, text: str) -> None: ...
    def advance(self) -> None: ...
    def present(self, shown: Presentation) -> None: ...

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
    found = []
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
            found.append((step, line))
    return found


class Wandb:
    """The W&B run of a run folder. Online with an account and a network, else offline: `wandb sync` sends it later.

    Points are drawn over our own `step`: W&B drops points whose own step does not grow, which a resumed run would lose.
    """

    def __init__(self, config: Config, run: Path, wandb_id: str | None):
        self.run: Any = None
        self.id = wandb_id
        self.folder: str | None = None
        try:
            self._start(config, run, wandb_id)
        except Exception as error:  # whatever W&B does, training goes on
            _warn(f"W&B does not start ({error}); going on without it. metrics.jsonl has every point")

    def _start(self, config: Config, run: Path, wandb_id: str | None) -> None:
        import wandb

        settings = wandb.Settings(silent=True, init_timeout=20, console="off")
        facts: dict[str, Any] = {
            "project": config.wandb.project,
            "entity": config.wandb.entity,
            "name": config.wandb.name or run.resolve().name,
            "tags": config.wandb.tags,
            "config": resolved(config),
            "id": wandb_id or secrets.token_hex(4),
            "dir": str(run),
            "settings": settings,
        }
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if _has_account() else "offline")
        try:
            self.run = wandb.init(**facts, mode=mode, resume="allow" if mode == "online" else None)
        except Exception as error:
            if mode == "offline":
                raise
            reason = str(error).partition("\n")[0]
            _warn(f"W&B cannot be reached ({reason}); logging offline. Send it later with: wandb sync {run}/wandb/...")
            wandb.teardown()  # its service would say that the id is in use
            self.run = wandb.init(**facts, mode="offline")
        self.id = self.run.id
        self.folder = None if self.run.disabled else str(Path(self.run.dir).parent)
        self.run.define_metric(STEP)
        self.run.define_metric("*", step_metric=STEP)

    def log(self, point: Point) -> None:
        self._try(lambda: self.run.log(point))

    def tell(self, text: str) -> None: ...
    def advance(self) -> None: ...

    def present(self, shown: Presentation) -> None:
        def show() -> None:
            import wandb

            tables = {key: wandb.Table(columns=[*columns], data=rows) for key, (columns, rows) in shown.tables.items()}
            pictures = {key: wandb.Image(image, caption=text) for key, (image, text) in shown.pictures.items()}
            self.run.log({STEP: shown.step, **tables, **pictures})
            self.run.summary.update(shown.summary)

        self._try(show)

    def close(self) -> None:
        if self.run is not None:
            self._try(self.run.finish)

    def _try(self, action) -> None:
        if self.run is None:
            return
        try:
            action()
        except Exception as error:
            _warn(f"W&B failed ({error}); going on without it. metrics.jsonl has every point")
            self.run = None


def _has_account() -> bool:
    import wandb

    return bool(wandb.setup().settings.api_key) or _in_netrc()


def _in_netrc() -> bool:
    import netrc
    from urllib.parse import urlparse

    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
