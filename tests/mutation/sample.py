"""Would the tests notice? A seeded sample of small changes to the code, each run against the fast tests of its module.

    .venv/bin/python -m tests.mutation.sample                       # 200 mutants; 40 minutes on 2 CPU cores
    .venv/bin/python -m tests.mutation.sample --number 40 --seed 1

cosmic-ray finds and makes the changes; it is fetched into a scratch folder, for it is no dependency. The tests run in a
copy of the checkout. Prints each survivor as a diff, and ends with 1 if fewer than 90 % were killed. A mutant is killed
if a test fails, if it cannot be imported, or if the tests take five times as long as they do without it.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from difflib import unified_diff
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
TOOL = "cosmic-ray==8.7.0"
WANTED = 0.9
TESTS = {
    "pipeline/data/loader.py": (
        "tests/data/test_loader.py",
        "tests/data/test_seam.py",
        "tests/data/test_quarantine.py",
    ),
    "pipeline/data/crops.py": ("tests/data/test_crops.py", "tests/data/test_seam.py"),
    "pipeline/data/order.py": ("tests/data/test_order.py",),
    "pipeline/rng.py": ("tests/test_rng.py", "tests/data/test_crops.py"),
    "pipeline/schedule.py": ("tests/test_schedule.py",),
    "pipeline/optim.py": ("tests/test_optim.py",),
    "pipeline/tasks/classification.py": ("tests/tasks/test_classification.py", "tests/test_engine.py"),
    "pipeline/checkpoint_writer.py": ("tests/test_checkpoint.py",),
    "pipeline/checkpoint.py": ("tests/test_checkpoint.py", "tests/distributed/test_stored_runs.py"),
    "pipeline/data/bad_images.py": ("tests/data/test_quarantine.py",),
    "pipeline/data/quarantine.py": ("tests/data/test_quarantine.py",),
}


class Mutant(NamedTuple):
    module: str
    operator: str
    occurrence: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.sample", description=__doc__)
    parser.add_argument("--number", type=int, default=200, help="mutants to try (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tencrop-mutation-") as scratch:
        tool, copy = Path(scratch, "tool"), Path(scratch, "copy")
        install = [sys.executable, "-m", "pip", "install", "-q", "--target", str(tool), TOOL]
        subprocess.run(install, check=True, stderr=subprocess.DEVNULL)
        sys.path.append(str(tool))  # behind our own packages
        _copy(copy)
        mutants = list(_all_mutants())
        chosen = sorted(random.Random(words.seed).sample(mutants, min(words.number, len(mutants))))
        print(f"{len(chosen)} of {len(mutants):,} mutants of {len(TESTS)} modules, seed {words.seed}", flush=True)
        alone_s = {module: _time_alone(copy, module) for module in dict.fromkeys(one.module for one in chosen)}
        survivors = [mutant for mutant in chosen if not _is_killed(copy, mutant, alone_s[mutant.module])]
    share = 1 - len(survivors) / len(chosen)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed: {share:.1%} (wanted: {WANTED:.0%})")
    return 0 if share >= WANTED else 1


def _copy(copy: Path) -> None:
    """The files that git knows, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0")[:-1]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)


def _all_mutants():
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.plugins import get_operator, operator_names

    for module in TESTS:
        tree = get_ast_from_path(ROOT / module)
        for name in operator_names():
            if not get_operator(name).arguments():
                operator = get_operator(name)()
                places = sum(1 for node in ast_nodes(tree) for _ in operator.mutation_positions(node))
                yield from (Mutant(module, name, occurrence) for occurrence in range(places))


def _run(copy: Path, module: str, limit_s: float | None) -> Any:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not prove"]
    return subprocess.run([*command, *TESTS[module]], cwd=copy, capture_output=True, timeout=limit_s, check=False)


def _time_alone(copy: Path, module: str) -> float:
    start_s = time.monotonic()
    if _run(copy, module, None).returncode:
        raise SystemExit(f"the tests of {module} fail without any change: mend them first")
    return time.monotonic() - start_s


def _is_killed(copy: Path, mutant: Mutant, alone_s: float) -> bool:
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    before = (ROOT / mutant.module).read_text()
    after = mutate_code(before, get_operator(mutant.operator)(), mutant.occurrence)
    assert after is not None
    (copy / mutant.module).write_text(after)
    try:
        killed = _run(copy, mutant.module, 5 * alone_s + 10).returncode != 0
    except subprocess.TimeoutExpired:
        killed = True
    finally:
        (copy / mutant.module).write_text(before)
    print(f"{'killed' if killed else 'SURVIVED'}  {mutant.module}  {mutant.operator} {mutant.occurrence}", flush=True)
    if not killed:
        print("".join(unified_diff(before.splitlines(True), after.splitlines(True), n=0)), flush=True)
    return killed


if __name__ == "__main__":
    sys.exit(main())
