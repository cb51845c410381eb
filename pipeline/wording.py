"""Numbers and lists in sentences for people."""

from collections.abc import Sequence


def counted(count: int, one: str, several: str = "") -> str:
    """counted(1, "shard") is "1 shard", counted(1200, "class", "classes") "1,200 classes"."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def few(names: Sequence[str], most: int = 3) -> str:
    """The first ones, and ", ..." for the others."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
