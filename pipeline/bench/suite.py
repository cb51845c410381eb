"""`launch.bench all`: every part in a process of its own, since each fills the device, and all figures together."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.bench.forms import class_folders
from pipeline.bench.machine import device, machine
from pipeline.bench.rows import Row, finish
from pipeline.errors import UserError


def measure(settings: dict[str, Any], to_json: Path | None, plot: Path | None, say: Callable[[str], None]) -> None:
    """Run the parts, say the summary, write JSON and picture. UserError at the end names those that failed."""
    class_folders(settings["photos"])  # before minutes go into a part that needs none
    rows: list[Row] = []
    parts: dict[str, object] = {}
    failed = []
    commands = commands_of(settings, device() == "cuda")
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number, command in enumerate(commands):
                say(f"\n== {number + 1} of {len(commands)}: launch.bench {' '.join(command)}")
                out = Path(folder) / f"{number}.json"
                try:
                    if code := _run([sys.executable, "-m", "launch.bench", *command, f"--json={out}"]):
                        failed.append(f"launch.bench {' '.join(command)} (exit code {code})")
                finally:
                    if out.exists():
                        report = json.loads(out.read_text())
                        parts[" ".join(command)] = report["parts"]
                        for row in report["rows"]:
                            rows.append(Row(row["part"], row["what"], row["rates"], row["limits"], row["unit"]))
        finally:  # what was measured is not lost with what was not
            finish(rows, parts, machine(), to_json, plot, say)
    if failed:
        raise UserError(f"these failed, see above; the rest is as asked for: {'; '.join(failed)}")


def commands_of(settings: dict[str, Any], on_gpu: bool) -> list[list[str]]:
    """The words of each part."""
    networks = settings.get("networks", ("alexnet", "vgg16") if on_gpu else ("alexnet",))
    photos, work = settings["photos"], settings["work"]
    rounds = ["--rounds", str(settings["rounds"])]
    shared = [f"--photos={photos}", f"--work={work}", "--sizes=original", *rounds, f"--cores={settings['cores']}"]
    if "ffcv_python" in settings:
        shared.append(f"--ffcv-python={settings['ffcv_python']}")
    packed = work / "original" / "packed" / "train"  # which the loader's part makes
    views = ["evaluate", f"--set={packed}", f"--images={2048 if on_gpu else 64}", *rounds]
    return [
        ["step", f"--networks={','.join(networks)}", *rounds],
        ["loader", *shared],
        *(["train", *shared, f"--model={network}"] for network in networks),
        *([*views, f"--model={network}"] for network in networks),
    ]


def _run(command: list[str]) -> int:
    """Its exit code. An interrupt is passed on to it, and it gets the time to write what it has."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
