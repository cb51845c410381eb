"""Score a classifier, or the average of several, on a packed set.

    python -m launch.evaluate runs/vgg16                                # centre and ten crops of its validation set
    python -m launch.evaluate runs/vgg16 --views dense@256-384-512,150+dense --best
    python -m launch.evaluate runs/a runs/b runs/c --views ten             # an ensemble: softmax outputs are averaged
    python -m launch.evaluate torchvision:vgg16 --data data/imagenet/validation
    python -m launch.evaluate torchvision:alexnet=alexnet.pth --data data/photos/test data.resize_px=288
    python -m launch.evaluate package.module:factory=weights.safetensors --data data/photos/test data.std=[0.5,0.5,0.5]

A SOURCE is a run folder, a checkpoint's folder, a file that launch.export wrote, torchvision:NAME (published weights),
or NETWORK=FILE. Settings of the data section may follow: resize_px (test scale), crop_px, interpolation, antialias,
mean, std; torchvision's weights bring their own. Prints a table, writes evaluation.json, and logs to Weights & Biases.
One process, or several under torchrun, give the same counts.

views: centre, five, ten, 50 (a 5 x 5 grid, mirrored), 150 (50 at three scales), dense (the network as a convolution
over the whole image); @ names scales, dense@384 or dense@256-384-512; + averages views, 150+dense.
"""

import argparse
import difflib
import hashlib
import json
import os
import re
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from launch.command import Parser, run
from launch.progress import meter
from pipeline.errors import UserError


def main(argv: list[str] | None = None) -> int:
    words = _parser().parse_intermixed_args(argv)  # settings may stand anywhere
    sources, changes = _sorted(words.sources, words.views)
    changes = [*_flags(words), *changes]
    from pipeline.evaluation import predictions

    if words.out:
        if words.out.suffix != ".json":
            raise UserError(f"--out {words.out}: give a name that ends in .json")
        predictions.require_file("--out", words.out)
    if words.save_predictions:
        predictions.check(words.save_predictions)
    _check_words(words.views.split(","), changes)
    names = _names(words.classes)

    from pipeline.data.index import load
    from pipeline.data.storage.mirror import open_set
    from pipeline.data.storage.remote import is_remote

    # Before networks are read and fetched; a remote set needs to know the cache.
    index = load(words.data) if words.data and not is_remote(words.data) else None

    from pipeline.evaluation import classes, classifier

    found = [classifier.read(source, changes, words.best) for source in sources]
    config = found[0].config
    for one in found:
        if names and len(names) != one.num_outputs:
            raise UserError(f"--classes {words.classes} has {len(names)} names, {one.source} {one.num_outputs} outputs")
    data = words.data or config.data.validation
    if data is None:
        trained = f"{sources[0]} was trained without data.validation" if found[0].run else "no set to score on"
        raise UserError(f"{trained}. Name a packed set: --data FOLDER")
    index = index or open_set(data, config.data.cache.expanduser())
    outputs = [classes.match(index.classes, names or one.classes, one.num_outputs, one.source) for one in found]
    shown, *others = (classes.shown_names(names or one.classes, one.num_outputs) for one in found)
    for one, its, its_names in zip(found[1:], outputs[1:], others, strict=True):
        known = one.classes and found[0].classes and not names
        if its.tolist() != outputs[0].tolist() or len(its_names) != len(shown) or (known and its_names != shown):
            raise UserError(f"{one.source} and {found[0].source} have other classes, so they cannot be averaged")
    home, other_set = _home(found), _other_set(found, data, index)
    out = words.out or home / (f"evaluation-{other_set}.json" if other_set else "evaluation.json")
    if words.out and home.exists() and not os.access(home, os.W_OK):
        home = out.parent  # a run that one may only read

    def finish(outcomes, images_per_s: float, how: dict) -> None:
        from pipeline.evaluation import report

        if not outcomes.scored.any():
            raise UserError(f"{data}: not one image could be decoded, so there is nothing to count")
        result = report.Evaluated(found, data, index, outputs[0], shown, outcomes, images_per_s, how)
        print(report.table(result) + "\n")  # first: a run that one may only read is scored all the same
        if words.save_predictions:
            predictions.write(outcomes, index, shown, words.save_predictions)
            print(f"  predictions {words.save_predictions}")
        out.parent.mkdir(parents=True, exist_ok=True)
        replaced = ", in place of the one before (--out keeps both)" if out.exists() else ""
        report.write(result, out)
        print(f"  written     {out}{replaced}")
        _show(result, out.with_suffix(".png"), home, other_set)

    _score(found, outputs[0], index, finish)
    return 0


def _score(found, outputs, index, finish) -> None:
    """Score, and hand the outcomes to `finish` on the first rank."""
    import torch

    from pipeline import agreement
    from pipeline.data import quarantine
    from pipeline.engine import uses_bf16
    from pipeline.evaluation.evaluate import ScoredModel, evaluate
    from pipeline.runtime import start
    from pipeline.versions import versions
    from pipeline.whereabouts import EVALUATE, Whereabouts

    config = found[0].config
    with start() as runtime:
        agreement.require(agreement.of_scoring(found, index, runtime), runtime)
        here = Whereabouts(found[0].run or Path(), stall_s=0)  # a batch of many crops may take long on a CPU
        bf16 = uses_bf16(config, runtime.on_gpu)
        scored_models = []
        for one in found:
            one.network.to(runtime.device).to(memory_format=torch.channels_last).eval()
            scored_models.append(ScoredModel(one.network, one.config.data, one.config.evaluation.corners))
        left_out = quarantine.left_out(index)  # before this evaluation adds to it
        for line in left_out.lines() if runtime.is_main else ():
            print(line, file=sys.stderr)
        begin = time.perf_counter()
        bar = meter(index.num_samples, 0, "images", "scoring") if runtime.is_main else nullcontext(lambda done: None)
        with bar as progress:

            def tell(done: int) -> None:
                here.note(EVALUATE, found[0].step)
                progress(done)

            here.note(EVALUATE, found[0].step)
            outcomes = evaluate(
                scored_models,
                index,
                config.data,
                config.evaluation.views,
                labels=outputs[index.label],
                runtime=runtime,
                micro_batch=config.evaluation.micro_batch,
                bf16=bf16,
                progress=tell,
            )
        images_per_s = index.num_samples / (time.perf_counter() - begin)
        if not runtime.is_main:
            return
        how = {
            "precision": "bf16" if bf16 else "fp32",
            "device": torch.cuda.get_device_name(runtime.device) if runtime.on_gpu else "cpu",
            "processes": runtime.world,
            "versions": versions(),
            "quarantine_fingerprint": left_out.fingerprint,
        }
        finish(outcomes, images_per_s, how)


def _show(result, picture_file: Path, home: Path, other_set: str | None) -> None:
    """The picture of mistakes, and all of it to Weights & Biases."""
    from pipeline.evaluation import figure, report
    from pipeline.tracking.journal import open_journal
    from pipeline.tracking.points import EPOCH, STEP, eval_point

    one, config, outcomes = result.classifiers[0], result.classifiers[0].config, result.outcomes
    scores = outcomes.scores()
    view = min(scores, key=lambda name: scores[name].top1_error)
    ids = figure.worst_mistakes(outcomes, view)
    picture_file.unlink(missing_ok=True)  # of an evaluation before
    source = " + ".join(each.source for each in result.classifiers)
    picture, unknown = figure.draw(outcomes, view, ids, result.index, config.data, result.names, source)
    if picture:
        picture.save(picture_file)
        print(f"  mistakes    {picture_file} (the most confident ones, view {view})")
    if unknown:
        print(
            f"              no font here has {''.join(unknown[:20])}: install one (Noto's have most) and run this again"
        )
    point = {STEP: one.step, EPOCH: one.epoch}
    for name, score in scores.items():
        point |= eval_point(name, score.as_dict(), other_set)
    home.mkdir(parents=True, exist_ok=True)
    with open_journal(config, home, is_main=True, wandb_id=one.wandb_id if home == one.run else None) as journal:
        journal.log(point)
        journal.log_media(report.presentation(result, other_set, picture, view))
    if journal.wandb_folder:
        print(f"  W&B         {journal.wandb_folder}")


def _home(found) -> Path:
    """The folder that results belong to: the run's own, or one named after what was scored."""
    one = found[0]
    if len(found) > 1:
        all_of_them = "\n".join(each.weights_sha256 for each in found)
        return Path("runs", f"ensemble-{hashlib.sha256(all_of_them.encode()).hexdigest()[:8]}")
    if one.run is not None:
        return one.run
    name, _, file = one.source.partition("=")
    what = re.sub(r"[^\w.-]+", "-", f"{name}-{Path(file).stem}" if file else Path(name).stem)
    return Path("runs", f"{what}-{one.weights_sha256[:8]}")  # which no run is called


def _other_set(found, data: str, index) -> str | None:
    """What the set is called beside a run's own; None for the validation set that the run was trained with."""
    own = found[0].config.data.validation if len(found) == 1 and found[0].run else None
    if own is not None and _same(own, data):
        return None
    name = re.sub(r"[^\w.-]+", "-", data.rstrip("/").rpartition("/")[2])
    return f"{name}-{index.fingerprint[:8]}"  # two sets may lie in folders of one name


def _same(own: str, data: str) -> bool:
    return own.rstrip("/") == data.rstrip("/") or Path(own).resolve() == Path(data).resolve()


def _sorted(words: list[str], views: str) -> tuple[list[str], list[str]]:
    """Sources, and key=value settings."""
    if loose := [word for word in words if _is_view(word) and not Path(word).exists()]:
        raise UserError(
            f"views are given with commas between them: --views {','.join(one.strip(',') for one in [views, *loose])}"
        )
    changes = [word for word in words if _is_setting(word)]
    sources = [word for word in words if word not in changes]
    if not sources:
        raise UserError("no SOURCE given: name a run folder, an exported file, or a network. See --help")
    return sources, changes


def _is_view(word: str) -> bool:
    from pipeline.views import parse

    try:
        return bool(parse(word.strip(",")))
    except ValueError:
        return False


def _is_setting(word: str) -> bool:
    """Also one with a mistake in its key; a network from a package, package.module:factory=FILE, has a colon."""
    from pipeline.config import Config

    section, dot, _ = word.partition("=")[0].partition(".")
    is_one = re.match(r"[a-z_]+(\.[a-z0-9_]+)*=", word) and (dot or section in Config.model_fields)
    return bool(is_one) and not Path(word).exists()


def _check_words(views: list[str], changes: list[str]) -> None:
    """Refuse what needs no network to be refused. Whether values make sense together is seen with the network's own."""
    from pipeline.config_io import keys
    from pipeline.views import parse

    for view in views:
        try:
            parse(view.strip())
        except ValueError as error:
            raise UserError(f"--views: {view!r} {error}") from None
    for word in changes:
        key = word.partition("=")[0]
        if key not in keys():
            near = difflib.get_close_matches(key, keys(), n=1)
            raise UserError(f"{word}: {key} is no known key." + (f" Did you mean {near[0]}?" if near else ""))


def _flags(words: argparse.Namespace) -> list[str]:
    views = json.dumps([view.strip() for view in words.views.split(",")])
    flags = {"evaluation.micro_batch": words.micro_batch, "data.max_bad_images": words.max_bad_images}
    return [f"evaluation.views={views}", *(f"{key}={value}" for key, value in flags.items() if value is not None)]


def _names(file: Path | None) -> tuple[str, ...] | None:
    if file is None:
        return None
    try:
        return tuple(line.strip() for line in file.read_text().rstrip().split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {file} cannot be read ({error})") from None


def _parser() -> Parser:
    parser = Parser(prog="python -m launch.evaluate", description=__doc__)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="see above; settings, as data.resize_px=384, too")
    parser.add_argument("--views", default="centre,ten", help="see above (default: %(default)s)")
    parser.add_argument("--data", help="packed set, folder or URL, to score on (default: the run's data.validation)")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="names of the network's outputs, one a line")
    parser.add_argument(
        "--save-predictions", type=Path, metavar="FILE", help="write what was said of each image: .csv or .parquet"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="where the result goes (default: the run's folder)"
    )
    parser.add_argument("--micro-batch", type=int, help="images per process at once (default: evaluation.micro_batch)")
    parser.add_argument(
        "--max-bad-images",
        type=int,
        help="images that may be left out, at most (default: the run's data.max_bad_images)",
    )
    parser.add_argument("--best", action="store_true", help="score the run's best checkpoint instead of its last one")
    return parser


if __name__ == "__main__":
    sys.exit(run(main, as_rank=True))
