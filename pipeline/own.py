"""Code of a user's own that a config names, `package.module:name`, beside what this package has under a plain name.

In: a key of the config and its value. Out: what it stands for, or UserError.
"""

import difflib
import importlib
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import file_sha256

_OWN = re.compile(r"\w+(\.\w+)*:\w+")
TASKS, TRACKING = (Path(__file__).parent / folder for folder in ("tasks", "tracking"))
# What a task has, see pipeline/tasks/task.py.
TASK = ("fields", "num_counts", "targets", "loss", "counts", "scores", "require", "evaluate", "headline")


def check_task(value: str) -> str:
    """As `check`; known are the files in pipeline/tasks/."""
    return check(value, sorted(path.stem for path in TASKS.glob("*.py") if path.stem not in ("__init__", "task")))


def check_tracker(value: str) -> str:
    """As `check`; known are none, and the files in pipeline/tracking/ that are trackers."""
    others = ("__init__", "points", "sink", "journal", "console", "jsonl")
    return check(value, ["none", *sorted(path.stem for path in TRACKING.glob("*.py") if path.stem not in others)])


def check_recipe(value: str) -> str:
    """As `check`; known are those of pipeline/data/crops.py."""
    from pipeline.data.crops import RECIPES

    return check(value, RECIPES)


def check(value: str, known: Collection[str]) -> str:
    """`value`, if it is one of `known` or written as code of one's own. ValueError otherwise."""
    if value not in known and not _OWN.fullmatch(value):
        near = difflib.get_close_matches(value, known, n=1)
        hint = f". Did you mean {near[0]}?" if near else ""
        raise ValueError(f"is none of {', '.join(known)}, nor package.module:name of your own{hint}")
    return value


def find(key: str, value: str, has: Collection[str] = ()) -> Any:
    """The function or class that `package.module:name` stands for. Raises UserError if there is none, or it lacks one
    of the attributes that it must have."""
    path, _, name = value.partition(":")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        # Only the module that was named is a mistake of the config; one that it imports itself is not.
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"{key}={value}: there is no module {error.name}; is it installed, or on PYTHONPATH?") from None
    thing = getattr(module, name, None)
    if thing is None:
        raise UserError(f"{key}={value}: module {path} has no {name}")
    if missing := [attribute for attribute in has if not hasattr(thing, attribute)]:
        raise UserError(f"{key}={value}: {name} lacks {', '.join(missing)}, see docs/architecture.md, Contracts")
    return thing


def find_task(value: str) -> Any:
    """The class of `config.task`."""
    return find("task", value if ":" in value else f"pipeline.tasks.{value}:{value.capitalize()}", TASK)


def find_tracker(value: str) -> Any:
    """The class of `config.tracking`."""
    return find("tracking", value if ":" in value else f"pipeline.tracking.{value}:{value.capitalize()}")


def code_of(key: str, value: str) -> dict[str, str]:
    """What tells two machines' code of a user's own apart: the SHA-256 of its file; nothing if `value` is not such."""
    module = sys.modules.get(value.partition(":")[0]) if _OWN.fullmatch(value) else None
    file = getattr(module, "__file__", None)
    return {f"{key} (SHA-256 of its file)": file_sha256(Path(file))} if file else {}
