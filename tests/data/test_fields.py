"""Boxes and masks beside images: stored in the index, read by id, carried along by their image's placement."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import Data
from pipeline.data import fields, geometry, index
from pipeline.data.loader import order_of, train_batches
from pipeline.data.storage.reader import Reader
from pipeline.errors import UserError
from pipeline.files import file_sha256
from pipeline.packing import indexing
from pipeline.packing.scan import scan_shard
from pipeline.runtime import RankInfo
from tests.conftest import photo, write_tar

PX, NUM = 24, 12
BOXES = [
    [(number, 2 * k, number + 10 + k, 2 * k + 9, k % 3, k == 1) for k in range(number % 4)] for number in range(NUM)
]


def encoded(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def mask_of(number: int) -> np.ndarray:
    """The red of the image in sixteen classes, so that image and mask can be compared pixel for pixel."""
    return photo(number, number % 5, 40, 60 + number)[..., 0] // 16


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """12 photos in two shards, each with a mask in palette colours, and 0 to 3 boxes."""
    folder = tmp_path_factory.mktemp("annotated") / "train"
    folder.mkdir()
    shards = []
    for shard in range(2):
        members, masks = [], []
        for number in range(6 * shard, 6 * shard + 6):
            mask = Image.fromarray(mask_of(number), "P")
            mask.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
            masks.append(encoded(mask))
            image = encoded(Image.fromarray(photo(number, number % 5, 40, 60 + number)))
            members += [(f"{number:02}.png", image), (f"{number:02}.mask.png", masks[-1]), (f"{number:02}.cls", b"0")]
        tar = folder / f"{shard}.tar"
        write_tar(tar, members)
        found, rows = scan_shard(tar)
        content = tar.read_bytes()
        rows |= {"mask_offset": [content.index(mask) for mask in masks], "mask_size": list(map(len, masks))}
        shards.append((found, rows | {"boxes": BOXES[6 * shard : 6 * shard + 6]}))
    indexing.write(folder, shards, ["a", "b", "c"])
    return folder


def test_boxes_and_masks_are_read_by_id(annotated):
    found = index.load(annotated)
    samples = np.array([7, 0, 3, 7])
    values = fields.read(found, Reader(found), ["boxes", "mask", "label"], samples)
    assert values["label"].tolist() == [0] * 4
    for sample, boxes, mask in zip(samples.tolist(), values["boxes"], values["mask"], strict=True):
        assert boxes.edges.tolist() == [list(box[:4]) for box in BOXES[sample]]
        assert boxes.labels.tolist() == [box[4] for box in BOXES[sample]]
        assert boxes.difficult.tolist() == [box[5] for box in BOXES[sample]]
        assert np.array_equal(fields.decode_mask(mask), mask_of(sample))


class Both:
    """Targets float32 [n, px, px + 4]: the mask as the image lies, and the edges of the sample's last box."""

    fields = ("mask", "boxes")

    def targets(self, values, placements):
        rows = []
        for mask, boxes, placement in zip(values["mask"], values["boxes"], placements, strict=True):
            placed = geometry.place_mask(fields.decode_mask(mask), placement, fields.VOID)
            edges = geometry.place_boxes(boxes.edges, placement)[-1] if len(boxes.edges) else np.full(4, np.nan)
            rows.append(np.concatenate([placed, np.tile(edges, (PX, 1))], axis=1))
        return torch.from_numpy(np.stack(rows).astype(np.float32))


def test_masks_and_boxes_follow_their_images(annotated):
    """At scale 1, so that a pixel is a pixel. Recipe alexnet crops and mirrors."""
    found = index.load(annotated)
    data = Data(crop_px=PX, resize_px=40, pca_std=0, threads=2, mean=(0, 0, 0), std=(1, 1, 1))
    order = order_of(found, data, 4, seed=1)
    how = {"rank_info": RankInfo(0, 1, 0, 1), "device": torch.device("cpu"), "micro_steps": 2, "task": Both()}
    for batch in train_batches(found, data, order, steps=range(0, 6), **how):
        for row, sample in enumerate(batch.ids.tolist()):
            red = (batch.images[row, 0] * 255).round().int() // 16
            assert torch.equal(red, batch.targets[row, :, :PX].int())
            left, top, right, bottom = batch.targets[row, 0, PX:].tolist()
            if len(BOXES[sample]):
                box = BOXES[sample][-1]
                assert (right - left, bottom - top) == (box[2] - box[0], box[3] - box[1])


def test_a_set_without_them_says_so(photos):
    found = index.load(photos)
    for name, said in (
        ("boxes", f"{photos} has no boxes"),
        ("mask", f"{photos} has no masks"),
        ("box", "no field 'box'"),
    ):
        with pytest.raises(UserError, match=said):
            fields.require(found, [name], "mine:Task")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "LA"])
def test_a_mask_of_colours_is_refused(mode):
    image = encoded(Image.new(mode, (4, 4)))
    with pytest.raises(ValueError, match="a mask holds an index a pixel"):
        fields.decode_mask(np.frombuffer(image, np.uint8))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("box_start", lambda column: column[:-1], "box_start.npy has 12 rows, the manifest says 13"),
        ("box_start", lambda column: column[::-1], "points outside its shard"),
        ("box_start", lambda column: column + 5, "points outside its shard"),
        ("box", lambda column: column[:-1], "has 18 rows, the manifest says 17"),
        ("box_label", lambda column: column + 1, "sample '03' has label 3"),
        ("mask_offset", lambda column: column + 10**9, "points outside its shard"),
        ("mask_size", lambda column: column - 10**9, "points outside its shard"),
        ("box_difficult", None, "lacks box_difficult"),
        ("mask_size", None, "lacks mask_size"),
    ],
)
def test_columns_that_do_not_belong_together_are_refused(annotated, tmp_path, name, change, said):
    folder = tmp_path / "set"
    (folder / "index").mkdir(parents=True)
    for path in (*annotated.glob("*.tar"), *annotated.glob("*.json"), *annotated.glob("index/*")):
        (folder / path.relative_to(annotated)).write_bytes(path.read_bytes())
    column, manifest = folder / "index" / f"{name}.npy", json.loads((folder / "manifest.json").read_text())
    if change:
        np.save(column, change(np.load(column)))
        manifest["columns"][name] = file_sha256(column)
    else:
        del manifest["columns"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=said):
        index.load(folder)
