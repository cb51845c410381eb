"""The limit of simplejpeg (libjpeg-turbo): full decoding to RGB, N threads."""

from pipeline.bench.contestant import Feed, Task, enter, versions
from pipeline.bench.loaders.limit import pool


def start(task: Task) -> Feed:
    import simplejpeg

    return pool(simplejpeg.decode_jpeg, task, versions("simplejpeg"))


if __name__ == "__main__":
    enter(start)
