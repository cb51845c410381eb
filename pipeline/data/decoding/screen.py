"""Images that must not get into a batch untried, by their bytes alone. Each image of a set is looked at once.

In: requests for encoded images. Out: which of their rows the CPU decoder is to try by themselves, before they meet
others, and which Pillow decodes.
"""

import numpy as np

from pipeline.data.decoding.kinds import other_kind
from pipeline.data.request import Request, clamp_padding

PADDING = 4096  # bytes behind the end of a JPEG, at most: some cameras and editors fill up a sector or a page
START, SCAN, END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"  # markers of a JPEG
UNKNOWN, SUSPECT, OTHER = -1, 0, -2  # in place of a size


class Screen:
    """Finds images that have no readable header or are smaller than their window, which crash DALI 2.4 amid others,
    and, with `torn`, JPEGs without an end, whose missing part nvJPEG makes up.

    The first look at an image takes 10 us, of which its kind takes 3 and its end 0.17 (10 if there is much padding);
    where its pages must be mapped first, 20 on two busy cores. After that it takes 0.03 us.
    """

    def __init__(self, torn: bool):
        self.torn = torn
        self._sizes = np.full((1, 2), UNKNOWN, np.int32)  # height and width by id; of suspects 0: no window fits

    def suspects(self, request: Request) -> np.ndarray:
        """Which rows are to be tried by themselves: bool [n]."""
        sizes, windows = self._looked_at(request), request.windows
        fit = (windows.top + windows.height <= sizes[:, 0]) & (windows.left + windows.width <= sizes[:, 1])
        return ~fit & (sizes[:, 0] != OTHER)

    def others(self, request: Request) -> np.ndarray:
        """Which rows are of a kind that Pillow decodes: bool [n]."""
        return self._looked_at(request)[:, 0] == OTHER

    def doubt(self, ids: np.ndarray) -> None:
        """Suspect these images from now on."""
        self._sizes[ids[ids >= 0]] = SUSPECT

    def forget(self, ids: np.ndarray) -> None:
        """Look at these images anew: they have other bytes now."""
        self._sizes[ids[ids >= 0]] = UNKNOWN

    def _looked_at(self, request: Request) -> np.ndarray:
        """Height and width of each row, or UNKNOWN, SUSPECT or OTHER: int32 [n, 2]."""
        ids = clamp_padding(request.ids)
        short = int(ids.max()) + 1 - len(self._sizes)
        if short > 0:
            more = np.full((short + len(self._sizes), 2), UNKNOWN, np.int32)
            self._sizes = np.concatenate([self._sizes, more])
        sizes = self._sizes[ids]
        for row in np.flatnonzero(sizes[:, 0] == UNKNOWN).tolist():
            sizes[row] = self._look(request.images[row])
            if request.valid[row]:  # others may be stand-ins
                self._sizes[ids[row]] = sizes[row]
        return sizes

    def _look(self, image: np.ndarray) -> tuple[int, int]:
        if other_kind(image):
            return OTHER, OTHER
        return (SUSPECT, SUSPECT) if self.torn and is_torn(image) else size(image)


def size(image: np.ndarray) -> tuple[int, int]:
    """(height, width) in pixels as stored, by the parser that DALI uses; (0, 0) if it cannot read the header.

    DALI 2.4 ends a batch at such an image while other threads decode, and nearly always crashes.
    """
    from nvidia.nvimgcodec import CodeStream

    stream = CodeStream(image)
    try:
        return stream.height, stream.width  # the header is read here
    except RuntimeError:
        return 0, 0


def is_torn(image: np.ndarray) -> bool:
    """Whether a JPEG seems to lack its end. True for all that do, and for some with more than padding behind it.

    Compressed pixels hold no end marker. A thumbnail in the header has one, but a scan begins behind that.
    """
    if image[-2:].tobytes() == END or image[:2].tobytes() != START:
        return False
    tail = image[-PADDING:].tobytes()
    end = tail.rfind(END)
    return end < 0 or SCAN in tail[end:]
