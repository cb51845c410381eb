"""Runs that are killed again and again must end in the weights of a run that nobody touched.

    .venv/bin/python -m tests.distributed.soak                       # 200 faults: make soak
    .venv/bin/python -m tests.distributed.soak --number 5 --seed 7   # what one seed did, again

A run is started at 1, 2 or 3 ranks, from a local set or through the cache, is left until it has gone on by a few
steps, and meets a fault: SIGKILL of a rank or of the launcher, SIGTERM, SIGINT or SIGUSR1 to either. Then the same
command goes on at another number of ranks. When it is done, a reference goes through the same (step, ranks) without
faults. Appends a line a fault and a run to --log. Ends with 1 if weights differ, an exit code is wrong, or anything is
left over.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file

from tests.conftest import write_set

ROOT = Path(__file__).parents[2]
STEPS, BATCH, IMAGES = 120, 6, 48  # a batch that 1, 2 and 3 ranks share
SMALL = ["data.crop_px=64", "data.resize_px=72", "data.threads=1", "model.name=alexnet", "model.width=0.125"]
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
FAULTS = [("rank", signal.SIGKILL), ("launcher", signal.SIGKILL)] * 2 + [
    (whom, number) for whom in ("rank", "launcher") for number in STOPS
]
# Of what happened: done, a rank lost another one, killed, stopped; a Python that has just begun dies of any signal.
CODES = {0, 1, 128 + signal.SIGKILL, *(128 + stop for stop in STOPS), *(-number for _, number in FAULTS)}
PATIENCE_S = 180


class Leg(NamedTuple):
    """From the checkpoint of `step` on at `ranks`."""

    step: int
    ranks: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.distributed.soak", description=__doc__)
    parser.add_argument("--number", type=int, default=200, help="faults (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of faults, ranks and moments (default: 0)")
    parser.add_argument("--log", type=Path, default=Path("soak.log"), help="what is appended to (default: soak.log)")
    words = parser.parse_args()
    chance = random.Random(words.seed)
    done, wrong, number = 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="tencrop-soak-") as scratch, open(words.log, "a") as log:
        packed = write_set(Path(scratch, "packed"), IMAGES, num_shards=4)
        while done < words.number:
            number += 1
            soak = Soak(Path(scratch, f"run-{number}"), packed, chance, remote=number % 3 == 0, log=log)
            done += soak.run(most=words.number - done)
            wrong += len(soak.wrong)
        line = f"{done} faults in {number} runs, seed {words.seed}: {wrong} wrong"
        print(line, file=log, flush=True)
    print(line)
    return 1 if wrong else 0


class Soak:
    """One run with its faults, and its reference."""

    def __init__(self, folder: Path, packed: Path, chance: random.Random, remote: bool, log):
        folder.mkdir()
        self.folder, self.chance, self.log = folder, chance, log
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.data = self._behind_a_url(packed) if remote else str(packed)
        self.wrong: list[str] = []

    def _behind_a_url(self, packed: Path) -> str:
        """A set whose shards come through the cache."""
        copy = self.folder / "set"
        shutil.copytree(packed, copy)
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps(manifest | {"shards_root": packed.absolute().as_uri()}))
        return str(copy)

    def run(self, most: int) -> int:
        """Until it is done; returns the number of faults, at most `most`."""
        legs, faults = [], 0
        while (step := self._step("run")) < STEPS:
            legs.append(Leg(step, self.chance.choice([1, 2, 3])))
            launcher = self._start("run", legs[-1].ranks, STEPS)
            if faults < most:
                faults += self._fault(launcher, legs[-1])
            code = self._wait(launcher)
            if code not in CODES:
                self._blame(f"exit code {code} from {legs[-1]}")
            if (self._step("run") >= STEPS) != (code == 0):
                self._blame(f"exit code {code}, but step {self._step('run')} of {STEPS}")
        self._compare(legs)
        return faults

    def _start(self, name: str, ranks: int, until: int) -> subprocess.Popen:
        words = [f"run={self.folder / name}", f"data.train={self.data}", f"data.cache={self.folder / 'cache'}"]
        words += [f"train.epochs={until * BATCH / IMAGES}", f"train.global_batch={BATCH}", "schedule.kind=constant"]
        words += ["train.checkpoint_every_steps=2", "train.log_every_steps=1", "tracking=none", "optimizer.lr=0.005"]
        config = self.folder / "config.yaml"
        config.write_text("{}\n")
        launcher = ["-m", "launch.torchrun", "--standalone", f"--nproc-per-node={ranks}", "-m", "launch.train"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)}
        with open(self.folder / f"{name}.said", "ab") as said:
            return subprocess.Popen(
                [sys.executable, *launcher, str(config), *SMALL, *words],
                cwd=ROOT,
                env=environment,
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def _fault(self, launcher: subprocess.Popen, leg: Leg) -> int:
        """Let it go on by some steps, or not at all, then strike. 0 if it was done before."""
        wanted = max(leg.step, self._logged()) + self.chance.choice([0, 1, 2, 3, 5, 8, 13])
        moment_s = self.chance.uniform(0, 1)
        whom, number = self.chance.choice(FAULTS)
        victim = self.chance.randrange(leg.ranks)
        deadline = time.monotonic() + PATIENCE_S
        while launcher.poll() is None and self._logged() < wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(moment_s)
        ranks = self._ranks(launcher)
        target = ranks[min(victim, len(ranks) - 1)] if whom == "rank" and ranks else launcher.pid
        if launcher.poll() is not None:
            return 0
        try:
            os.kill(target, number)
        except ProcessLookupError:
            return 0
        print(f"{leg}: {number.name} to {whom} after step {self._logged()}", file=self.log, flush=True)
        return 1

    def _wait(self, launcher: subprocess.Popen) -> int:
        """Its exit code; its ranks must go with it."""
        ranks = self._ranks(launcher)
        try:
            code = launcher.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._blame("it did not end")
            launcher.kill()
            return launcher.wait()
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{rank}").exists() for rank in ranks):
            if time.monotonic() > deadline:
                self._blame("ranks outlived their launcher")
                break
            time.sleep(0.1)
        return code

    def _compare(self, legs: list[Leg]) -> None:
        ends = [leg.step for leg in legs[1:]] + [STEPS]
        for leg, end in zip(legs, ends, strict=True):
            if end > leg.step and (code := self._wait(self._start("reference", leg.ranks, end))):
                self._blame(f"the reference ended with {code}")
        ours, theirs = (load_file(self._latest(name) / "model.safetensors") for name in ("run", "reference"))
        if not all(ours[name].equal(theirs[name]) for name in theirs):
            self._blame(f"other weights than without faults: {legs}")
        left = [
            path for path in (self.folder / "run").rglob("*") if path.name.startswith((".writing", ".seen", ".job"))
        ]
        left += [*(self.folder / "run").rglob("*.tmp"), *(self.folder / "cache").rglob("*.part")]
        if left:
            self._blame(f"left over: {left}")
        print(f"run of {len(legs)} legs: {len(self.wrong)} wrong", file=self.log, flush=True)
        if not self.wrong:
            shutil.rmtree(self.folder)

    def _blame(self, what: str) -> None:
        self.wrong.append(what)
        said = (self.folder / "run.said").read_text()[-2000:]
        print(f"WRONG: {what}\n{said}", file=self.log, flush=True)

    def _ranks(self, launcher: subprocess.Popen) -> list[int]:
        try:
            return [
                int(word) for word in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
            ]
        except OSError:
            return []

    def _latest(self, name: str) -> Path:
        root = self.folder / name / "checkpoints"
        return root / (root / "latest").read_text().strip()

    def _step(self, name: str) -> int:
        """Of the last checkpoint."""
        pointer = self.folder / name / "checkpoints" / "latest"
        return int(pointer.read_text().strip().removeprefix("step-")) if pointer.exists() else 0

    def _logged(self) -> int:
        metrics = self.folder / "run" / "metrics.jsonl"
        lines = metrics.read_bytes().splitlines() if metrics.exists() else []
        try:
            return json.loads(lines[-1])["step"] if lines else 0
        except ValueError:
            return 0


if __name__ == "__main__":
    sys.exit(main())
