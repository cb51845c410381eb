"""The batches of a step are a function of data set, config, seed and step: of nothing else."""

import hashlib
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from pipeline.config import Data
from pipeline.data.fields import Labels
from pipeline.data.index import load
from pipeline.data.loader import decodes_on_gpu, eval_batches, order_of, train_batches, train_requests
from pipeline.data.order import Order, rank_part
from pipeline.data.output import Output
from pipeline.data.source import Source
from pipeline.errors import UserError
from pipeline.runtime import RankInfo
from tests.conftest import write_set

CPU = torch.device("cpu")
RECIPES = {
    "alexnet": {"recipe": "alexnet"},
    "vgg": {"recipe": "vgg", "scale_px": (36, 64)},
    "inception windowed": {"recipe": "inception", "shuffle": "windowed", "window_shards": 2, "prefetch": 3},
}


def settings(**options) -> Data:
    return Data(crop_px=32, resize_px=36, threads=1, **options)


def test_shuffle_chooses_the_order(photos):
    index = load(photos)
    everywhere, locally = (
        order_of(index, settings(**words), 10, seed=7) for words in ({}, RECIPES["inception windowed"])
    )
    assert everywhere.batch(3).tolist() == Order(50, 10, 7).batch(3).tolist()
    sizes = np.array([len(shard) for shard in np.split(index.shard, np.flatnonzero(np.diff(index.shard)) + 1)])
    assert locally.batch(3).tolist() == Order(50, 10, 7, sizes, 2).batch(3).tolist()
    assert everywhere.batch(3).tolist() != locally.batch(3).tolist()


def steps_of(folder, data: Data, first: int, last: int, world: int = 1, micro_steps: int = 1, run=None):
    """{step: (ids, labels, SHA-256 of each image)} of whole global batches of 12, gathered over simulated ranks."""
    index = load(folder)
    order = order_of(index, data, 12, seed=7)
    ranks = [
        train_batches(
            index,
            data,
            order,
            rank_info=RankInfo(rank, world, rank, world),
            device=CPU,
            micro_steps=micro_steps,
            steps=range(first, last),
            run=run,
        )
        for rank in range(world)
    ]
    seen = {}
    for step in range(first, last):
        batches = [next(rank) for rank in ranks for _ in range(micro_steps)]
        ids = np.concatenate([batch.ids for batch in batches])
        labels = torch.cat([torch.where(batch.valid, batch.targets, -1) for batch in batches])
        sums = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for batch in batches for image in batch.images]
        seen[step] = (ids.tolist(), labels.tolist(), sums)
    assert all(next(rank, None) is None for rank in ranks)
    return seen


@pytest.fixture(scope="module")
def sets(photos, tmp_path_factory):
    """The same 50 photos in each storage form."""
    return {"encoded": photos, "raw": write_set(tmp_path_factory.mktemp("raw") / "train", 50, raw=True)}


@pytest.mark.parametrize("form", ["encoded", "raw"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_any_number_of_ranks_sees_the_same_ids_labels_and_pixels(sets, form, recipe):
    photos, data = sets[form], settings(**RECIPES[recipe])
    alone = steps_of(photos, data, 0, 20)
    assert steps_of(photos, data, 0, 20, world=2) == alone
    assert steps_of(photos, data, 0, 20, world=3) == alone
    assert steps_of(photos, data, 0, 20, world=2, micro_steps=3) == alone
    assert len({tuple(ids) for ids, _, _ in alone.values()}) == 20


@st.composite
def schedules(draw) -> list[tuple[int, int, int]]:
    """(steps, world, micro_steps) of each leg of a run that is stopped and goes on elsewhere."""
    legs = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 8)), min_size=1, max_size=5))
    share = [840 // world for _, world in legs]  # 840 divides among 1 to 8 ranks
    return [
        (steps, world, draw(st.sampled_from(_divisors(rows)))) for (steps, world), rows in zip(legs, share, strict=True)
    ]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, 13) if number % n == 0]


@trials(max_examples=30)
@given(
    form=st.sampled_from(["encoded", "raw"]),
    options=st.fixed_dictionaries(
        {
            "recipe": st.sampled_from(["alexnet", "vgg", "inception"]),
            "shuffle": st.sampled_from(["global", "windowed"]),
            "window_shards": st.integers(1, 4),
            "pca_std": st.sampled_from([0.0, 0.1]),
        }
    ),
    seed=st.integers(0, 2**31 - 1),
    legs=schedules(),
)
def test_any_legs_over_any_worlds_ask_for_what_one_rank_would(big_sets, form, options, seed, legs):
    """Ids, labels, bytes and windows of every step, for every storage form, order and recipe."""
    index, data = load(big_sets[form]), settings(scale_px=(36, 64), **options)
    order = order_of(index, data, 840, seed)
    start = 0
    for num_steps, world, micro_steps in legs:
        steps = range(start, start + num_steps)
        ranks = [asked(index, data, order, steps, rank, world, micro_steps) for rank in range(world)]
        assert np.array_equal(np.concatenate(ranks, axis=1), asked(index, data, order, steps, 0, 1, 1))
        start += num_steps


@given(shuffle=st.sampled_from(["global", "windowed"]), epoch=st.integers(0, 50), batch=st.integers(1, 50))
def test_every_id_once_an_epoch_less_the_tail(photos, shuffle, epoch, batch):
    index, data = load(photos), settings(shuffle=shuffle, window_shards=2)
    order = order_of(index, data, batch, seed=3)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    ids = asked(index, data, order, steps, 0, 1, 1)[:, :, 0].ravel()
    assert len(ids) == len(set(ids.tolist())) == 50 // batch * batch


def asked(index, data, order, steps, rank, world, micro_steps) -> np.ndarray:
    """What a rank asks its decoder for: id, label, window, flip, checksum of the bytes, colour: [steps, rows, 11]."""
    source = Source(index, data, steps, lambda step: rank_part(order.batch(step), rank, world), order.batch)
    rows = []
    for request in train_requests(source, data, order, micro_steps, Labels()):
        seen = request.windows
        sums = [zlib.crc32(image) for image in request.images]
        labels = np.where(request.valid, request.targets.result(), -1)
        columns = [request.ids, labels, seen.top, seen.left, seen.height, seen.width, seen.flip, sums]
        rows.append(np.column_stack([*columns, seen.colour.astype(np.float64)]))
    return np.concatenate(rows).reshape(len(steps), -1, 11)


@pytest.fixture(scope="module")
def big_sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("big")
    return {
        form: write_set(root / form, 900, num_shards=7, size_px=(8, 20), raw=form == "raw")
        for form in ("encoded", "raw")
    }


def test_stopping_at_step_7_and_going_on_with_other_ranks_changes_nothing(photos):
    data = settings()
    alone = steps_of(photos, data, 0, 20)
    for before, after in ((1, 3), (3, 2), (2, 1)):
        assert steps_of(photos, data, 0, 7, world=before) | steps_of(photos, data, 7, 20, world=after) == alone


def test_threads_and_prefetch_change_nothing(photos):
    other = Data(crop_px=32, resize_px=36, threads=3, prefetch=1)
    assert steps_of(photos, settings(), 0, 6) == steps_of(photos, other, 0, 6)


def test_labels_belong_to_their_images(photos):
    index = load(photos)
    for ids, labels, _ in steps_of(photos, settings(), 0, 4).values():
        assert labels == index.label[ids].tolist()


def test_another_seed_or_epoch_sees_other_windows(photos):
    index, data = load(photos), settings()

    def images(seed: int, step: int) -> dict[int, bytes]:
        order = order_of(index, data, 50, seed)
        rank_info = RankInfo(0, 1, 0, 1)
        batches = train_batches(
            index, data, order, rank_info=rank_info, device=CPU, micro_steps=1, steps=range(step, step + 1)
        )
        batch = next(batches)
        return {int(sample): image.numpy().tobytes() for sample, image in zip(batch.ids, batch.images, strict=True)}

    first, epoch, seed = images(0, 0), images(0, 1), images(1, 0)
    assert sum(first[sample] == epoch[sample] for sample in first) < 5
    assert sum(first[sample] == seed[sample] for sample in first) < 5


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 5), (2, 5), (3, 4), (3, 64), (1, 23), (8, 64)])
def test_evaluation_sees_each_id_once_and_all_ranks_step_alike(held_out, world, micro_batch):
    index, data = load(held_out), settings()
    ranks = [
        list(
            eval_batches(
                index,
                data,
                [Output(36), Output(50)],
                rank_info=RankInfo(rank, world, rank, world),
                device=CPU,
                micro_batch=micro_batch,
            )
        )
        for rank in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    ids = np.concatenate([batch.ids for batches in ranks for batch in batches])
    valid = torch.cat([batch.valid for batches in ranks for batch in batches]).numpy()
    assert sorted(ids[ids >= 0].tolist()) == list(range(23))
    assert (valid == (ids >= 0)).all()
    for batch in (batch for batches in ranks for batch in batches):
        for px, images in zip((36, 50), batch.images, strict=True):
            assert [min(image.shape[:2]) for image in images] == [px] * len(batch.ids)


def test_evaluation_of_some_samples_sees_them_in_their_order(held_out):
    index, chosen = load(held_out), np.array([20, 3, 7])
    (batch,) = eval_batches(
        index,
        settings(),
        [Output(36)],
        rank_info=RankInfo(0, 1, 0, 1),
        device=CPU,
        micro_batch=8,
        samples=chosen,
    )
    assert batch.ids.tolist() == chosen.tolist()
    assert batch.valid.all()


def test_statistics_of_the_shards_are_needed_for_their_colours(photos):
    with pytest.raises(UserError, match=r"data\.pca=shards, but .* without RGB statistics"):
        steps_of(photos, settings(pca="shards"), 0, 1)


def test_gpu_decoding_needs_a_gpu():
    with pytest.raises(UserError, match=r"data\.decoder=gpu"):
        decodes_on_gpu(Data(decoder="gpu"), "cpu")
    assert not decodes_on_gpu(Data(), "cpu")
    assert decodes_on_gpu(Data(), "cuda")
    assert not decodes_on_gpu(Data(decoder="cpu"), "cuda")


@pytest.mark.parametrize(("count", "world", "rows"), [(5, 1, 5), (5, 2, 3), (50, 1, 16), (17, 1, 16)])
def test_evaluation_asks_for_no_more_rows_than_there_are(photos, count, world, rows):
    """Of 16 at once at most; what pads the last batch is decoded too."""
    rank_info = RankInfo(0, world, 0, world)
    how = {"rank_info": rank_info, "device": CPU, "micro_batch": 16, "samples": np.arange(count)}
    batches = list(eval_batches(load(photos), settings(), [Output(36)], **how))
    assert [len(batch.ids) for batch in batches] == [rows] * -(-count // (rows * world))
