"""Fonts for words in any script: matplotlib's own, and those of this machine that have what it lacks.

In: the words to draw. Out: font families, in the order to look a letter up in, and the letters that none has.
"""

import unicodedata
import warnings
from collections.abc import Iterable

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

OWN = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew, Georgian, Armenian and more


def families(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """The machine's fonts are read only if some letter is not in `OWN`. They are listed anew each time, since
    matplotlib's list is kept on disk and does not know what was installed since."""
    letters = {letter for word in words for letter in word if unicodedata.category(letter)[0] not in "CZ"}
    names, letters = [OWN], letters - _letters(font_manager.findfont(OWN))
    if not letters:
        return names, []
    for path in sorted(font_manager.findSystemFonts(), key=lambda path: ("Regular" not in path, path)):
        has = letters & _letters(path)
        if has:
            font_manager.fontManager.addfont(path)
            names.append(font_manager.fontManager.ttflist[-1].name)
            letters -= has
        if not letters:
            break
    return names, sorted(letters)


def _letters(path: str) -> set[str]:
    """None of a font that matplotlib cannot draw, as those of coloured pictures."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            font = FT2Font(path)
            return {chr(code) for code in font.get_charmap()} if font.scalable else set()
    except (RuntimeError, OSError, ValueError):
        return set()
