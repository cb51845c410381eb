"""The limit of torchvision.io.decode_jpeg (libjpeg-turbo): full decoding to RGB, N threads."""

from pipeline.bench.contestant import Feed, Task, enter, versions
from pipeline.bench.loaders.limit import pool


def start(task: Task) -> Feed:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(encoded: bytes) -> torch.Tensor:
        return decode_jpeg(torch.frombuffer(encoded, dtype=torch.uint8), mode=ImageReadMode.RGB)

    return pool(decode, task, versions("torchvision"))


if __name__ == "__main__":
    enter(start)
