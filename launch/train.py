"""Train: python -m launch.train CONFIG.yaml [key=value ...], alone or under torchrun (launch/single_node.sh does that).

The same command goes on after the last checkpoint of the run folder. --check looks at config, data and checkpoint, says
what would happen, and starts nothing. Exit codes: 0 done; 2 a mistake, told in one message; 128 + N stopped by signal
N, after writing a checkpoint (130 by Ctrl-C, 138 by SIGUSR1, 143 by SIGTERM).
"""

import sys

from launch.command import Parser, Stopped, run
from pipeline.config_io import describe, load
from pipeline.errors import UserError


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m launch.train",
        description=__doc__,
        epilog="keys, with their defaults:\n" + describe(),
    )
    parser.add_argument(
        "config", help="a YAML file, for example configs/alexnet.yaml: the package's own unless there is one here"
    )
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

    from pipeline.run_plan import prepare, try_start

    world = words.processes or rank_info().world
    plan = prepare(config, world, verify=rank_info().local_rank == 0)
    if words.check:
        from pipeline.run_report import checked

        try_start(config, plan)
        for line in checked(config, plan, world):
            print(line)
        return 0

    from pipeline import agreement
    from pipeline.run_lock import lock_run
    from pipeline.run_report import finished
    from pipeline.train import length_of, order_of, train
    from pipeline.whereabouts import START, Whereabouts

    here = Whereabouts(plan.run, 60 * config.train.stall_minutes)
    here.note(START, plan.progress.step)
    with start() as runtime:
        hosts = agreement.require(agreement.of_training(config, plan, runtime), runtime)
        total = length_of(config, order_of(plan.index, config.data, config.train.global_batch, config.seed)).total
        if plan.progress.step >= total:
            if runtime.is_main:
                print(finished(plan, total))
            return 0
        if runtime.is_main and runtime.world > runtime.local_world:
            print(f"machines: {hosts}")  # speed/slowest_rank is one of these ranks
        with lock_run(plan, runtime):
            stopped_by = train(config, plan, runtime, here)
    if stopped_by:
        raise Stopped(stopped_by)
    return 0


if __name__ == "__main__":
    sys.exit(run(main, as_rank=True))
