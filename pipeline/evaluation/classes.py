"""Which output of a network is which class of a set: by name, by WordNet id, or by number.

In: the set's class names, the network's (or none) and how many outputs it has. Out: an output for each class. So a set
may hold some of the network's classes, in another order: ten folders of ImageNet are scored among all thousand.
"""

import difflib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.wording import counted, few

SYNSETS = Path(__file__).with_name("imagenet_synsets.txt")


@cache
def imagenet_synsets() -> tuple[str, ...]:
    """The WordNet ids of ILSVRC-2012's 1,000 classes, sorted, which is the order of every published network's
    outputs."""
    return tuple(SYNSETS.read_text().split())


def match(classes: Sequence[str], network_classes: Sequence[str] | None, num_outputs: int, source: str) -> np.ndarray:
    """Int64 [len(classes)], an output for each class of the set; no two share one.

    Tried in this order, and all classes must match in the same way: the network's class names, to the letter; the same
    (upper and lower case, blanks and underscores are alike); of a network of ImageNet, which one with 1,000 outputs
    without names is taken for, WordNet ids and torchvision's names; whole numbers; of a network without names, as many
    classes as it has outputs, in order. Raises UserError that names a class without an output.
    """
    lists = _names(network_classes, num_outputs)
    tables = [_by_name(names, _plain) for names in lists]
    numbers = {str(number): [number] for number in range(num_outputs)}
    are_numbers = any(name.isdecimal() for name in network_classes or ())  # then a number is a name
    ways: list[tuple[dict[str, list[int]], Callable[[str], str]]] = [(_by_name(names, str), str) for names in lists]
    ways += [(table, _plain) for table in tables] + ([] if are_numbers else [(numbers, str)])
    for table, key in ways:
        outputs = [table.get(key(name), []) for name in classes]
        if all(len(indices) == 1 for indices in outputs) and len({indices[0] for indices in outputs}) == len(outputs):
            return np.array([indices[0] for indices in outputs])
    if network_classes is None and num_outputs != 1000 and len(classes) == num_outputs:
        return np.arange(num_outputs)
    raise UserError(_explain(classes, tables or [numbers], network_classes, num_outputs, source))


def shown_names(network_classes: Sequence[str] | None, num_outputs: int) -> list[str]:
    """A name for each output, for people: of ImageNet's classes torchvision's, else the network's own, else numbers."""
    names = _names(network_classes, num_outputs)
    if not names:
        return [str(number) for number in range(num_outputs)]
    rest = [str(number) for number in range(len(names[-1]), num_outputs)]  # outputs that no class uses
    return [*names[-1], *rest]


def _names(network_classes: Sequence[str] | None, num_outputs: int) -> list[list[str]]:
    """All lists of names that the outputs go by; what people read comes last."""
    synsets = list(imagenet_synsets())
    if network_classes is None and num_outputs != len(synsets):
        return []
    if network_classes is not None and list(network_classes) not in (synsets, _categories()):
        return [list(network_classes)]
    return [synsets, _categories()]


@cache
def _categories() -> list[str]:
    from torchvision.models import AlexNet_Weights

    return list(AlexNet_Weights.DEFAULT.meta["categories"])


def _by_name(names: Sequence[str], key: Callable[[str], str]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        table.setdefault(key(name), []).append(number)
    return table


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _explain(
    classes: Sequence[str],
    tables: list[dict[str, list[int]]],
    network_classes: Sequence[str] | None,
    num_outputs: int,
    source: str,
) -> str:
    written = {_plain(name): name for names in _names(network_classes, num_outputs) for name in names}
    known = max(tables, key=lambda table: sum(_plain(name) in table for name in classes))
    first = next((name for name in classes if len(known.get(_plain(name), [])) != 1), classes[0])
    numbers = known.get(_plain(first), [])
    near = difflib.get_close_matches(_plain(first), known, n=2)
    what = f"'{first}' is none of them" + (
        f" (near: {', '.join(written.get(name, name) for name in near)})" if near else ""
    )
    if len(numbers) > 1:
        what = f"'{first}' is the name of outputs {' and '.join(map(str, numbers))}: use numbers or WordNet ids"
    elif len(numbers) == 1:
        what = "two classes of the set have the same output"
    has = f"{num_outputs} outputs" if network_classes is None else f"{len(network_classes)} classes"
    return (
        f"{source} has {has} ({few([written.get(name, name) for name in known])}), and the set "
        f"{counted(len(classes), 'class', 'classes')}, of which {what}. Name the set's class "
        f"folders as the network's classes, or give the network's names, one a line: --classes FILE"
    )
