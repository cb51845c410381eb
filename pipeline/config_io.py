"""How settings are read, overridden, stored and explained: a YAML file per recipe, changed by dotted words.

    config = load("configs/alexnet.yaml", ["data.train=data/imagenet/train", "optimizer.lr=0.02"])

Unknown or ill-typed keys and contradictions raise UserError, naming the key, the value and the next action, before a
GPU or a shard is touched.
"""

import copy
import difflib
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pipeline import hints, unread
from pipeline.config import Config, Section
from pipeline.errors import UserError


class _Loader(yaml.SafeLoader):
    """Refuses a key that comes twice, of which YAML's usual readers drop the first one silently."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' comes twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(
    path: str | Path, overrides: list[str] | None = None, tell: Callable[[str], None] = lambda line: None
) -> Config:
    """Read a YAML file, apply `key.subkey=value` words in order, check everything. Values are parsed as YAML.

    A relative path that is not there is looked up beside this package: configs/alexnet.yaml is found from anywhere.
    `tell` is told which keys of the file are left out because a word chose another kind of schedule, recipe or shuffle.
    """
    path = Path(path)
    if not path.exists() and (hints.ROOT / path).is_file():
        path = hints.ROOT / path
    try:
        tree = yaml.load(path.read_text(), _Loader) or {}
    except FileNotFoundError:
        others = {other.stem: other for home in (hints.ROOT / "configs", path.parent) for other in home.glob("*.yaml")}
        near = difflib.get_close_matches(path.stem, others, n=1, cutoff=0.6)
        hint = f" Did you mean {hints.near(others[near[0]])}?" if near else ""
        raise UserError(f"{path}: there is no such config file in {Path.cwd()}.{hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is no readable YAML file: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold 'key: value' lines, not {type(tree).__name__}")
    tree.setdefault("run", f"runs/{path.stem}")
    before, words = copy.deepcopy(tree), dict[str, Any]()
    for word in overrides or []:
        apply(tree, word)
        apply(words, word)
    given = unread.flat(words)
    return parse(unread.settle(tree, str(path), before, given, tell), str(path), given)


def parse(tree: dict, source: str, words: Collection[str] = ()) -> Config:
    """A checked Config from nested dictionaries. Raises UserError that lists every mistake, under `source`, or under
    the command line if it is in one of the keys that `words` there set."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        mistakes: dict[str, list[str]] = {"command line": [], source: []}
        for mistake in error.errors():
            name, text = ".".join(str(part) for part in mistake["loc"]), _explain(mistake)
            is_word = mistake["type"] == "extra_forbidden" and any(word.startswith(f"{name}.") for word in words)
            is_word |= any(re.search(rf"(?<![\w.]){re.escape(word)}(?!\w)", f"{name} {text}") for word in words)
            mistakes["command line" if is_word else source].append(text)
        lines = [
            line for where, texts in mistakes.items() if texts for line in (f"{where}:", *(f"  {t}" for t in texts))
        ]
        raise UserError("\n".join(lines)) from None


def resolved(config: Config) -> dict[str, Any]:
    """What is stored of a config, as nested dictionaries for JSON or YAML: all keys but those that its kinds of
    schedule, recipe and shuffle do not read."""
    return unread.without(config.model_dump(mode="json"))


def dump(config: Config) -> str:
    """The resolved config as YAML that `load` reads back to the same Config."""
    return yaml.safe_dump(resolved(config), sort_keys=False)


def keys(section: type[BaseModel] = Config, prefix: str = "") -> dict[str, Any]:
    """Every dotted key with its field, in order."""
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            fields |= keys(field.annotation, f"{prefix}{name}.")
        else:
            fields[prefix + name] = field
    return fields


def describe() -> str:
    """One paragraph a key: name, default and meaning, for --help."""
    lines = []
    for name, field in keys().items():
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        text = " ".join(field.description.split()) + (f" One of {', '.join(map(str, choices))}." if choices else "")
        lines.append(f"  {name}={'none' if default is None else default}\n      {text}")
    return "\n".join(lines)


def apply(tree: dict, word: str) -> None:
    """Set one `key.subkey=value` word in nested dictionaries."""
    name, equals, text = word.partition("=")
    if not equals or not name:
        raise UserError(f"'{word}' is no override. Write key=value, for example optimizer.lr=0.02")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        if name in keys() and get_origin(keys()[name].annotation) is tuple:
            raise UserError(f"'{word}' is no whole list. Write it like {name}={_example(name)}") from None
        raise UserError(f"'{word}': the value is no YAML. Quote it, for example '{name}=\"...\"'") from None
    *sections, leaf = name.split(".")
    for section in sections:
        below = tree.setdefault(section, {})
        if not isinstance(below, dict):
            tree[section] = below = {}
        tree = below
    tree[leaf] = value


def _explain(mistake: Any) -> str:
    name = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        known = [*keys(), *(() if "." in name else Config.model_fields)]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6) or [
            key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]
        ]
        return f"{name} is no known key." + (f" Did you mean {near[0]}?" if near else " See --help for all keys")
    if mistake["type"] == "value_error":
        reason = str(mistake["ctx"]["error"])
        return f"{name}={mistake['input']!r} {reason}" if reason.startswith("is ") else reason
    rule = mistake["msg"].removeprefix("Input ").replace("should be", "must be")
    key = next((part for part in (name, name.rpartition(".")[0]) if part in keys()), "")
    example = f". Write it like {key}={_example(key)}" if key and get_origin(keys()[key].annotation) is tuple else ""
    if mistake["type"] == "missing" and example:
        return f"{key}={mistake['input']!r} must have {len(get_args(keys()[key].annotation))} values{example}"
    return f"{name}={mistake['input']!r} {rule}{example}"


def _example(key: str) -> str:
    default = keys()[key].default or {"schedule.milestones": (30, 60, 80)}.get(key, ("one", "two"))
    return ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in default)
