"""Score a checkpoint: python -m launch.evaluate RUN_OR_CHECKPOINT [--views centre,five,ten] [--data SHARDS]

Prints a table, writes evaluation.json (evaluation-NAME.json for a set other than the run's own), and logs to the run's
W&B run. One process, or several under torchrun, give the same counts.
"""

import argparse
import time
from pathlib import Path

from launch.command import run_command
from pipeline.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m launch.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a run folder (its last checkpoint), or a checkpoint's folder")
    parser.add_argument("--views", default="centre,ten", help="of centre, five, ten (default: %(default)s)")
    parser.add_argument("--data", help="packed set, folder or URL, to score on (default: the run's data.validation)")
    parser.add_argument("--micro-batch", type=int, help="images per process at once (default: evaluation.micro_batch)")
    parser.add_argument(
        "--max-bad-images",
        type=int,
        help="images that may be left out, at most (default: the run's data.max_bad_images)",
    )
    parser.add_argument("--best", action="store_true", help="score the run's best checkpoint instead of its last one")
    words = parser.parse_args()

    from pipeline import checkpoint
    from pipeline.config import parse
    from pipeline.data.index import load as load_index
    from pipeline.preflight import num_classes

    folder = checkpoint.find(words.source, "best" if words.best else "latest")
    progress = checkpoint.read(folder)
    changes: dict = {"views": [view.strip() for view in words.views.split(",")]}
    if words.micro_batch is not None:
        changes["micro_batch"] = words.micro_batch
    tree = progress.config | {"evaluation": progress.config["evaluation"] | changes}
    if words.max_bad_images is not None:
        tree["data"] = tree["data"] | {"max_bad_images": words.max_bad_images}
    config = parse(tree, f"{folder} with --views {words.views}")
    data = words.data or config.data.validation
    if data is None:
        raise UserError(f"{words.source} was trained without data.validation. Name a packed set: --data FOLDER")
    index = load_index(data, cache=config.data.cache.expanduser())
    if list(index.classes) != progress.classes:
        raise UserError(
            f"{folder} knows {len(progress.classes)} classes ({', '.join(progress.classes[:3])}, ...), but {data} has "
            f"{len(index.classes)} ({', '.join(index.classes[:3])}, ...). Pack it with --classes of the training set"
        )
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    _score(config, folder, run, progress, index, data, num_classes(config, progress))


def _score(config, folder, run, progress, index, data, classes) -> None:
    import torch

    from pipeline import network, report
    from pipeline.console import Bar
    from pipeline.engine import uses_bf16
    from pipeline.evaluate import evaluate
    from pipeline.journal import EPOCH, STEP, eval_point, open_journal
    from pipeline.runtime import start
    from pipeline.versions import versions

    with start() as runtime:
        model = network.from_checkpoint(folder, config.model, config.data, classes)
        model.to(runtime.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        begin = time.perf_counter()
        with Bar(index.num_samples, shown=runtime.is_main) as bar:
            scores = evaluate(
                model,
                index,
                config.data,
                config.evaluation.views,
                runtime=runtime,
                micro_batch=config.evaluation.micro_batch,
                bf16=uses_bf16(config, runtime.on_gpu),
                advance=bar.advance,
            )
        images_per_s = index.num_samples / (time.perf_counter() - begin)
        if not runtime.is_main:
            return
        own = config.data.validation
        other_set = None if own is None or _same(own, data) else Path(data).name
        written = run / (f"evaluation-{other_set}.json" if other_set else "evaluation.json")
        result = report.Evaluated(
            folder, progress.step, data, index.num_samples, index.fingerprint, scores, images_per_s, versions()
        )
        print(report.table(result))  # before anything is written: a run that one may only read is scored all the same
        report.write(result, written)
        point = {STEP: progress.step, EPOCH: progress.epoch}
        for view, score in scores.items():
            point |= eval_point(view, score, other_set)
        with open_journal(config, run, is_main=True, wandb_id=progress.wandb_id) as journal:
            journal.log(point)
        print(f"\n  run         {run}\n  checkpoint  {folder}\n  written     {written}")
        if journal.wandb_folder:
            print(f"  W&B         {journal.wandb_folder}")


def _same(own: str, data: str) -> bool:
    return own.rstrip("/") == data.rstrip("/") or Path(own).resolve() == Path(data).resolve()


if __name__ == "__main__":
    run_command(main)
