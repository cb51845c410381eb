"""Runs that are killed again and again must end in the weights of a run that nobody touched.

    .venv/bin/python -m tests.distributed.soak                       # 200 faults: make soak
    .venv/bin/python -m tests.distributed.soak --number 5 --seed 7   # what one seed did, again

A run is started at 1, 2 or 3 ranks of this machine, or at one rank on each of two hosts (network namespaces, which need
root), from a local set or through the cache. It is left until it has gone on by a few steps, and meets a fault: SIGKILL
of a rank or of a launcher, SIGTERM, SIGINT or SIGUSR1 to either, the network between the hosts cut for some seconds or
for good. Then the same command goes on at another number of ranks. When it is done, a reference goes through the same
(step, ranks) on this machine without faults. Appends a line a fault and a run to --log. Ends with 1 if weights differ,
an exit code is wrong, hosts do not end in the same way, or anything is left over.
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
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file

from tests.conftest import write_set
from tests.distributed.hosts import MASTER, Host, NoHosts, set_link, start, two_hosts

ROOT = Path(__file__).parents[2]
STEPS, BATCH, IMAGES = 120, 6, 48  # a batch that 1, 2 and 3 ranks share
SMALL = ["data.crop_px=64", "data.resize_px=72", "data.threads=1", "model.name=alexnet", "model.width=0.125"]
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
FAULTS = [("rank", signal.SIGKILL), ("launcher", signal.SIGKILL)] * 2 + [
    (whom, number) for whom in ("rank", "launcher") for number in STOPS
]
CUTS_S = (2.0, 4.0, None)  # of the link between two hosts; None: until the job ends
# Of what happened: done, a rank lost another one, killed, stopped; a Python that has just begun dies of any signal.
CODES = {0, 1, 128 + signal.SIGKILL, *(128 + stop for stop in STOPS), *(-number for _, number in FAULTS)}
PATIENCE_S = 180
ALONE_S = 20.0  # that a host waits for one whose launcher died before it had ranks, until the other is stopped by hand
STALL_MINUTES = 0.7


class Leg(NamedTuple):
    """From the checkpoint of `step` on at `ranks`, all on this machine or one on each host."""

    step: int
    ranks: int
    hosts: int = 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.distributed.soak", description=__doc__)
    parser.add_argument("--number", type=int, default=200, help="faults (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of faults, ranks and moments (default: 0)")
    parser.add_argument("--log", type=Path, default=Path("soak.log"), help="what is appended to (default: soak.log)")
    words = parser.parse_args()
    chance = random.Random(words.seed)
    done, wrong, number = 0, 0, 0
    with ExitStack() as stack, open(words.log, "a") as log:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="tencrop-soak-"))
        try:
            hosts = stack.enter_context(two_hosts(Path(scratch)))
        except NoHosts as reason:
            print(f"no runs on two hosts: {reason}")
            hosts = None
        packed = write_set(Path(scratch, "packed"), IMAGES, num_shards=4)
        while done < words.number:
            number += 1
            soak = Soak(Path(scratch, f"run-{number}"), packed, chance, hosts, remote=number % 3 == 0, log=log)
            done += soak.run(most=words.number - done)
            wrong += len(soak.wrong)
        line = f"{done} faults in {number} runs, seed {words.seed}: {wrong} wrong"
        print(line, file=log, flush=True)
    print(line)
    return 1 if wrong else 0


class Soak:
    """One run with its faults, and its reference."""

    def __init__(
        self, folder: Path, packed: Path, chance: random.Random, hosts: tuple[Host, Host] | None, remote: bool, log
    ):
        folder.mkdir()
        self.folder, self.chance, self.hosts, self.log = folder, chance, hosts, log
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
            ranks, hosts = self.chance.choice([(1, 1), (2, 1), (3, 1), (2, 2)])
            legs.append(Leg(step, ranks, hosts if self.hosts else 1))
            launchers = self._start("run", legs[-1], STEPS)
            fault = self._fault(launchers, legs[-1]) if faults < most else ""
            faults += bool(fault)
            codes = self._wait(launchers)
            if self.hosts:
                set_link(self.hosts[1], "fast0", up=True)
            if not CODES.issuperset(codes):
                self._blame(f"exit codes {codes} from {legs[-1]}")
            step, told = self._step("run"), "SIGKILL" not in fault and "cut" not in fault
            if (0 in codes and step < STEPS) or (step >= STEPS and any(codes) and told):
                self._blame(f"exit codes {codes}, but step {step} of {STEPS}")
            if told and len(set(codes)) > 1 and all(code >= 0 for code in codes):
                self._blame(f"the hosts ended with {codes}")
        self._compare(legs)
        return faults

    def _start(self, name: str, leg: Leg, until: int) -> list[subprocess.Popen]:
        """The launchers, one a host."""
        words = [f"run={self.folder / name}", f"data.train={self.data}", *SMALL]
        words += [f"train.epochs={until * BATCH / IMAGES}", f"train.global_batch={BATCH}", "schedule.kind=constant"]
        words += ["train.checkpoint_every_steps=2", "train.log_every_steps=1", "tracking=none", "optimizer.lr=0.005"]
        config = self.folder / "config.yaml"
        config.write_text("{}\n")
        with open(self.folder / f"{name}.said", "ab") as said:
            if leg.hosts == 2:
                assert self.hosts
                words += [f"train.stall_minutes={STALL_MINUTES}"]
                command = [str(ROOT / "launch" / "multi_node.sh"), str(config), *words]
                return [
                    start(
                        host,
                        [*command, f"data.cache={self.folder / 'cache' / host.name}"],
                        said,
                        MASTER_ADDR=MASTER,
                        PYTHONPATH=str(ROOT),
                        TMPDIR=str(self.temporary),
                    )
                    for host in self.hosts
                ]
            launcher = ["-m", "launch.torchrun", "--standalone", f"--nproc-per-node={leg.ranks}", "-m", "launch.train"]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)}
            return [
                subprocess.Popen(
                    [sys.executable, *launcher, str(config), *words, f"data.cache={self.folder / 'cache' / 'alone'}"],
                    cwd=ROOT,
                    env=environment,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                )
            ]

    def _fault(self, launchers: list[subprocess.Popen], leg: Leg) -> str:
        """Let it go on by some steps, or not at all, then strike. Returns what, or nothing if it was done before."""
        wanted = max(leg.step, self._logged()) + self.chance.choice([0, 1, 2, 3, 5, 8, 13])
        moment_s = self.chance.uniform(0, 1)
        whom, number = self.chance.choice(FAULTS)
        victim = self.chance.randrange(leg.ranks)
        launcher = launchers[victim % len(launchers)]
        cut, cut_s = leg.hosts == 2 and self.chance.random() < 0.3, self.chance.choice(CUTS_S)
        deadline = time.monotonic() + PATIENCE_S
        while launcher.poll() is None and self._logged() < wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(moment_s)
        if launcher.poll() is not None:
            return ""
        if cut:
            return self._cut(launchers, cut_s, leg)
        ranks = self._ranks(launcher)
        target = ranks[min(victim // len(launchers), len(ranks) - 1)] if whom == "rank" and ranks else launcher.pid
        try:
            os.kill(target, number)
        except ProcessLookupError:
            return ""
        return self._struck(f"{number.name} to {whom}", leg)

    def _cut(self, launchers: list[subprocess.Popen], cut_s: float | None, leg: Leg) -> str:
        """The link between the hosts; a job goes on after a short cut."""
        assert self.hosts
        set_link(self.hosts[1], "fast0", up=False)
        if cut_s is not None:
            time.sleep(cut_s)
            set_link(self.hosts[1], "fast0", up=True)
        return self._struck(f"cut of {cut_s or 'endless'} s", leg)

    def _struck(self, what: str, leg: Leg) -> str:
        print(f"{leg}: {what} after step {self._logged()}", file=self.log, flush=True)
        return what

    def _wait(self, launchers: list[subprocess.Popen]) -> list[int]:
        """Their exit codes; their ranks must go with them."""
        ranks = [rank for launcher in launchers for rank in self._ranks(launcher)]
        begun = time.monotonic()
        one_ended = None
        while running := [launcher for launcher in launchers if launcher.poll() is None]:
            now = time.monotonic()
            one_ended = one_ended or (now if len(running) < len(launchers) else None)
            if one_ended and now - one_ended > ALONE_S and not self._ranks(running[0]):
                print("stopped by hand: it waits for the other host", file=self.log, flush=True)
                running[0].terminate()
                one_ended = None
            if now - begun > PATIENCE_S:
                self._blame("it did not end")
                for launcher in running:
                    launcher.kill()
            time.sleep(0.1)
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{rank}").exists() for rank in ranks):
            if time.monotonic() > deadline:
                self._blame("ranks outlived their launcher")
                break
            time.sleep(0.1)
        return [launcher.returncode for launcher in launchers]

    def _compare(self, legs: list[Leg]) -> None:
        ends = [leg.step for leg in legs[1:]] + [STEPS]
        for leg, end in zip(legs, ends, strict=True):
            if end > leg.step and (codes := self._wait(self._start("reference", leg._replace(hosts=1), end))) != [0]:
                self._blame(f"the reference ended with {codes}")
        ours, theirs = (load_file(self._latest(name) / "model.safetensors") for name in ("run", "reference"))
        if not all(ours[name].equal(theirs[name]) for name in theirs):
            self._blame(f"other weights than without faults: {legs}")
        left = [
            path for path in (self.folder / "run").rglob("*") if path.name.startswith((".writing", ".seen", ".job"))
        ]
        left += [*(self.folder / "run").rglob("*.tmp"), *(self.folder / "cache").rglob("*.part")]
        left += [path for path in self.temporary.iterdir() if not path.name.startswith("torchinductor_")]  # a cache
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
