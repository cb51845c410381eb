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
# What a task has, see pipeline/tasks/task.py.
TASKS = Path(__file__).parent / "tasks"
TASK = ("fields", "num_counts", "targets", "loss", "counts", "scores", "require", "evaluate", "headline")


def check_task(value: str) -> str:
    """As `check`; known are the files in pipeline/tasks/."""
    return check(value, sorted(path.stem for path in TASKS.glob("*.py") if path.stem not in ("__init__", "task")))


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
    module, _, name = value.partition(":")
    try:
        thing = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        # Only the module that was named is a mistake of the config; one that it imports itself is not.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"{key}={value}: there is no module {error.name}; is it installed, or on PYTHONPATH?") from None
    except AttributeError:
        raise UserError(f"{key}={value}: module {module} has no {name}") from None
    if missing := [attribute for attribute in has if not hasattr(thing, attribute)]:
        raise UserError(f"{key}={value}: {name} lacks {', '.join(missing)}, see docs/architecture.md, Contracts")
    return thing


def find_task(value: str) -> Any:
    """The class of `config.task`."""
    return find("task", value if ":" in value else f"pipeline.tasks.{value}:{value.capitalize()}", TASK)


def code_of(key: str, value: str) -> dict[str, str]:
    """What tells two machines' code of a user's own apart: the SHA-256 of its file; nothing if `value` is not such."""
    module = sys.modules.get(value.partition(":")[0]) if _OWN.fullmatch(value) else None
    file = getattr(module, "__file__", None)
    return {f"{key} (SHA-256 of its file)": file_sha256(Path(file))} if file else {}
