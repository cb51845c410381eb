"""One job a run folder: held against others for as long as a job trains in it.

In: a plan, a runtime. Out: the folder, locked, with the quarantine that the run keeps to.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pipeline import checkpoint, files
from pipeline.agreement import require_one_folder
from pipeline.data import quarantine
from pipeline.errors import UserError
from pipeline.locks import only_job
from pipeline.refusal import shared_refusal
from pipeline.run_plan import RunPlan
from pipeline.runtime import Runtime


@contextmanager
def lock_run(plan: RunPlan, runtime: Runtime) -> Iterator[None]:
    """Hold the run folder against a second job, which would overwrite its checkpoints. UserError if one is on, or was
    since the plan was prepared. Called by all ranks together."""
    with ExitStack() as opened:
        with shared_refusal(runtime):
            if runtime.is_main:
                with files.room(plan.run, 0, files.GO_ON):
                    plan.run.mkdir(parents=True, exist_ok=True)
                    opened.enter_context(only_job(plan.run))
                _begin(plan)
        require_one_folder(plan.run, runtime)
        yield


def _begin(plan: RunPlan) -> None:
    if checkpoint.latest(plan.run) != plan.checkpoint:
        raise UserError(f"another job has trained in {plan.run} meanwhile. Start the same command again")
    begun = quarantine.begin(plan.run, plan.index)
    plan.progress.quarantine_fingerprint = begun.fingerprint
    scored = quarantine.left_out(plan.validation).lines() if plan.validation else []
    for line in begun.lines() + scored:
        print(line, flush=True)
