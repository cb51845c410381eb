"""Scoring from sources to results: which set, which output is which class, and the pass over all images.

In: sources, settings, the names that the command line gives. Out: a `Scoring`, refused by name where nothing could come
of it; then what was found, as report.py tells it.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline import agreement
from pipeline.data import quarantine
from pipeline.data.index import Index
from pipeline.data.storage.mirror import open_set
from pipeline.errors import UserError
from pipeline.evaluation import classes, classifier
from pipeline.evaluation.arguments import Names
from pipeline.evaluation.classifier import Classifier
from pipeline.evaluation.evaluate import ScoredModel, evaluate
from pipeline.evaluation.report import Evaluated
from pipeline.runtime import Runtime, start
from pipeline.versions import versions
from pipeline.whereabouts import EVALUATE, Whereabouts
from pipeline.workers import ProgressBar


@dataclass(frozen=True)
class Scoring:
    """What is scored on what. `outputs` int64 are the networks' outputs of the set's classes, `names[output]` what
    people call them."""

    classifiers: Sequence[Classifier]
    data: str
    index: Index
    outputs: np.ndarray
    names: Sequence[str]


def prepare(
    sources: Sequence[str],
    changes: Sequence[str],
    best: bool,
    data: str | None,
    index: Index | None,
    given: Names | None,
) -> Scoring:
    """Read the networks, and the set unless its index is there already. `data` None means the set that the run was
    validated on; `given` are the networks' classes. Raises UserError where they do not belong together."""
    classifiers = [classifier.read(source, [*changes], best) for source in sources]
    config = classifiers[0].config
    for each in classifiers:
        if given and len(given.names) != each.num_outputs:
            has = f"--classes {given.file} has {len(given.names)} names"
            raise UserError(f"{has}, {each.source} {each.num_outputs} outputs")
    data = data or config.data.validation
    if data is None:
        trained = f"{sources[0]} was trained without data.validation" if classifiers[0].run else "no set to score on"
        raise UserError(f"{trained}. Name a packed set: --data FOLDER")
    index = index or open_set(data, config.data.cache.expanduser())
    return Scoring(classifiers, data, index, *_matched(classifiers, index, given.names if given else None))


def _matched(
    classifiers: Sequence[Classifier], index: Index, names: tuple[str, ...] | None
) -> tuple[np.ndarray, Sequence[str]]:
    """The networks' outputs of the set's classes, and the names of all outputs: the same for all networks."""
    outputs = [
        classes.match(index.classes, names or each.classes, each.num_outputs, each.source) for each in classifiers
    ]
    shown, *others = (classes.shown_names(names or each.classes, each.num_outputs) for each in classifiers)
    for each, its, its_names in zip(classifiers[1:], outputs[1:], others, strict=True):
        known = each.classes and classifiers[0].classes and not names
        if its.tolist() != outputs[0].tolist() or len(its_names) != len(shown) or (known and its_names != shown):
            raise UserError(f"{each.source} and {classifiers[0].source} have other classes, so they cannot be averaged")
    return outputs[0], shown


def score(scoring: Scoring, meter: ProgressBar, warn: Callable[[str], None]) -> Evaluated | None:
    """Score every image; the result on the first rank, None on the others."""
    first, index = scoring.classifiers[0], scoring.index
    config = first.config
    with start() as runtime:
        agreement.require(agreement.of_scoring([*scoring.classifiers], index, runtime), runtime)
        here = Whereabouts(first.run or Path(), stall_s=0)  # a batch of many crops may take long on a CPU
        bf16 = config.train.uses_bf16(runtime.on_gpu)
        left_out = quarantine.left_out(index)  # before this evaluation adds to it
        for line in left_out.lines() if runtime.is_main else ():
            warn(line)
        models = [_on_device(each, runtime) for each in scoring.classifiers]
        begin = time.perf_counter()
        bar = meter(index.num_samples, 0, "images", "scoring") if runtime.is_main else nullcontext(lambda done: None)
        with bar as progress:

            def tell(done: int) -> None:
                here.note(EVALUATE, first.step)
                progress(done)

            here.note(EVALUATE, first.step)
            outcomes = evaluate(
                models,
                index,
                config.data,
                config.evaluation.views,
                labels=scoring.outputs[index.label],
                runtime=runtime,
                micro_batch=config.evaluation.micro_batch,
                bf16=bf16,
                progress=tell,
            )
        images_per_s = index.num_samples / (time.perf_counter() - begin)
    if not runtime.is_main:
        return None
    if not outcomes.scored.any():
        raise UserError(f"{scoring.data}: not one image could be decoded, so there is nothing to count")
    circumstances = {
        "precision": "bf16" if bf16 else "fp32",
        "device": torch.cuda.get_device_name(runtime.device) if runtime.on_gpu else "cpu",
        "processes": runtime.world,
        "versions": versions(),
        "quarantine_fingerprint": left_out.fingerprint,
    }
    return Evaluated(
        scoring.classifiers, scoring.data, index, scoring.outputs, scoring.names, outcomes, images_per_s, circumstances
    )


def _on_device(scored: Classifier, runtime: Runtime) -> ScoredModel:
    scored.network.to(runtime.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return ScoredModel(scored.network, scored.config.data, scored.config.evaluation.corners)
