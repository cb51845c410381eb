"""The one exception that means "the user can mend this".

Its text names the file or key, the value found, and the next action. Command lines print it as one message without a
traceback and exit with `EXIT_CODE`; anything else is our bug and keeps its traceback.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

EXIT_CODE = 2


class UserError(Exception):
    """A mistake in a config, a command line or a data set, told in one readable message."""


def first_mistake(error: "ValidationError") -> str:
    """Field, value and what it must be: `step='x' must be a valid integer`."""
    mistake = error.errors()[0]
    name = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "missing":
        return f"it has no {name}"
    if mistake["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{name}={mistake['input']!r:.80} is no field of it"
    rule = mistake["msg"].removeprefix("Input ").replace("should", "must")
    return f"{name}={mistake['input']!r:.80} {rule}" if name else f"{mistake['input']!r:.80} {rule}"
