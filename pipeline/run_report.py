"""What is said of a run before it starts: by --check, and when there is nothing left to do.

In: a config, its plan. Out: lines for people.
"""

from collections.abc import Iterator

from pipeline import hints
from pipeline.config import Config
from pipeline.data.plausible import doubts
from pipeline.run_plan import RunPlan
from pipeline.wording import counted


def checked(config: Config, plan: RunPlan, world: int) -> Iterator[str]:
    """Doubts about the sets, what would be trained on what, and what changed since the checkpoint."""
    micro_batch, micro_steps = config.train.split(world)
    step = plan.progress.step
    for doubt in doubts(plan.index, *([plan.validation] if plan.validation else [])):
        yield f"warning: {doubt}"
    yield (
        f"{plan.run}: {config.model.name} on {counted(plan.index.num_samples, 'image')} of "
        f"{counted(len(plan.index.classes), 'class', 'classes')}, "
        f"{world} x {micro_batch} images x {micro_steps} a step, "
        + (f"going on after step {step}" if step else "from the start")
    )
    for change in plan.changes:
        yield f"changed since then: {change}"


def finished(plan: RunPlan, total: int) -> str:
    """Nothing is left to do of `total` steps."""
    other = [] if plan.validation else ["--data", "PACKED_SET"]
    return (
        f"{plan.run} is finished: {plan.progress.step} steps are done, {total} were asked for. Train longer with "
        f"train.epochs=..., anew with run=..., or score it with: {hints.command('launch.evaluate', plan.run, *other)}"
    )
