"""The most confident mistakes, drawn as in figure 4 of Krizhevsky et al. 2012: the picture and five bars below it.

In: outcomes and the set. Out: one image under a title, a cell a mistake: its picture, its label, the five likeliest
classes with bars as long as their probabilities, the label's bar in red if it is among them, and the image's key.
"""

import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.config import Data
from pipeline.data.index import Index
from pipeline.data.loader import eval_batches
from pipeline.data.output import Output
from pipeline.evaluation.outcomes import NO_CLASS, Outcome, Outcomes
from pipeline.runtime import RankInfo

COLUMNS, ROWS, BARS = 4, 4, 5
PICTURE_PX, MARGIN_PX, LINE_PX, TITLE_PX = 192, 12, 19, 64
WIDTH_PX, HEIGHT_PX = PICTURE_PX + 2 * MARGIN_PX, PICTURE_PX + 2 * MARGIN_PX + (BARS + 2) * LINE_PX
DPI = 200  # twice as many pixels as the lengths here say, for sharp letters
RED, BLUE, GREY = "#e27878", "#96b4e2", "#666666"


def worst_mistakes(outcomes: Outcomes, view: str, most: int = COLUMNS * ROWS) -> np.ndarray:
    """Ids of the images whose wrong first class had the highest probability, most confident first."""
    outcome = outcomes.views[view]
    wrong = outcome.errors(outcomes.labels, outcomes.scored, 1) & (outcome.classes[:, 0] != NO_CLASS)
    ids = np.flatnonzero(wrong)
    return ids[np.argsort(-outcome.probabilities[ids, 0], kind="stable")][:most]


def draw(
    outcomes: Outcomes, view: str, ids: np.ndarray, index: Index, data: Data, names: Sequence[str], source: str
) -> tuple[Image.Image | None, list[str]]:
    """The cells of `ids` (None if there are none), and the letters of names and keys that no font here has.

    Reads and decodes these images, on the CPU. `source` is what was scored, for the title.
    """
    if not len(ids):
        return None, []
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from pipeline.evaluation.fonts import families

    outcome, keys = outcomes.views[view], [index.key_of(int(sample)) for sample in ids]
    num_mistakes = int(outcome.errors(outcomes.labels, outcomes.scored, 1).sum())
    title = f"{source}, view {view}: the {len(ids):,} most confident of {num_mistakes:,} mistakes"
    shown = {*outcomes.labels[ids].tolist(), *outcome.classes[ids].ravel().tolist()} - {NO_CLASS}
    fonts, unknown = families([*(names[number] for number in shown), *keys, title])
    names = [f"{number}: {name}" if set(name) & set(unknown) else name for number, name in enumerate(names)]
    columns = min(COLUMNS, len(ids))
    wide, high = WIDTH_PX * max(columns, 2), HEIGHT_PX * math.ceil(len(ids) / columns) + TITLE_PX
    with rc_context({"font.family": fonts, "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # they are told by whoever called
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # fonts without a bold face are fine
        sheet = Figure(figsize=(wide / 100, high / 100), dpi=DPI, facecolor="white")
        canvas = FigureCanvasAgg(sheet)
        page: Any = sheet.add_axes((0, 0, 1, 1), xlim=(0, wide), ylim=(high, 0))  # in pixels, from the top left
        page.axis("off")
        _title(page, title, wide)
        pictures = _pictures(ids, index, data)
        for number, (sample, key, picture) in enumerate(zip(ids.tolist(), keys, pictures, strict=True)):
            left = number % columns * WIDTH_PX + MARGIN_PX
            top = number // columns * HEIGHT_PX + TITLE_PX
            page.imshow(picture, extent=(left, left + PICTURE_PX, top + PICTURE_PX, top), interpolation="lanczos")
            _cell(page, left, top + PICTURE_PX + 4, outcome, sample, int(outcomes.labels[sample]), names)
            _text(page, left, top + PICTURE_PX + (BARS + 1.4) * LINE_PX, key, PICTURE_PX, size=6.5, color=GREY)
        page.set(xlim=(0, wide), ylim=(high, 0), aspect="auto")
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), unknown


def _title(page: Any, title: str, wide: int) -> None:
    _text(page, MARGIN_PX, MARGIN_PX + 6, title, wide - 2 * MARGIN_PX, size=10, weight="bold")
    left = float(MARGIN_PX)
    for colour, words in ((RED, "the image's class"), (BLUE, "another class")):
        page.bar(left, 10, 10, MARGIN_PX + 22, align="edge", color=colour)
        left += 15 + _text(page, left + 15, MARGIN_PX + 27, words, wide, size=7.5) + 14
    _text(page, left, MARGIN_PX + 27, "bars: probability", wide - left, size=7.5, color=GREY)


def _cell(page: Any, left: int, top: int, outcome: Outcome, sample: int, label: int, names: Sequence[str]) -> None:
    _text(page, left, top + LINE_PX / 2, names[label], PICTURE_PX, size=8, weight="bold")
    pairs = zip(outcome.classes[sample].tolist(), outcome.probabilities[sample].tolist(), strict=True)
    for line, (output, probability) in enumerate(pairs, 1):
        if output == NO_CLASS:
            continue
        above = top + line * LINE_PX
        page.bar(
            left,
            LINE_PX - 3,
            max(1, probability * PICTURE_PX),
            above,
            align="edge",
            color=RED if output == label else BLUE,
        )
        middle, share = above + (LINE_PX - 3) / 2, f"{probability:.0%}" if probability >= 0.01 else "<1%"
        taken = _text(page, left + PICTURE_PX - 3, middle, share, PICTURE_PX, size=7, ha="right")
        _text(page, left + 3, middle, names[output], PICTURE_PX - 12 - taken, size=7.5)


def _text(page: Any, x: float, y: float, words: str, room_px: float, **style: Any) -> float:
    """Write one line at most `room_px` wide, shortened where it must be; its width."""
    whole = " ".join(words.split())
    text = page.text(x, y, whole, va="center_baseline", **style)

    def width() -> float:
        return text.get_window_extent().width * 100 / DPI

    kept, most = 0, len(whole)  # halving: a letter at a time took 1 s for long keys
    if width() <= room_px:
        return width()
    while most - kept > 1:
        half = (kept + most) // 2
        text.set_text(whole[:half] + "…")
        kept, most = (half, most) if width() <= room_px else (kept, half)
    text.set_text(whole[:kept] + "…")
    return width()


def _pictures(ids: np.ndarray, index: Index, data: Data) -> list[np.ndarray]:
    """The central squares of the images, `PICTURE_PX` wide, uint8 [PICTURE_PX, PICTURE_PX, 3]."""
    read = eval_batches(
        index,
        data.model_copy(update={"decoder": "cpu"}),
        [Output(PICTURE_PX)],
        rank_info=RankInfo(0, 1, 0, 1),
        device=torch.device("cpu"),
        micro_batch=len(ids),
        samples=ids,
    )
    pictures = []
    for batch in read:
        for image in batch.images[0]:
            height, width, _ = image.shape
            top, left = (height - PICTURE_PX) // 2, (width - PICTURE_PX) // 2
            pictures.append(image[top : top + PICTURE_PX, left : left + PICTURE_PX].numpy())
    return pictures
