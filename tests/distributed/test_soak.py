"""Twenty epochs on two ranks over a set with 1 % corrupt images: right counts, flat memory, nothing left behind."""

import contextlib
import json
import os
import statistics
import subprocess
from pathlib import Path

import pytest

from pipeline.data import quarantine
from tests.distributed.test_runs import ROOT, SMALL, torchrun

EPOCHS, TRAIN, BATCH = 20, 300, 20
BROKEN = (7, 150, 299)


@pytest.mark.prove
def test_twenty_epochs_with_corrupt_images(make_set, tmp_path):
    train, validation = make_set("train", TRAIN, broken=BROKEN), make_set("validation", 41, seed=1, broken=[5])
    folder, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    words = [f"data.train={train}", f"data.validation={validation}", f"train.epochs={EPOCHS}", "tracking=none"]
    words += [f"train.global_batch={BATCH}", "evaluation.every_epochs=2", "train.log_every_steps=5"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)}
    shared = _orphans()
    command = torchrun(2, "launch.train", "configs/demo.yaml", f"run={folder}", *SMALL, *words)
    with open(tmp_path / "said", "w+") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT)
        memory: dict[int, list[float]] = {}  # step -> MB of each sample of the larger rank
        while process.poll() is None:
            if used := _anonymous_mb(str(folder)):
                memory.setdefault(_step(folder), []).append(max(used))
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
        said.seek(0)
        text = said.read()
    assert process.returncode == 0, text
    assert "Traceback" not in text

    total = EPOCHS * TRAIN // BATCH
    assert _step(folder) == total
    progress = json.loads((folder / "checkpoints" / f"step-{total:08d}" / "progress.json").read_text())
    assert (progress["step"], progress["samples_seen"], len(progress["errors"])) == (total, EPOCHS * TRAIN, 10)
    found = quarantine.read(folder / "bad_images.tsv")
    assert sorted(entry.key for entry in found) == [f"{sample:05d}" for sample in BROKEN]
    assert sorted(e.key for e in quarantine.read(train / "quarantine.tsv")) == [f"{n:05d}" for n in BROKEN]
    assert [entry.key for entry in quarantine.read(validation / "quarantine.tsv")] == ["00005"]
    assert text.count("cannot be decoded") == 4

    # Errors are fractions of the 40 images that can be decoded: each is a whole number of them.
    assert all(abs(error * 40 - round(error * 40)) < 1e-9 for error in progress["errors"])

    early = statistics.median(mb for step, used in memory.items() if total * 0.2 < step <= total * 0.5 for mb in used)
    late = statistics.median(mb for step, used in memory.items() if total * 0.7 < step <= total for mb in used)
    assert late < early * 1.05 + 10, memory

    assert _orphans() <= shared
    assert not _anonymous_mb(str(folder))
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith("."))
    assert kept == []
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "bad_images.tsv",
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "quarantine.tsv",
    ]
    assert [path for path in scratch.rglob("*") if path.is_file()] == []


def _step(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def _orphans() -> set[str]:
    """Files in shared memory that no living process maps."""
    files = set(os.listdir("/dev/shm"))
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            text = maps.read_text()
            files -= {name for name in files if name in text}
    return files


def _anonymous_mb(word: str) -> list[float]:
    """Memory of its own (no shards, no libraries) of each training process that has `word` on its command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode().split("\0")
            if "launch.train" in command and "launch.torchrun" not in command and any(word in part for part in command):
                status = (process / "status").read_text()
                found.append(int(status.partition("RssAnon:")[2].split()[0]) / 1024)
        except (OSError, IndexError, UnicodeDecodeError):
            continue
    return found
