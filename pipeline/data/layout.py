"""Which members of a tar make a sample: where its image is and where its label, in shards that others wrote.

In: a member's name; the bytes of a label's file. Out: key and extension; a class number or a class name. launch.pack
takes the layout from --image and --label and stores it in the manifest, for whoever reads the tars again.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
RAW_EXTENSION = "npy"  # uint8 pixels [height, width, 3], which WebDataset's decoder reads too
LABEL = "cls"
_DECIMAL = re.compile(r"\s*(-?[0-9]+)\s*", re.ASCII)  # int() takes 1_0 and digits of other scripts too
# WebDataset's own rule: the key is everything up to the first dot of the file name, folders included.
_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_LABEL_FIELDS = ("label", "cls", "class", "target", "class_id", "label_id", "category", "class_name", "fine_label")
_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"RIFF": "WebP", b"BM": "BMP"}
SHORT = 60  # letters of a file that a message shows
SHOWN = 6  # files of a sample that a message shows


class Layout(NamedTuple):
    """`image`: the extensions that an image may have. `label`: an extension, or EXTENSION:FIELD of a JSON file, where
    dots lead into what is nested. `suffixes`: the extensions that were named, which end a key whatever dots are in
    it."""

    image: tuple[str, ...] = (*IMAGE_EXTENSIONS, RAW_EXTENSION)
    label: str = LABEL
    suffixes: tuple[str, ...] = ()

    @property
    def label_extension(self) -> str:
        return self.label.partition(":")[0]

    def split(self, name: str, current: str | None = None) -> tuple[str, str] | None:
        """(key, extension in lower case) of a member, after one of the key `current`; None if its name has no dot."""
        lower, start = name.lower(), name.rfind("/") + 1
        if name.startswith(".", start):
            return None  # macOS's tar writes ._a.jpg before a.jpg
        for extension in sorted(self.suffixes, key=len, reverse=True):
            if lower.endswith(f".{extension}") and len(name) - start > len(extension) + 1:
                return name[: -len(extension) - 1], extension
        if self.suffixes and current and name.startswith(f"{current}."):
            return current, lower[len(current) + 1 :]
        match = _KEY_AND_EXTENSION.fullmatch(name)
        return (match[1], match[2].lower()) if match else None

    def is_sample(self, extensions: Iterable[str]) -> bool:
        """Whether these files may be one: where extensions were named, those without any of them are left aside."""
        return not self.suffixes or any(name in (*self.image, self.label_extension) for name in extensions)

    def read_label(self, content: bytes, names: dict[str, int] | None = None) -> int | str:
        """A class number, or a name that `names` does not have. Raises ValueError with the reason."""
        _, colon, field = self.label.partition(":")
        value: Any = _field(content, field) if colon else _text(content)
        if not colon and value.lstrip().startswith("{") and isinstance(tree := _json(value), dict):
            raise ValueError(
                f"holds JSON. Name the field of it: --label {self.label}:FIELD, of {', '.join(tree)[:200]}"
            )
        if isinstance(value, int) and not isinstance(value, bool):
            named = names.get(str(value)) if names and self.label != LABEL else None  # a class may be called 17
            return value if named is None else named
        number = _DECIMAL.fullmatch(value) if isinstance(value, str) else None
        if self.label == LABEL and not number:
            raise ValueError(f"holds {_short(value)}, not a decimal class number")
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"holds {_short(value)}, neither a class number nor a class name")
        value = value.strip()
        if self.label != LABEL and names and value in names:
            return names[value]
        if number:
            return int(number[1])
        if names is not None:
            raise ValueError(f"holds the class {_short(value)}, which the class list lacks")
        return value


WEBDATASET = Layout()


def numbers(classes: Sequence[str] | None) -> dict[str, int] | None:
    """The label of each class's name."""
    return None if classes is None else {name: label for label, name in enumerate(classes)}


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ValueError(f"holds {content[:40]!r}, which is no text") from None


def _field(content: bytes, field: str) -> Any:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error})") from None
    for part in field.split("."):
        if not isinstance(value, dict) or part not in value:
            there = (", ".join(value)[:200] or "an empty object") if isinstance(value, dict) else _short(value)
            raise ValueError(f"has no field {field}, only {there}")
        value = value[part]
    return value


def _json(text: str) -> Any:
    """None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def describe(files: dict[str, bytes]) -> str:
    """A sample in words: extension and the beginning of each file, with the options that would read it, if any."""
    shown = [f".{extension} {_content(content)}" for extension, content in list(files.items())[:SHOWN]]
    more = f" and {len(files) - SHOWN} more files" if len(files) > SHOWN else ""
    return f"it holds {', '.join(shown)}{more}. {_advice(files)}"


def _content(content: bytes) -> str:
    magic = next((name for start, name in _MAGIC.items() if content.startswith(start)), "")
    if magic:
        return f"({magic})"
    try:
        text = " ".join(content.decode(errors="strict").split())
    except UnicodeDecodeError:
        return f"({len(content):,} bytes)"
    if (tree := _json(text)) is not None:
        text = json.dumps(tree, ensure_ascii=False)  # most writers escape what is not ASCII
    if len(text) <= SHORT:
        return text or "(empty)"
    return f"(fields {', '.join(tree)})"[:300] if isinstance(tree, dict) else text[: SHORT - 3] + "..."


def _advice(files: dict[str, bytes]) -> str:
    images = [name for name, content in files.items() if any(content.startswith(start) for start in _MAGIC)]
    image = images[0] if images else ""
    last = image.rpartition(".")[2]
    if len(images) > 1 and len({name.rpartition(".")[2] for name in images}) == 1 and last:
        image = last  # a.b.jpg, a.c.jpg: keys with dots
    labels = [label for name, content in files.items() if (label := _label_in(name, content))]
    label = min(labels, key=len) if labels else ""
    if image and label:
        return f"Give launch.pack --image {image} --label {label}, if these are its image and label"
    if image:
        return "No file of it looks like a label: name one with --label EXTENSION, or --label json:FIELD"
    return "No file of it is an image: name its extension with --image, or make this shard again"


def _label_in(extension: str, content: bytes) -> str:
    """The --label that would read this file; "" if it seems to hold none."""
    last = extension.rpartition(".")[2]
    if last in (LABEL, "label", "class", "target"):
        return last
    if last == "json":
        try:
            tree = json.loads(content)
        except ValueError:
            return ""
        fields = [name for name in _LABEL_FIELDS if isinstance(tree, dict) and isinstance(tree.get(name), int | str)]
        return f"{last}:{fields[0]}" if fields else ""
    return last if last == "txt" and len(content) < 40 and len(content.split()) == 1 else ""
