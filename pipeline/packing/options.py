"""What a person may ask launch.pack for, checked: all that decides the output besides SOURCE."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.data.layout import WEBDATASET, Layout
from pipeline.errors import UserError

SHARD_IMAGES = 1000
QUALITY = 90


@dataclass(frozen=True)
class Options:
    """What decides the output besides SOURCE. None means the default, so that what was not asked for can be told."""

    split: str | None = None  # set of files that do not say which one they are for
    holdout: float | None = None  # share of the training images that goes to validation, 0..1
    classes: Path | None = None
    val_labels: Path | None = None
    label: str | None = None  # of existing shards: the extension, or EXTENSION:FIELD, that holds the label
    image: str | None = None  # of existing shards: the extensions that hold the image, with commas
    seed: int = 0
    shard_images: int | None = None
    short_side: int | None = None  # pixels
    quality: int | None = None  # of JPEG, 1..100
    raw: int | None = None  # side in pixels of the square of raw pixels

    def __post_init__(self) -> None:
        if self.holdout is not None and not 0 < self.holdout < 1:
            raise UserError(f"--holdout {self.holdout}: give the share to hold out, between 0 and 1, such as 0.1")
        if self.shard_images is not None and self.shard_images < 1:
            raise UserError(f"--shard-images {self.shard_images}: give 1 or more, such as {SHARD_IMAGES}")
        if self.short_side is not None and self.short_side < 1:
            raise UserError(f"--short-side {self.short_side}: give pixels, such as 512")
        if self.raw is not None and self.raw < 1:
            raise UserError(f"--raw {self.raw}: give pixels, such as 256")
        if self.raw is not None and (self.short_side is not None or self.quality is not None):
            raise UserError(
                "--raw stores pixels of its own size: --short-side and --quality do nothing. Leave them out"
            )
        if any(
            not name.strip(". ") for text in (self.label, self.image) if text is not None for name in text.split(",")
        ):
            raise UserError(
                "--image and --label: give extensions without the dot, such as --image jpg,png --label json:label"
            )
        if self.quality is not None and (not 1 <= self.quality <= 100 or self.short_side is None):
            raise UserError(
                f"--quality {self.quality}: give 1..100, with --short-side; without it bytes stay as they are"
            )

    @property
    def layout(self) -> Layout:
        if self.label is None and self.image is None:
            return WEBDATASET
        image = (
            WEBDATASET.image
            if self.image is None
            else tuple(name.strip(". ").lower() for name in self.image.split(","))
        )
        extension, colon, field = (self.label or WEBDATASET.label).lstrip(".").partition(":")
        extension = extension.lower()
        suffixes = (*(image if self.image is not None else ()), extension)
        return Layout(image, f"{extension}{colon}{field}", suffixes)
