"""The words of an evaluation: which are sources and which settings, and what is refused before a network is read.

In: words as a person writes them. Out: what scoring.py takes, or a UserError that names the word. Without torch.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.config import Config
from pipeline.config_io import keys
from pipeline.data.index import Index
from pipeline.data.index import load as load_index
from pipeline.data.storage.remote import is_remote
from pipeline.errors import UserError
from pipeline.evaluation import predictions
from pipeline.views import KINDS, parse


class Names(NamedTuple):
    """Of a network's outputs, as --classes gives them."""

    file: Path
    names: tuple[str, ...]


def sort_words(words: Sequence[str], views: str) -> tuple[list[str], list[str]]:
    """Sources, and key=value settings."""
    if loose := [word for word in words if _is_view(word) and not Path(word).exists()]:
        raise UserError(
            f"views are given with commas between them: --views {','.join(view.strip(',') for view in [views, *loose])}"
        )
    settings = [word for word in words if _is_setting(word)]
    sources = [word for word in words if word not in settings]
    if not sources:
        raise UserError("no SOURCE given: name a run folder, an exported file, or a network. See --help")
    return sources, settings


def check_files(out: Path | None, per_image: Path | None) -> None:
    """Refuse what could not be written."""
    if out:
        if out.suffix != ".json":
            raise UserError(f"--out {out}: give a name that ends in .json")
        predictions.require_file("--out", out)
    if per_image:
        predictions.check(per_image)


def check_views(views: Iterable[str]) -> None:
    """Refuse what is no view, with the nearest one."""
    for view in views:
        try:
            parse(view.strip())
        except ValueError as error:
            near = difflib.get_close_matches(view.strip(), KINDS, n=1)
            meant = f". Did you mean {near[0]}?" if near else ""
            raise UserError(f"--views: {view!r} {error}{meant}") from None


def check_settings(settings: Iterable[str]) -> None:
    """Refuse unknown keys. Whether values make sense together is seen with the network's own."""
    for word in settings:
        key = word.partition("=")[0]
        if key not in keys():
            near = difflib.get_close_matches(key, keys(), n=1)
            raise UserError(f"{word}: {key} is no known key." + (f" Did you mean {near[0]}?" if near else ""))


def read_names(file: Path | None) -> Names | None:
    """The lines of --classes."""
    if file is None:
        return None
    try:
        return Names(file, tuple(line.strip() for line in file.read_text().rstrip().split("\n")))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {file} cannot be read ({error})") from None


def local_set(data: str | None) -> Index | None:
    """The set of --data, before networks are read and fetched; a remote one needs to know the cache."""
    return load_index(data) if data and not is_remote(data) else None


def _is_view(word: str) -> bool:
    try:
        return bool(parse(word.strip(",")))
    except ValueError:
        return False


def _is_setting(word: str) -> bool:
    """Also one with a mistake in its key; a network from a package, package.module:factory=FILE, has a colon."""
    section, dot, _ = word.partition("=")[0].partition(".")
    is_one = re.match(r"[a-z_]+(\.[a-z0-9_]+)*=", word) and (dot or section in Config.model_fields)
    return bool(is_one) and not Path(word).exists()
