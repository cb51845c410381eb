"""Train: python -m launch.train CONFIG.yaml [key=value ...], alone or under torchrun (launch/single_node.sh does that).

The same command goes on after the last checkpoint of the run folder. --check looks at config, data and checkpoint, says
what would happen, and starts nothing. Exit codes: 0 done; 2 a mistake, told in one message; 128 + N stopped by signal
N, after writing a checkpoint (130 by Ctrl-C, 138 by SIGUSR1, 143 by SIGTERM).
"""

import sys
from typing import TYPE_CHECKING

from launch.command import Parser, Stopped, run
from pipeline import hints
from pipeline.config import Config
from pipeline.config_io import describe, load
from pipeline.errors import UserError
from pipeline.wording import counted

if TYPE_CHECKING:
    from pipeline.run_plan import RunPlan


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m launch.train",
        description=__doc__,
        epilog="keys, with their defaults:\n" + describe(),
    )
    parser.add_argument("config", help="a YAML file, for example configs/alexnet.yaml")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="changes to it, for example optimizer.lr=0.02"
    )
    parser.add_argument("--check", action="store_true", help="only check everything; exit code 2 if something is wrong")
    parser.add_argument("--processes", type=int, default=None, help="with --check: how many processes will be started")
    words = parser.parse_intermixed_args(argv)
    if words.processes is not None and words.processes < 1:
        raise UserError(f"--processes {words.processes} must be at least 1")
    from pipeline.runtime import rank_info, start

    config = load(words.config, words.overrides, tell=print if rank_info().rank == 0 else lambda line: None)

    from pipeline.run_plan import prepare

    world = words.processes or rank_info().world
    plan = prepare(config, world, verify=rank_info().local_rank == 0)
    if words.check:
        from pipeline.data.plausible import doubts

        _try(config, plan)
        micro_batch, micro_steps = config.train.split(world)
        step = plan.progress.step
        for doubt in doubts(plan.index, *([plan.validation] if plan.validation else [])):
            print(f"warning: {doubt}")
        print(
            f"{plan.run}: {config.model.name} on {counted(plan.index.num_samples, 'image')} of "
            f"{counted(len(plan.index.classes), 'class', 'classes')}, "
            f"{world} x {micro_batch} images x {micro_steps} a step, "
            + (f"going on after step {step}" if step else "from the start")
        )
        for change in plan.changes:
            print(f"changed since then: {change}")
        return 0

    from pipeline import agreement
    from pipeline.run_lock import lock_run
    from pipeline.train import length_of, order_of, train
    from pipeline.whereabouts import START, Whereabouts

    here = Whereabouts(plan.run, 60 * config.train.stall_minutes)
    here.note(START, plan.progress.step)
    with start() as runtime:
        hosts = agreement.require(agreement.of_training(config, plan, runtime), runtime)
        total = length_of(config, order_of(plan.index, config.data, config.train.global_batch, config.seed)).total
        if plan.progress.step >= total:
            if runtime.is_main:
                print(_finished(plan, total))
            return 0
        if runtime.is_main and runtime.world > runtime.local_world:
            print(f"machines: {hosts}")  # speed/slowest_rank is one of these ranks
        with lock_run(plan, runtime):
            stopped_by = train(config, plan, runtime, here)
    if stopped_by:
        raise Stopped(stopped_by)
    return 0


def _finished(plan: "RunPlan", total: int) -> str:
    other = [] if plan.validation else ["--data", "PACKED_SET"]
    return (
        f"{plan.run} is finished: {plan.progress.step} steps are done, {total} were asked for. Train longer with "
        f"train.epochs=..., anew with run=..., or score it with: {hints.command('launch.evaluate', plan.run, *other)}"
    )


def _try(config: Config, plan: "RunPlan") -> None:
    """What only torch can tell, and only some configs ask: a GPU to decode on, weights that fit."""
    if config.data.decoder == "gpu":
        from pipeline.data.loader import decodes_on_gpu
        from pipeline.runtime import has_gpu

        decodes_on_gpu(config.data, "cuda" if has_gpu() else "cpu")
    if not plan.checkpoint:
        from pipeline import network
        from pipeline.run_plan import num_classes

        network.try_start(config.model, config.data, num_classes(config, plan.progress))


if __name__ == "__main__":
    sys.exit(run(main, as_rank=True))
