"""The most confident mistakes, drawn as in figure 4 of Krizhevsky et al. 2012: the picture and five bars below it.

In: outcomes and the set. Out: one image, a cell a mistake: its picture, its label, the five likeliest classes with bars
as long as their probabilities, the label's bar in red if it is among them.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from pipeline.config import Data
from pipeline.data.index import Index
from pipeline.data.loader import eval_batches
from pipeline.data.rendering import Rendering
from pipeline.evaluation.outcomes import NO_CLASS, Outcomes
from pipeline.runtime import Place

COLUMNS, ROWS = 4, 4
PICTURE_PX, MARGIN_PX, LINE_PX = 192, 10, 18
RED, BLUE, BLACK, WHITE = (226, 120, 120), (150, 180, 226), (20, 20, 20), (255, 255, 255)


def worst_mistakes(outcomes: Outcomes, view: str, most: int = COLUMNS * ROWS) -> np.ndarray:
    """Ids of the images whose wrong first class had the highest probability, most confident first."""
    outcome = outcomes.views[view]
    wrong = outcome.errors(outcomes.labels, outcomes.scored, 1) & (outcome.classes[:, 0] != NO_CLASS)
    ids = np.flatnonzero(wrong)
    return ids[np.argsort(-outcome.probabilities[ids, 0], kind="stable")][:most]


def draw(
    outcomes: Outcomes, view: str, ids: np.ndarray, index: Index, data: Data, names: Sequence[str]
) -> Image.Image | None:
    """The cells of `ids`; None if there are none. Reads and decodes these images, on the CPU."""
    if not len(ids):
        return None
    width, height = PICTURE_PX + 2 * MARGIN_PX, PICTURE_PX + 3 * MARGIN_PX + 6 * LINE_PX
    columns = min(COLUMNS, len(ids))
    sheet = Image.new("RGB", (width * columns, height * math.ceil(len(ids) / columns)), WHITE)
    outcome = outcomes.views[view]
    for number, (sample, picture) in enumerate(zip(ids.tolist(), _pictures(ids, index, data), strict=True)):
        cell = Image.new("RGB", (width, height), WHITE)
        cell.paste(picture, (MARGIN_PX, MARGIN_PX))
        pen, font = ImageDraw.Draw(cell), ImageFont.load_default(12)
        label, top = int(outcomes.labels[sample]), PICTURE_PX + 2 * MARGIN_PX
        pen.text((MARGIN_PX, top), _short(names[label], pen, font), fill=BLACK, font=font)
        pairs = zip(outcome.classes[sample].tolist(), outcome.probabilities[sample].tolist(), strict=True)
        for line, (found, probability) in enumerate(pairs, 1):
            if found == NO_CLASS:
                continue
            above = top + line * LINE_PX
            bar = (MARGIN_PX, above, MARGIN_PX + max(1, round(probability * PICTURE_PX)), above + LINE_PX - 3)
            pen.rectangle(bar, fill=RED if found == label else BLUE)
            pen.text((MARGIN_PX + 3, above), _short(names[found], pen, font), fill=BLACK, font=font)
        sheet.paste(cell, (number % columns * width, number // columns * height))
    return sheet


def _pictures(ids: np.ndarray, index: Index, data: Data) -> list[Image.Image]:
    """The central squares of the images, `PICTURE_PX` wide."""
    read = eval_batches(
        index,
        data.model_copy(update={"decoder": "cpu"}),
        [Rendering(PICTURE_PX)],
        place=Place(0, 1, 0, 1),
        device=torch.device("cpu"),
        micro_batch=len(ids),
        samples=ids,
    )
    found = []
    for batch in read:
        for image in batch.images[0]:
            height, width, _ = image.shape
            top, left = (height - PICTURE_PX) // 2, (width - PICTURE_PX) // 2
            found.append(Image.fromarray(image[top : top + PICTURE_PX, left : left + PICTURE_PX].numpy()))
    return found


def _short(text: str, pen: ImageDraw.ImageDraw, font) -> str:
    while len(text) > 1 and pen.textlength(text, font=font) > PICTURE_PX - 6:
        text = text.rstrip("…")[:-1] + "…"
    return text
