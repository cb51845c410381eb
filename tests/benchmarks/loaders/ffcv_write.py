"""Writes class folders as one .beton file; run with FFCV's Python:

    PYTHON ffcv_write.py IMAGES OUT.beton jpeg|raw

jpeg: the files' own bytes (FFCV would encode them again), so that all contestants decode the same. raw: short side 256,
central square, as `launch.pack --raw 256` stores them.
"""

import io
import os
import sys
from pathlib import Path

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.rgb_image import IMAGE_MODES, encode_jpeg
from ffcv.writer import DatasetWriter
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

RAW_PX = 256


def store_file(self, destination, encoded: bytes, malloc) -> None:
    """RGBImageField.encode for a JPEG file; one that is not plain RGB, or no JPEG, is encoded at quality 90."""
    image = Image.open(io.BytesIO(encoded))
    if (image.format, image.mode) != ("JPEG", "RGB"):
        encoded = encode_jpeg(np.array(image.convert("RGB")), 90).tobytes()
    destination["mode"] = IMAGE_MODES["jpg"]
    destination["height"], destination["width"] = image.height, image.width
    destination["data_ptr"], storage = malloc(len(encoded))
    storage[:] = np.frombuffer(encoded, np.uint8)


def main(images: str, out: Path, form: str) -> None:
    if form == "jpeg":
        RGBImageField.encode = store_file  # not a subclass: readers know fields by their class
        photos = ImageFolder(images, loader=lambda path: Path(path).read_bytes())
    else:
        photos = ImageFolder(images, Compose([Resize(RAW_PX, InterpolationMode.BICUBIC), CenterCrop(RAW_PX)]))
    field = RGBImageField(write_mode={"jpeg": "jpg", "raw": "raw"}[form])
    temporary = out.with_suffix(".tmp")
    writer = DatasetWriter(
        str(temporary), {"image": field, "label": IntField()}, num_workers=len(os.sched_getaffinity(0))
    )
    writer.from_indexed_dataset(photos, shuffle_indices=True)
    os.replace(temporary, out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
