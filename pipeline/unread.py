"""Keys that only some kinds of schedule, recipe and shuffle read: refused where a person sets them for another kind.

In: a config as nested dictionaries. Out: the same without such keys, or UserError. What a run stores leaves them out;
earlier versions stored every key, and such a file is told by that and read as it is.
"""

from collections.abc import Callable, Collection
from typing import Any

from pipeline.errors import UserError

Tree = dict[str, Any]
KINDS = {"schedule.kind": "constant", "data.recipe": "alexnet", "data.shuffle": "global"}  # with their defaults
# Key -> the key that chooses a kind, and the kinds that read it.
READ_BY: dict[str, tuple[str, tuple[str, ...]]] = {
    "data.scale_px": ("data.recipe", ("vgg",)),
    "data.area": ("data.recipe", ("inception",)),
    "data.aspect": ("data.recipe", ("inception",)),
    "data.window_shards": ("data.shuffle", ("windowed",)),
    "schedule.factor": ("schedule.kind", ("step", "multistep", "plateau")),
    "schedule.every_epochs": ("schedule.kind", ("step",)),
    "schedule.milestones": ("schedule.kind", ("multistep",)),
    "schedule.power": ("schedule.kind", ("polynomial",)),
    "schedule.final_lr": ("schedule.kind", ("cosine", "polynomial")),
    "schedule.patience": ("schedule.kind", ("plateau",)),
    "schedule.max_drops": ("schedule.kind", ("plateau",)),
}


def flat(tree: Tree, prefix: str = "") -> Tree:
    """Dotted keys and their values."""
    leaves: Tree = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def without(tree: Tree) -> Tree:
    """`tree` without the keys that its kinds do not read."""
    dropped = _unread(tree)
    return {
        section: {key: value for key, value in inner.items() if f"{section}.{key}" not in dropped}
        if isinstance(inner, dict) and section in ("data", "schedule")
        else inner
        for section, inner in tree.items()
    }


def settle(tree: Tree, path: str, before: Tree, words: Collection[str], tell: Callable[[str], None]) -> Tree:
    """What a file (`before`) and the keys that `words` on the command line set give together, without unread keys.

    Where words choose another kind, the file's keys of the old one are dropped, and `tell` is told. Raises UserError
    for an unread key that a person set.
    """
    is_stored = READ_BY.keys() <= flat(before).keys()  # by an earlier version, every key of it
    dropped = []
    for key in _unread(tree):
        chooser, kinds = READ_BY[key]
        kind = _kind(tree, chooser)
        if key not in words and (is_stored or kind != _kind(before, chooser)):
            dropped.append(key)
            continue
        where, value = ("command line" if key in words else path), flat(tree)[key]
        raise UserError(
            f"{where}: {key}={value} is read by {chooser}={' or '.join(kinds)} alone, and it is {kind}. Leave it out, "
            f"or set {chooser}={kinds[0]}"
        )
    if dropped and not is_stored:
        chosen = ", ".join(dict.fromkeys(f"{READ_BY[key][0]}={_kind(tree, READ_BY[key][0])}" for key in dropped))
        tell(f"{chosen} does not read these keys of {path}, which are left out: {', '.join(dropped)}")
    return without(tree)


def _unread(tree: Tree) -> list[str]:
    given = flat(tree)
    return [key for key, (chooser, kinds) in READ_BY.items() if key in given and _kind(tree, chooser) not in kinds]


def _kind(tree: Tree, chooser: str) -> Any:
    return flat(tree).get(chooser, KINDS[chooser])
