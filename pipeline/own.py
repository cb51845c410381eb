"""Code of a user's own that a config names, `package.module:name`, beside what this package has under a plain name.

In: a key of the config and its value. Out: what it stands for, or UserError.
"""

import difflib
import importlib
import re
from collections.abc import Collection
from typing import Any

from pipeline.errors import UserError

_OWN = re.compile(r"\w+(\.\w+)*:\w+")


def check(value: str, known: Collection[str]) -> str:
    """`value`, if it is one of `known` or written as code of one's own. ValueError otherwise."""
    if value not in known and not _OWN.fullmatch(value):
        near = difflib.get_close_matches(value, known, n=1)
        hint = f". Did you mean {near[0]}?" if near else ""
        raise ValueError(f"is none of {', '.join(known)}, nor package.module:name of your own{hint}")
    return value


def find(key: str, value: str) -> Any:
    """The function or class that `package.module:name` stands for. Raises UserError if there is none."""
    module, _, name = value.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        # Only the module that was named is a mistake of the config; one that it imports itself is not.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"{key}={value}: there is no module {error.name}; is it installed, or on PYTHONPATH?") from None
    except AttributeError:
        raise UserError(f"{key}={value}: module {module} has no {name}") from None
