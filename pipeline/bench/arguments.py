"""What every part of the bench refuses alike, before anything is measured.

In: a flag of the command line and what it was given. Out: nothing, or a UserError that names both.
"""

from models.build import check_name
from pipeline.errors import UserError


def require_network(flag: str, name: str) -> None:
    """A name that models.build knows."""
    try:
        check_name(name, {})
    except ValueError as error:
        raise UserError(f"{flag} {name}: {error}") from None


def require_count(flag: str, *numbers: int) -> None:
    """All 1 or more."""
    for number in numbers:
        if number < 1:
            raise UserError(f"{flag} {number}: give 1 or more")
