"""What all ranks of a job must have in common before its first step: config, code, versions, layout, data, run folder.

In: each rank's own view. Out: nothing, or the same UserError on all ranks, with what differs and where. Without this,
two machines that were started with other words trained to the end, on some images twice and on others never.
"""

import hashlib
import secrets
import socket
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import files, own
from pipeline.config import Config
from pipeline.config_io import resolved
from pipeline.data.index import Index
from pipeline.errors import UserError
from pipeline.refusal import shared_refusal
from pipeline.runtime import Runtime
from pipeline.unread import flat
from pipeline.versions import versions

if TYPE_CHECKING:
    from pipeline.evaluation.classifier import Classifier
    from pipeline.run_plan import RunPlan

ROOT = Path(__file__).parents[1]
PATHS = ("run", "data.train", "data.validation", "data.cache")  # a machine may have its own: what is there is compared
SEEN_S = 10.0  # until a network file system must show a new file to all machines
MOST_HOSTS = 3  # that a message names

Facts = dict[str, Any]


def of_training(config: Config, plan: "RunPlan", runtime: Runtime) -> Facts:
    """What must be the same on all ranks that train, by the names that a message uses."""
    return _of_any(config, runtime) | {
        "data.train (fingerprint)": plan.index.fingerprint,
        "data.validation (fingerprint)": plan.validation and plan.validation.fingerprint,
        "steps done, as the run folder says": plan.progress.step,
    }


def of_scoring(classifiers: "Sequence[Classifier]", index: Index, runtime: Runtime) -> Facts:
    """What must be the same on all ranks that score."""
    facts = _of_any(classifiers[0].config, runtime) | {"the set (fingerprint)": index.fingerprint}
    return facts | {
        f"weights {number} (SHA-256)": classifier.weights_sha256
        for number, classifier in enumerate(classifiers, start=1)
    }


def _of_any(config: Config, runtime: Runtime) -> Facts:
    facts = {key: value for key, value in flat(resolved(config)).items() if key not in PATHS}
    facts |= {f"version of {name}": version for name, version in versions().items()}
    for key, value in (("task", config.task), ("data.recipe", config.data.recipe), ("model.name", config.model.name)):
        facts |= own.code_of(key, value)
    return facts | {"code (SHA-256)": _code_sha256(), "processes on the machine": runtime.local_world}


def require(facts: Facts, runtime: Runtime) -> str:
    """Raises UserError on all ranks unless all have rank 0's facts. Called by all ranks together. Returns which ranks
    on which host."""
    if runtime.control is None:
        return _named([(0, socket.gethostname())])
    import torch.distributed as dist

    shared = [facts]
    dist.broadcast_object_list(shared, src=0, group=runtime.control)
    first = shared[0]
    absent = object()
    others = {
        key: facts.get(key, "-")
        for key in first | facts
        if facts.get(key, absent) != first.get(key, absent)  # only this travels: little, unless much is wrong
    }
    told: list[tuple[str, Facts]] = [("", {})] * runtime.world
    dist.all_gather_object(told, (socket.gethostname(), others), group=runtime.control)
    if any(differing for _, differing in told):
        raise UserError(_what_differs(first, told))
    return _named([(rank, host) for rank, (host, _) in enumerate(told)], most=runtime.world)


def _what_differs(first: Facts, told: list[tuple[str, Facts]]) -> str:
    lines = []
    for key in dict.fromkeys(key for _, differing in told for key in differing):
        places = defaultdict(list)
        for rank, (host, differing) in enumerate(told):
            places[str(differing.get(key, first.get(key, "-")))].append((rank, host))
        lines.append(f"\n  {key}: " + ", ".join(f"{value} on {_named(where)}" for value, where in places.items()))
    return (
        "the processes of this job differ in" + "".join(lines) + "\nStart the same command on all machines, from the "
        "same checkout, with the same environment and data"
    )


def require_one_folder(run: Path, runtime: Runtime) -> None:
    """Raises UserError on all ranks unless all machines see the run folder of rank 0, which exists. Called by all ranks
    together."""
    if runtime.control is None:
        return
    import torch.distributed as dist

    token = [f".seen-{secrets.token_hex(8)}"]  # a new name, which no machine has looked up before
    with shared_refusal(runtime):
        if runtime.is_main:
            for left in run.glob(".seen-*"):  # by a job that was killed just here
                left.unlink(missing_ok=True)
            with files.room(run, 0, files.GO_ON):
                (run / token[0]).touch()
    dist.broadcast_object_list(token, src=0, group=runtime.control)
    deadline = time.monotonic() + SEEN_S
    while not (sees := (run / token[0]).exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    told: list[tuple[str, str, bool]] = [("", "", True)] * runtime.world
    dist.all_gather_object(told, (socket.gethostname(), str(run.absolute()), sees), group=runtime.control)
    if runtime.is_main:
        (run / token[0]).unlink(missing_ok=True)
    blind = [(rank, host) for rank, (host, _, seen) in enumerate(told) if not seen]
    if blind:
        path = told[blind[0][0]][1]
        raise UserError(
            f"{path} on {_named(blind)} is not the run folder of rank 0 ({told[0][1]} on {told[0][0]}). Give a run=... "
            f"on a file system that all machines share"
        )


def _named(places: list[tuple[int, str]], most: int = MOST_HOSTS) -> str:
    """Hosts with their ranks, the first `most`: "node1 (rank 8 to 15), node2 (rank 16 to 23) and 4 more"."""
    ranks = defaultdict(list)
    for rank, host in places:
        ranks[host].append(rank)
    names = [
        f"{host} (rank {of[0]})" if len(of) == 1 else f"{host} (rank {of[0]} to {of[-1]})" for host, of in ranks.items()
    ]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _code_sha256() -> str:
    """Of all our code, the first 12 digits."""
    digest = hashlib.sha256()
    for folder in ("pipeline", "models", "launch"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name.startswith("."):
                continue  # what editors leave beside a file
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
