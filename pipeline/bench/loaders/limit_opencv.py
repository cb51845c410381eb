"""The limit of OpenCV (libjpeg-turbo): full decoding to BGR, N threads."""

import numpy as np

from pipeline.bench.contestant import Feed, Task, enter
from pipeline.bench.loaders.limit import pool


def start(task: Task) -> Feed:
    import cv2

    def decode(encoded: bytes) -> np.ndarray:
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)  # BGR, its own order
        if pixels is None:
            raise ValueError("OpenCV could not decode an image")
        return pixels

    cv2.setNumThreads(1)
    return pool(decode, task, f"OpenCV {cv2.__version__}")


if __name__ == "__main__":
    enter(start)
