"""The unfinished output: everything is written to `OUT.part` and renamed to OUT when it is whole.

`pack.json` in it is the request (kind, options, fingerprint of the sources) that decides every byte of the output. So
an interrupted run goes on only under the same request, and a finished one knows whether it is asked for the same.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import PACK_ON, replace
from pipeline.locks import lock

REQUEST = "pack.json"
REJECTED = "rejected.tsv"
RECORDS = "records"
_LOCK = ".lock"
_OURS = re.compile(
    rf"({REQUEST}|{REJECTED}|{_LOCK}|{RECORDS}/\w+-\d+\.(json|tar)|\w+/shard-\d+\.tar|\w+/manifest\.json|\w+/index/\w+\.npy)(\.tmp)?"
)


def already_packed(out: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """OUT's pack.json if OUT was packed by this request, by this version or an earlier one; None if OUT is free.

    Raises UserError if OUT holds anything else, saying what differs.
    """
    if not os.path.lexists(out) or (out.is_dir() and not os.path.ismount(out) and not any(out.iterdir())):
        return None
    if os.path.ismount(out):
        raise UserError(
            f"{out} is a mount point, which cannot be renamed into place. Give a folder in it: {out}/packed"
        )
    if not out.is_dir():
        raise UserError(f"{out} is a file. Give another OUT")
    packed = _read_request(out)
    if packed is None:
        raise UserError(f"{out} holds something else already. Give another OUT, or remove it yourself")
    if difference := _difference(packed, request | {"version": packed.get("version")}):
        raise UserError(f"{out} was packed already, but {difference}. Give another OUT, or remove it yourself")
    return packed


def place(out: Path) -> Path:
    """Where the unfinished output is."""
    return out.with_name(f"{out.name}.part")


@contextmanager
def staged(out: Path, request: dict[str, Any], say: Callable[[str], None]) -> Iterator[Path]:
    """The folder `OUT.part`, locked, empty or left by an interrupted run of this request.

    Raises UserError if another process is packing to OUT, or if the folder holds files of someone else.
    """
    part = place(out)
    part.mkdir(parents=True, exist_ok=True)
    with open(part / _LOCK, "w") as held:
        if not lock(held, wait=False):
            raise UserError(f"another process is packing to {part} now. Wait for it, or give another OUT")
        begun = _read_request(part)
        difference = _difference(begun, request) if begun else None
        if difference:
            say(f"starting over: {part} was begun before, but {difference}")
        if difference or begun is None:
            _clear(part)
            (part / REQUEST).write_text(json.dumps(request))
        (part / RECORDS).mkdir(exist_ok=True)
        yield part


def publish(part: Path, out: Path, summary: dict[str, Any]) -> None:
    """Turn the staged folder into OUT. Raises UserError if it cannot be renamed."""
    replace(part / REQUEST, (json.dumps(summary, indent=1) + "\n").encode(), PACK_ON)
    for path in (part / RECORDS).iterdir():
        path.unlink()
    (part / RECORDS).rmdir()
    (part / _LOCK).unlink()
    try:
        os.rename(part, out)
    except OSError as error:
        raise UserError(f"{part} is whole but cannot be renamed to {out} ({error}). Rename it yourself") from None


def _read_request(folder: Path) -> dict[str, Any] | None:
    try:
        request = json.loads((folder / REQUEST).read_text())
    except (OSError, ValueError):
        return None
    return request if isinstance(request, dict) and "fingerprint" in request else None


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What the new request changes, in words; empty if nothing."""
    was, now = old.get("options", {}), new["options"]
    changed = [
        f"{_flag(name, was.get(name))}, now {_flag(name, now[name])}" for name in now if was.get(name) != now[name]
    ]
    if old.get("kind") != new["kind"]:
        changed.insert(0, f"from {old.get('kind')}, not {new['kind']}")
    elif old.get("fingerprint") != new["fingerprint"]:
        changed.insert(0, "the sources have changed since (names or sizes of files)")
    if not changed and old.get("version") != new["version"]:
        changed.append("by another version of this program")
    return "; ".join(changed)


def _flag(name: str, value: Any) -> str:
    """An option as it was given; of files there is only a digest."""
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return f"no {flag}"
    return f"{flag} (content {value})" if name in ("classes", "val_labels") else f"{flag} {value}"


def _clear(part: Path) -> None:
    """Remove what an earlier run left. A file that no run makes is never touched, but named."""
    files = [path for path in sorted(part.rglob("*")) if not path.is_dir() or path.is_symlink()]
    strange = [path for path in files if not _OURS.fullmatch(str(path.relative_to(part)))]
    if strange:
        raise UserError(f"{strange[0]} was not made by this program, in a folder that it would clear. Move it away")
    for path in files:
        if path.name != _LOCK:
            path.unlink()
    for path in sorted(part.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else None
