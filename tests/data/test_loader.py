"""The batches of a step are a function of data set, config, seed and step: of nothing else."""

import hashlib

import numpy as np
import pytest
import torch

from pipeline.config import Data
from pipeline.data.index import load
from pipeline.data.loader import decodes_on_gpu, eval_batches, order_of, train_batches
from pipeline.errors import UserError
from pipeline.runtime import Place

CPU = torch.device("cpu")
RECIPES = {
    "alexnet": {"recipe": "alexnet"},
    "vgg": {"recipe": "vgg", "scale_px": (36, 64)},
    "inception windowed": {"recipe": "inception", "shuffle": "windowed", "window_shards": 2, "prefetch": 3},
}


def settings(**options) -> Data:
    return Data(crop_px=32, resize_px=36, threads=1, **options)


def steps_of(folder, data: Data, first: int, last: int, world: int = 1, micro_steps: int = 1):
    """{step: (ids, labels, SHA-256 of each image)} of whole global batches of 12, gathered over simulated ranks."""
    index = load(folder)
    order = order_of(index, data, 12, seed=7)
    ranks = [
        train_batches(
            index,
            data,
            order,
            7,
            place=Place(rank, world, rank, world),
            device=CPU,
            micro_steps=micro_steps,
            first_step=first,
            last_step=last,
        )
        for rank in range(world)
    ]
    seen = {}
    for step in range(first, last):
        batches = [next(rank) for rank in ranks for _ in range(micro_steps)]
        ids = np.concatenate([batch.ids for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        sums = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for batch in batches for image in batch.images]
        seen[step] = (ids.tolist(), labels.tolist(), sums)
    assert all(next(rank, None) is None for rank in ranks)
    return seen


@pytest.mark.parametrize("recipe", RECIPES)
def test_any_number_of_ranks_sees_the_same_ids_labels_and_pixels(photos, recipe):
    data = settings(**RECIPES[recipe])
    alone = steps_of(photos, data, 0, 20)
    assert steps_of(photos, data, 0, 20, world=2) == alone
    assert steps_of(photos, data, 0, 20, world=3) == alone
    assert steps_of(photos, data, 0, 20, world=2, micro_steps=3) == alone
    assert len({tuple(ids) for ids, _, _ in alone.values()}) == 20


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
    order = order_of(index, data, 50, seed=0)

    def images(seed: int, step: int) -> dict[int, bytes]:
        place = Place(0, 1, 0, 1)
        batches = train_batches(
            index, data, order, seed, place=place, device=CPU, micro_steps=1, first_step=step, last_step=step + 1
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
        list(eval_batches(index, data, place=Place(rank, world, rank, world), device=CPU, micro_batch=micro_batch))
        for rank in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    ids = np.concatenate([batch.ids for batches in ranks for batch in batches])
    labels = torch.cat([batch.labels for batches in ranks for batch in batches]).numpy()
    assert sorted(ids[ids >= 0].tolist()) == list(range(23))
    assert (labels[ids < 0] == -1).all()
    assert (labels[ids >= 0] == index.label[ids[ids >= 0]]).all()
    assert all(batch.images.shape[-2:] == (36, 36) for batches in ranks for batch in batches)


def test_statistics_of_the_shards_are_needed_for_their_colours(photos):
    with pytest.raises(UserError, match=r"data\.pca=shards, but .* without RGB statistics"):
        steps_of(photos, settings(pca="shards"), 0, 1)


def test_gpu_decoding_needs_a_gpu():
    with pytest.raises(UserError, match=r"data\.decoder=gpu"):
        decodes_on_gpu(Data(decoder="gpu"), CPU)
    assert not decodes_on_gpu(Data(), CPU)
    assert decodes_on_gpu(Data(), torch.device("cuda"))
    assert not decodes_on_gpu(Data(decoder="cpu"), torch.device("cuda"))
