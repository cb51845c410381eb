"""Ours: pipeline.data.loader over a packed set, in any storage form, as launch.train calls it."""

from pathlib import Path

from tests.benchmarks.contest import AREA, ASPECT, BATCH, CROP_PX, MEAN, SEED, STD, Entry, enter, versions


def start(folder: Path, cores: int) -> Entry:
    import torch
    from nvidia import dali

    from pipeline.config import Data
    from pipeline.data.index import load
    from pipeline.data.loader import order_of, train_batches
    from pipeline.runtime import Place

    data = Data(
        recipe="inception",
        crop_px=CROP_PX,
        area=AREA,
        aspect=ASPECT,
        pca_std=0,
        mean=MEAN,
        std=STD,
        decoder="cpu",
        threads=cores,
    )
    index = load(folder)
    batches = train_batches(
        index,
        data,
        order_of(index, data, BATCH, SEED),
        SEED,
        place=Place(rank=0, world=1, local_rank=0, local_world=1),
        device=torch.device("cpu"),
        micro_steps=1,
        first_step=0,
        last_step=10**9,
    )
    ahead = 2 * data.prefetch + 2  # the decoder's and those that are being finished
    return Entry((batch.images for batch in batches), ahead, f"DALI {dali.__version__}, {versions('torch')}")


if __name__ == "__main__":
    enter(start)
