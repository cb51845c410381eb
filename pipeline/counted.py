"""A number with its noun, for people."""


def counted(count: int, one: str, several: str = "") -> str:
    """counted(1, "shard") is "1 shard", counted(1200, "class", "classes") "1,200 classes"."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
