"""Training: the loop from shards to checkpoints, read top to bottom.

In: a config, the indices of its sets, a runtime. Out: a run folder with checkpoints, metrics.jsonl, config.yaml and the
W&B run. Starting again with the same run folder goes on after the last checkpoint, at any number of ranks.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipeline import checkpoint, engine, hints, network, optim, optimizer_state
from pipeline import journal as keys
from pipeline.checkpoint import Progress
from pipeline.config import Config, dump, resolved
from pipeline.console import Console
from pipeline.data import quarantine
from pipeline.data.index import Index
from pipeline.data.loader import Batch, decodes_on_gpu, order_of, train_batches
from pipeline.data.order import Order
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import Contender, evaluate, require_views
from pipeline.journal import Journal, open_journal
from pipeline.locks import lock
from pipeline.meter import Meter
from pipeline.metrics import count
from pipeline.preflight import Flight, num_classes
from pipeline.runtime import Runtime, StopRequest, seed_everything
from pipeline.schedule import learning_rate
from pipeline.stopwatch import Stopwatch


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


def train(config: Config, flight: Flight, runtime: Runtime) -> None:
    """Train from where the flight stands to the end of the config, or to a signal. Called by all ranks together."""
    run, index, progress = flight.run, flight.index, flight.progress
    _require_agreement(flight, runtime)
    decodes_on_gpu(config.data, runtime.device.type)  # refuses a GPU that is not there
    order = order_of(index, config.data, config.train.global_batch, config.seed)
    length = length_of(config, order)
    stepper = _stepper(config, flight, runtime)
    if runtime.is_main:
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text(dump(config))
    progress.config = resolved(config)
    stop = StopRequest(runtime)
    with open_journal(
        config,
        run,
        is_main=runtime.is_main,
        wandb_id=progress.wandb_id,
        console=Console(progress.step, length.total) if runtime.is_main else None,
        resume_step=progress.step,
    ) as journal:
        progress.wandb_id = journal.wandb_id
        if flight.checkpoint:
            journal.tell(f"going on after step {progress.step} of {length.total}, from {flight.checkpoint}")
        for change in flight.changes:
            journal.tell(f"changed since then: {change}")
        for doubt in flight.doubts:
            journal.tell(f"warning: {doubt}")
        batches = train_batches(
            index,
            config.data,
            order,
            config.seed,
            place=runtime,
            device=runtime.device,
            micro_steps=config.train.split(runtime.world)[1],
            first_step=progress.step,
            last_step=length.total,
            run=run,
            too_many_bad=stop.refuse,
        )
        _loop(config, flight, length, stepper, batches, runtime, journal, stop)
        stepper.close()
    stop.close()


@contextmanager
def alone_in(flight: Flight, runtime: Runtime) -> Iterator[None]:
    """Hold the run folder against a second job, which would overwrite its checkpoints. UserError if one is on, or was
    since the flight was prepared. Called by all ranks together."""
    run, refusal = flight.run, [""]
    with ExitStack() as opened:
        if runtime.is_main:
            run.mkdir(parents=True, exist_ok=True)
            if not lock(opened.enter_context(open(run / ".lock", "w")), wait=False):
                refusal = [f"another job trains in {run} now. Wait for it, stop it, or give another run=..."]
            elif checkpoint.latest(run) != flight.checkpoint:
                refusal = [f"another job has trained in {run} meanwhile. Start the same command again"]
            else:
                begun = quarantine.begin(run, flight.index)
                flight.progress.quarantine_fingerprint = begun.fingerprint
                scored = quarantine.left_out(flight.validation).lines() if flight.validation else []
                for line in begun.lines() + scored:
                    print(line, flush=True)
        if runtime.control is not None:
            dist.broadcast_object_list(refusal, src=0, group=runtime.control)  # all ranks end with the same message
        if refusal[0]:
            raise UserError(refusal[0])
        yield


def _require_agreement(flight: Flight, runtime: Runtime) -> None:
    """Raises UserError unless all ranks go on from the same step with the same data."""
    mine = (flight.progress.step, flight.index.fingerprint, flight.validation and flight.validation.fingerprint)
    facts: list = [None] * runtime.world
    dist.all_gather_object(facts, mine, group=runtime.control)
    other = next((rank for rank, theirs in enumerate(facts) if theirs != facts[0]), None)
    if other is not None:
        raise UserError(
            f"rank 0 goes on after step {facts[0][0]} with data {facts[0][1:]}, rank {other} after step "
            f"{facts[other][0]} with {facts[other][1:]}. All machines must see the same run folder ({flight.run}) "
            f"and the same packed sets"
        )


def _loop(
    config: Config,
    flight: Flight,
    length: Length,
    stepper: engine.Stepper,
    batches: Iterator[Batch],
    runtime: Runtime,
    journal: Journal,
    stop: StopRequest,
) -> None:
    progress = flight.progress
    meter = Meter(config, runtime, stepper, journal)
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
        meter.add(take_step(stepper, batches, step, stop, meter.data_wait))

        done = step + 1
        progress.step, progress.epoch = done, done / length.epoch
        progress.samples_seen += config.train.global_batch
        journal.advance()
        last = done == length.total
        stopping = stop.poll() and not last
        evaluating = done % length.evaluation == 0 or last
        saving = done % length.checkpoint == 0 or done % length.epoch == 0 or last or stopping
        if done % config.train.log_every_steps == 0 or evaluating or saving:
            meter.log(done, progress.epoch, lr)  # refuses a diverged loss before it is saved and good checkpoints go
        if flight.validation is not None and evaluating:
            _evaluate(config, stepper, flight.validation, runtime, progress, journal)
        if saving or progress.best_step == done:
            folder = checkpoint.save(stepper.engine, progress, flight.run, runtime, config.train.keep_checkpoints)
        if stopping:
            if stop.refusal:
                raise UserError(f"{stop.refusal}. {folder} is written; the same command goes on from it")
            journal.tell(f"stopped after step {done}; {folder} is written. The same command goes on from it")
            return
        meter.skip_time()
    best = f", the best of step {progress.best_step} (--best)" if progress.best_step else ""
    where = [] if flight.validation else ["--data", "PACKED_SET"]
    journal.tell(f"done: {flight.run}, the last checkpoint of step {length.total}{best}")
    journal.tell(f"score it with: {hints.command('launch.evaluate', flight.run, *where)}")


def take_step(
    stepper: engine.Stepper, batches: Iterator[Batch], step: int, stop: StopRequest, data_wait: Stopwatch
) -> torch.Tensor:
    """One optimizer step. Returns this rank's counts (see metrics.count)."""
    counts = torch.zeros(4, dtype=torch.float64, device=stepper.runtime.device)
    for micro_step in range(stepper.engine.gradient_accumulation_steps()):
        with stop.waiting(), data_wait:
            batch = next(batches)
        logits = stepper.micro_step(batch.images, batch.labels, step, micro_step)
        counts += count(logits.log_softmax(dim=1), batch.labels)
    return counts


def _evaluate(
    config: Config,
    stepper: engine.Stepper,
    validation: Index,
    runtime: Runtime,
    progress: Progress,
    journal: Journal,
) -> None:
    model = stepper.engine.module
    for buffer in model.buffers():  # batch normalisation's statistics differ by rank; a checkpoint holds rank 0's
        dist.broadcast(buffer, 0)
    model.eval()
    with torch.compiler.set_stance("force_eager"):  # train.compile is for training: other sizes would compile anew
        scores = evaluate(
            [Contender(model, config.data, config.evaluation.corners)],
            validation,
            config.data,
            config.evaluation.views,
            runtime=runtime,
            micro_batch=config.evaluation.micro_batch,
            bf16=engine.uses_bf16(config, runtime.on_gpu),
        ).scores()
    model.train()
    error = scores[config.evaluation.views[0]].top1_error
    progress.errors.append(error)
    if progress.best_error is None or error < progress.best_error:
        progress.best_error, progress.best_step = error, progress.step
    point = {keys.STEP: progress.step, keys.EPOCH: progress.epoch}
    for view, result in scores.items():
        point |= keys.eval_point(view, result)
    journal.log(point)


def _stepper(config: Config, flight: Flight, runtime: Runtime) -> engine.Stepper:
    """The engine with the weights that the run stands at: fresh ones, the config's, fresh ones upon a shallower
    network's, or the checkpoint's."""
    seed_everything(config.seed)
    classes = num_classes(config, flight.progress)
    if flight.checkpoint:
        model = network.from_checkpoint(flight.checkpoint, config.model, config.data, classes)
    else:
        model = network.build(config.model, config.data, classes)
        if config.model.weights:
            network.start_from(model, config.model)
        if config.model.grow_from:
            network.grow(model, config.model)
    require_views(model.eval(), config.data, config.evaluation.views if flight.validation else ())
    model.to(runtime.device).train()
    built = engine.build(model, optim.build(model, config.optimizer), config, runtime)
    if flight.checkpoint:
        try:
            optimizer_state.restore(built, checkpoint.read_optimizer(flight.checkpoint))
        except ValueError as error:
            raise UserError(f"{flight.checkpoint}: {error}") from None
    return engine.Stepper(built, config, runtime)
