"""Training: the loop from shards to checkpoints, read top to bottom.

In: a config, the indices of its sets, a runtime. Out: a run folder with checkpoints, metrics.jsonl, config.yaml and the
W&B run. Starting again with the same run folder goes on after the last checkpoint, at any number of ranks.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline import checkpoint, checkpoint_writer, engine, files, hints, network, optim, optimizer_state
from pipeline.config import Config
from pipeline.config_io import dump, resolved
from pipeline.data.index import Index
from pipeline.data.loader import Batch, decodes_on_gpu, order_of, train_batches
from pipeline.data.order import Order
from pipeline.errors import UserError
from pipeline.meter import Meter
from pipeline.refusal import shared_refusal
from pipeline.run_plan import RunPlan, num_classes
from pipeline.runtime import Runtime, StopRequest, seed_everything
from pipeline.schedule import learning_rate
from pipeline.stopwatch import Stopwatch
from pipeline.tasks.task import task_of
from pipeline.tracking import points as keys
from pipeline.tracking.console import Console
from pipeline.tracking.journal import Journal, open_journal
from pipeline.whereabouts import COMPUTE, DATA, END, EVALUATE, SAVE, Whereabouts


@dataclass(frozen=True)
class Length:
    """A run in steps: all of it, an epoch, and the steps between evaluations and between checkpoints."""

    total: int
    epoch: int
    evaluation: int
    checkpoint: int


def length_of(config: Config, order: Order) -> Length:
    """The one place that turns epochs into steps."""
    epoch = order.steps_per_epoch
    return Length(
        total=max(1, round(config.train.epochs * epoch)),
        epoch=epoch,
        evaluation=max(1, round(config.evaluation.every_epochs * epoch)),
        checkpoint=config.train.checkpoint_every_steps or epoch,
    )


@dataclass(frozen=True)
class Job:
    """What a training job has open, on each rank."""

    config: Config
    plan: RunPlan
    runtime: Runtime
    stepper: engine.Stepper
    length: Length
    journal: Journal
    writer: checkpoint_writer.Writer
    stop: StopRequest
    here: Whereabouts


def train(config: Config, plan: RunPlan, runtime: Runtime, here: Whereabouts) -> signal.Signals | None:
    """Train from where the plan stands to the end of the config, or until a signal reaches any rank. Returns that
    signal, None at the end. Called by all ranks together. Raises UserError for what a person must mend first."""
    run, progress = plan.run, plan.progress
    decodes_on_gpu(config.data, runtime.device.type)  # refuses a GPU that is not there
    order = order_of(plan.index, config.data, config.train.global_batch, config.seed)
    length = length_of(config, order)
    stepper = _stepper(config, plan, runtime)
    with shared_refusal(runtime):
        if runtime.is_main:
            run.mkdir(parents=True, exist_ok=True)
            checkpoint_writer.remove_leftovers(run)
            files.replace(run / "config.yaml", dump(config).encode(), files.GO_ON)
    progress.config = resolved(config)
    stop = StopRequest(runtime)
    with ExitStack() as opened:
        with shared_refusal(runtime):
            opening = open_journal(
                config,
                run,
                is_main=runtime.is_main,
                wandb_id=progress.wandb_id,
                console=Console(progress.step, length.total) if runtime.is_main else None,
                resume_step=progress.step,
            )
            journal = opened.enter_context(opening)
        writer = checkpoint_writer.Writer(run, runtime, config.train.keep_checkpoints)
        opened.callback(writer.join)
        progress.wandb_id = journal.wandb_id
        if plan.checkpoint:
            journal.print_line(f"going on after step {progress.step} of {length.total}, from {plan.checkpoint}")
        for change in plan.changes:
            journal.print_line(f"changed since then: {change}")
        batches = train_batches(
            plan.index,
            config.data,
            order,
            rank_info=runtime,
            device=runtime.device,
            micro_steps=config.train.split(runtime.world)[1],
            steps=range(progress.step, length.total),
            task=stepper.task,
            run=run,
            too_many_bad=stop.refuse,
        )
        job = Job(config, plan, runtime, stepper, length, journal, writer, stop, here)
        stopped_by = _loop(job, batches)
        if stopped_by is None:
            _print_end(job)
        stepper.close()
    stop.close()
    return stopped_by


def _loop(job: Job, batches: Iterator[Batch]) -> signal.Signals | None:
    """Returns the signal that ended it early."""
    config, length, progress, stepper, stop = job.config, job.length, job.plan.progress, job.stepper, job.stop
    meter = Meter(config, job.runtime, stepper, job.journal)
    every_s, saved_s = 60 * (config.train.checkpoint_every_minutes or 0), time.monotonic()
    for step in range(progress.step, length.total):
        lr = learning_rate(
            config.schedule,
            config.optimizer.lr,
            step,
            steps_per_epoch=length.epoch,
            total_steps=length.total,
            errors=progress.errors,
        )
        for group in stepper.engine.optimizer.param_groups:
            group["lr"] = lr
        meter.add(take_step(stepper, batches, step, stop, meter.data_wait, job.here))

        done = step + 1
        progress.step, progress.epoch = done, done / length.epoch
        progress.samples_seen += config.train.global_batch
        job.journal.advance()
        last = done == length.total
        if every_s and job.runtime.is_main and time.monotonic() - saved_s > every_s:
            stop.save_due, saved_s = True, time.monotonic()
        stopping = stop.poll() and not last
        evaluating = done % length.evaluation == 0 or last
        saving = done % length.checkpoint == 0 or done % length.epoch == 0 or stop.save_now or last or stopping
        if done % config.train.log_every_steps == 0 or evaluating or saving:
            with shared_refusal(job.runtime):
                meter.log(done, progress.epoch, lr)  # refuses a diverged loss before good checkpoints go for it
        if job.plan.validation is not None and evaluating:
            _evaluate(job, job.plan.validation)
        if saving or progress.best_step == done:
            job.here.note(SAVE, done)
            folder, saved_s = job.writer.save(stepper.engine, progress), time.monotonic()
        if stopping or last:
            job.writer.finish()
            job.here.note(END, done)
        if stopping:
            return _stopped(job, folder)
        meter.skip_time()
    return None


def _stopped(job: Job, folder: Path) -> signal.Signals:
    """The signal that all ranks agreed to stop for, when `folder` is written. Raises UserError if one refused."""
    if refusal := job.stop.any_refusal():
        raise UserError(f"{refusal}. {folder} is written; the same command goes on from it")
    assert job.stop.signal
    job.journal.print_line(
        f"stopped after step {job.plan.progress.step} of {job.length.total} by {job.stop.signal.name}; {folder} is "
        f"written. The same command goes on from it"
    )
    return job.stop.signal


def _print_end(job: Job) -> None:
    run, best_step = job.plan.run, job.plan.progress.best_step
    best = f", the best of step {best_step} (--best)" if best_step else ""
    where = [] if job.plan.validation else ["--data", "PACKED_SET"]
    job.journal.print_line(f"done: {run}, the last checkpoint of step {job.length.total}{best}")
    if ":" not in job.config.task:  # a task of one's own scores itself
        job.journal.print_line(f"score it with: {hints.command('launch.evaluate', run, *where)}")


def take_step(
    stepper: engine.Stepper,
    batches: Iterator[Batch],
    step: int,
    stop: StopRequest,
    data_wait: Stopwatch,
    here: Whereabouts,
) -> torch.Tensor:
    """One optimizer step. Returns this rank's counts (see Task.counts)."""
    task = stepper.task
    counts = torch.zeros(task.num_counts, dtype=torch.float64, device=stepper.runtime.device)
    for micro_step in range(stepper.engine.gradient_accumulation_steps()):
        here.note(DATA, step + 1)
        with stop.waiting(), data_wait:
            batch = next(batches)
        here.note(COMPUTE, step + 1)
        outputs = stepper.micro_step(batch.images, batch.targets, batch.valid, step, micro_step)
        counts += task.counts(outputs, batch.targets, batch.valid)
    return counts


def _evaluate(job: Job, validation: Index) -> None:
    config, runtime, progress, task = job.config, job.runtime, job.plan.progress, job.stepper.task
    job.here.note(EVALUATE, progress.step)  # else a stop would take a slow first batch for a step that hangs
    model = job.stepper.engine.module
    for buffer in model.buffers():  # batch normalisation's statistics differ by rank; a checkpoint holds rank 0's
        dist.broadcast(buffer, 0)
    model.eval()
    with torch.compiler.set_stance("force_eager"):  # train.compile is for training: other sizes would compile anew
        scores = task.evaluate(
            model, validation, runtime=runtime, progress=lambda _: job.here.note(EVALUATE, progress.step)
        )
    model.train()
    error = task.headline(scores)
    if not 0 <= error <= 1:
        raise UserError(f"task={config.task}: its headline of step {progress.step} is {error}, which must be in 0..1")
    progress.errors.append(error)
    if progress.best_error is None or error < progress.best_error:
        progress.best_error, progress.best_step = error, progress.step
    point = {keys.STEP: progress.step, keys.EPOCH: progress.epoch}
    for view, of_view in scores.items():
        point |= keys.eval_point(view, of_view)
    with shared_refusal(runtime):
        job.journal.log(point)


def _stepper(config: Config, plan: RunPlan, runtime: Runtime) -> engine.Stepper:
    """The engine with the weights that the run stands at: fresh ones, the config's, fresh ones upon a shallower
    network's, or the checkpoint's."""
    seed_everything(config.seed)
    classes = num_classes(config, plan.progress)
    if plan.checkpoint:
        model = network.from_checkpoint(plan.checkpoint, config.model, config.data, classes)
    else:
        model = network.build(config.model, config.data, classes)
        if config.model.weights:
            network.start_from(model, config.model)
        if config.model.grow_from:
            network.grow(model, config.model)
    if plan.validation:
        task_of(config).require(model.eval())
    model.to(runtime.device).train()
    built = engine.build(model, optim.build(model, config.optimizer), config, runtime)
    if plan.checkpoint:
        try:
            optimizer_state.restore(built, checkpoint.read_optimizer(plan.checkpoint))
        except ValueError as error:
            raise UserError(f"{plan.checkpoint}: {error}") from None
    return engine.Stepper(built, config, runtime)
