"""Shared fixtures: tiny photo sets on disk, whose colour tells the label, as real JPEG shards with an index."""

import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

from launch.command import run
from pipeline import builds, runtime
from pipeline.packing import indexing
from pipeline.packing.scan import scan_shard
from pipeline.runtime import Runtime

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")
runtime.settle_bits()

hypothesis.settings.register_profile("unhurried", deadline=None, max_examples=50)  # a loaded machine is no bug
hypothesis.settings.load_profile("unhurried")

COLOURS = np.array([[220, 40, 40], [40, 200, 60], [50, 60, 220], [210, 200, 40], [40, 200, 210]])


def photo(number: int, label: int, height: int, width: int) -> np.ndarray:
    """A uint8 [height, width, 3] image: the label's colour, a gradient, smooth noise."""
    rng = np.random.default_rng(number)
    noise = Image.fromarray(rng.integers(0, 60, (6, 6, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    ramp = np.linspace(0, 30, width)[None, :, None] * (1 if number % 2 else -1)
    return np.clip(COLOURS[label] + ramp + np.asarray(noise) - 30, 0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, quality: int = 92, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def npy(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_set(
    folder: Path,
    num_samples: int,
    *,
    num_shards: int = 3,
    num_classes: int = 5,
    size_px: tuple[int, int] = (40, 90),
    seed: int = 0,
    raw: bool = False,
    broken: Collection[int] = (),
    torn: Collection[int] = (),
) -> Path:
    """A packed set of small JPEGs (or of `raw` pixels) with sides in `size_px`, classes in turn. Of the samples in
    `broken` the last third is missing, of those in `torn` the last eighth."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    members: list[list[tuple[str, bytes]]] = [[] for _ in range(num_shards)]
    for number in range(num_samples):
        label = number % num_classes
        height, width = (int(side) for side in rng.integers(*size_px, 2))
        shard = members[number * num_shards // num_samples]
        pixels = photo(seed * 100_000 + number, label, height, width)
        image = npy(pixels) if raw else jpeg(pixels)
        image = image[: len(image) * 2 // 3] if number in broken else image
        image = image[: len(image) * 7 // 8] if number in torn else image
        shard.append((f"{number:05d}.{'npy' if raw else 'jpg'}", image))
        shard.append((f"{number:05d}.cls", str(label).encode()))
    for number, files in enumerate(members):
        write_tar(folder / f"shard-{number:06d}.tar", files)
    scanned = [scan_shard(path) for path in sorted(folder.glob("*.tar"))]
    indexing.write(folder, scanned, [f"class-{label}" for label in range(num_classes)])
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if "gpu" in item.keywords]
    if marked and not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 samples in 3 shards, 5 classes. Shared by all tests: read only."""
    return write_set(tmp_path_factory.mktemp("photos") / "train", 50)


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 samples (no number of ranks but 1 divides it) of the same classes. Shared by all tests: read only."""
    return write_set(tmp_path_factory.mktemp("photos") / "validation", 23, num_shards=2, seed=1)


@pytest.fixture
def make_set(tmp_path: Path) -> Callable[..., Path]:
    """`write_set` into a folder of the test's own: make_set("name", 20)."""
    return lambda name, *args, **options: write_set(tmp_path / name, *args, **options)


@contextmanager
def disk_of(folder: Path, size: int, inodes: int = 0) -> Iterator[Path]:
    """A file system of `size` bytes at `folder`, with at most `inodes` files (0: no limit). Skips without the right to
    mount one."""
    folder.mkdir()
    options = f"size={size},nr_inodes={inodes}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, left: int = 0) -> Path:
    """A file that leaves `left` bytes of the disk."""
    file = folder / "filler"
    free = os.statvfs(folder)
    with open(file, "wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, max(1, free.f_bavail * free.f_frsize - left))
    return file


@contextmanager
def group_on(device: torch.device) -> Iterator[Runtime]:
    """A group of one process. DeepSpeed keeps its groups and its device, which the next one must not meet."""
    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cpu":
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setattr(builds, "require_usable_gpus", lambda *_: None)
        patch.setenv("DS_ACCELERATOR", device.type)
        with runtime.start() as started:
            assert started.device == device
            yield started
    from deepspeed.accelerator import real_accelerator
    from deepspeed.utils import groups

    groups._release_process_group_references(group=None)
    real_accelerator.ds_accelerator = None  # else DS_ACCELERATOR counts once in a process
    os.environ.pop("LOCAL_RANK", None)  # engine.build sets it for DeepSpeed


@pytest.fixture(scope="module")
def alone() -> Iterator[Runtime]:
    """A group of one process, on the CPU."""
    with group_on(torch.device("cpu")) as started:
        yield started


def called(main: Callable[[list[str]], int], *words: str | Path) -> subprocess.CompletedProcess:
    """A command's `main`, run here: its exit code and what it prints. For mistakes that are found before a group is
    joined; a new process that imports torch takes three seconds."""
    told, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(told), redirect_stderr(errors):
        code = run(lambda: main([*map(str, words)]))
    return subprocess.CompletedProcess(words, code, told.getvalue(), errors.getvalue())


def refused(ended: subprocess.CompletedProcess) -> str:
    """The message of a command that refused a user's mistake: one, without a traceback, and exit code 2."""
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("error: ") == 1
    assert "Traceback" not in ended.stderr
    return ended.stderr
