"""What a GPU does as a CPU does: pixels, ids, bad images, losses, scores, memory, signals.

Most need a GPU. The losses in bf16 are compared with those in fp32 on a CPU too.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from models.build import build
from pipeline import engine, network, optim
from pipeline.bench.trainers.ours import steps as stepping
from pipeline.config import Config, Data
from pipeline.config_io import parse
from pipeline.data import quarantine
from pipeline.data.crops import whole
from pipeline.data.decoding.dali import Decoder
from pipeline.data.decoding.decoder import Workers, decode
from pipeline.data.index import QUARANTINE, load
from pipeline.data.loader import Batch, order_of, train_batches
from pipeline.data.output import Normal, Output
from pipeline.data.request import Request
from pipeline.data.storage.reader import Reader
from pipeline.evaluation.evaluate import ScoredModel, evaluate
from pipeline.runtime import RankInfo, Runtime, seed_everything
from tests.benchmarks.decoding import DAMAGES, LOADS, Told
from tests.conftest import group_on, write_set

ROOT = Path(__file__).parents[2]
PHOTOS = os.environ.get("TENCROP_PHOTOS")
NUM_PHOTOS = 1000
CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda", 0), marks=pytest.mark.gpu)]
CUDA = torch.device("cuda", 0)


@pytest.fixture(params=DEVICES, ids=str)
def started(request) -> Iterator[Runtime]:
    with group_on(request.param) as found:
        yield found


@pytest.fixture(scope="module")
def thousand(tmp_path_factory) -> Path:
    """At least 1,000 photos: real ones if TENCROP_PHOTOS names a tar of them, else drawn ones."""
    folder = tmp_path_factory.mktemp("thousand")
    if not PHOTOS:
        return write_set(folder / "train", NUM_PHOTOS, size_px=(200, 500))
    from launch.pack import main as pack

    with tarfile.open(PHOTOS) as tar:
        tar.extractall(folder / "photos", filter="data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pack", str(folder / "photos"), str(folder / "packed")])
        pack()
    return folder / "packed" / "train"


def batches(folder: Path, data: Data, device: torch.device, rows: int, last_step: int) -> Iterator[Batch]:
    index = load(folder)
    return train_batches(
        index,
        data,
        order_of(index, data, rows, 0),
        rank_info=RankInfo(0, 1, 0, 1),
        device=device,
        micro_steps=1,
        steps=range(0, last_step),
    )


def pixels(batch: Batch, data: Data) -> torch.Tensor:
    """Of a normalised batch, in 0..255, float32 [n, 3, px, px] on the CPU."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return 255 * (batch.images.cpu() * std + mean)


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["alexnet", "vgg", "inception"])
@pytest.mark.parametrize("decode_whole", [False, True], ids=["window", "whole"])
def test_pixels_and_ids_of_a_thousand_photos(thousand, recipe, decode_whole):
    """Ids and labels are equal. Pixels differ by less than a level of 255 on average, by less than three in the worst
    photo, and by more than 16 in less than one of a thousand: nvJPEG and libjpeg-turbo round their inverse cosine
    transforms and enlarge colour planes otherwise, and DALI repeats borders when it resizes."""
    data = Data(recipe=recipe, pca_std=0.1, threads=4, decode_whole=decode_whole)
    rows, steps = 50, NUM_PHOTOS // 50
    pairs = zip(*(batches(thousand, data, device, rows, steps) for device in (CPU, CUDA)), strict=True)
    means, seen, far = [], 0, 0
    for cpu, gpu in pairs:
        assert np.array_equal(cpu.ids, gpu.ids)
        assert torch.equal(cpu.valid, gpu.valid.cpu())
        assert gpu.images.device == CUDA
        assert gpu.images.is_contiguous(memory_format=torch.channels_last)
        difference = (pixels(cpu, data) - pixels(gpu, data)).abs()
        means += difference.mean(dim=(1, 2, 3)).tolist()
        seen, far = seen + difference.numel(), far + int((difference > 16).sum())
    print(f"\n{recipe}: mean {np.mean(means):.3f}, worst photo {max(means):.3f}, above 16: {far / seen:.2e}")
    assert len(means) == NUM_PHOTOS
    assert np.mean(means) < 1
    assert max(means) < 3
    assert far < seen / 1000


@pytest.mark.gpu
def test_images_stay_as_they_are_while_they_are_held(thousand):
    """DALI writes the next batches meanwhile, and kernels that read a batch may be waiting when it is let go of."""
    data = Data(recipe="inception", pca_std=0, threads=4)
    wanted = [batch.images.double().sum().item() for batch in batches(thousand, data, CUDA, 64, 12)]
    busy = torch.randn(4096, 4096, device=CUDA)
    sums = []
    for batch in batches(thousand, data, CUDA, 64, 12):
        for _ in range(20):
            busy = (busy @ busy).clamp_(-1, 1)  # the sum waits behind this, and the batch is let go of before
        sums.append(batch.images.double().sum())
    assert [one.item() for one in sums] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("decode_whole", [False, True], ids=["window", "whole"])
@pytest.mark.parametrize("torn", [{"broken": [9, 40]}, {"torn": range(0, 64, 3)}], ids=["a third", "an eighth"])
def test_torn_photos_in_mid_run_cost_the_rows_that_they_cost_on_the_cpu(torn, decode_whole, tmp_path):
    """Named, labelled -1, and the others are what they were, within a level of 255 on average: which of a GPU's
    decoders takes a photo depends on its batch. Cut by an eighth, a photo is whole in some windows."""
    sound = write_set(tmp_path / "sound", 64, size_px=(150, 200))
    damaged = write_set(tmp_path / "damaged", 64, size_px=(150, 200), **torn)
    data = Data(recipe="inception", pca_std=0, threads=2, decode_whole=decode_whole)
    runs, told = {}, {}
    for name, folder, device in (("sound", sound, CUDA), ("cpu", damaged, CPU), ("gpu", damaged, CUDA)):
        runs[name] = list(batches(folder, data, device, 16, 12))
        told[name] = sorted(entry.key for entry in quarantine.read(folder / QUARANTINE))
        (folder / QUARANTINE).unlink(missing_ok=True)
    lost = 0
    for first, cpu, gpu in zip(*runs.values(), strict=True):
        assert torch.equal(cpu.valid, gpu.valid.cpu())
        kept = gpu.valid
        difference = (pixels(first, data) - pixels(gpu, data)).abs().mean(dim=(1, 2, 3))[kept.cpu()]
        assert difference.max() < 1
        lost += int((~kept).sum())
    assert told["sound"] == []
    assert told["cpu"] == told["gpu"] != []
    assert 0 < lost < 12 * 16


@pytest.mark.gpu
@pytest.mark.parametrize("hw_load", LOADS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_gpu_loses_the_rows_that_a_cpu_loses(damage, hw_load, make_set):
    """Alone and amid sound photos, in windows, in windows of whole images, and at a scale."""
    index, ids = load(make_set("photos", 16, size_px=(200, 300))), np.arange(16)
    images = Reader(index).read(ids)
    images[7] = np.frombuffer(DAMAGES[damage](images[7].tobytes()), np.uint8)
    asked = Request(ids, np.ones(16, bool), images, whole(index.height[ids], index.width[ids]))

    def lost(device: torch.device, request: Request, decode_whole: bool, output: Output) -> list[int]:
        told, workers = Told(), Workers(device, device == CUDA, threads=4, prefetch=1)
        for done, _ in decode(iter([request]), Decoder(False, decode_whole, hw_load), [output], workers, told):
            assert done.ids[~done.valid].tolist() == told.ids
        return told.ids

    window, scaled = Output(64, square=True, normal=Normal((0, 0, 0), (1, 1, 1))), Output(64)
    for output, decode_whole in ((window, False), (window, True), (scaled, False)):
        for request in (asked, asked.row(7)):
            cpu, gpu = (lost(device, request, decode_whole, output) for device in (CPU, CUDA))
            assert cpu == gpu, (output, decode_whole, len(request.ids))
            assert cpu in ([], [7])


def settings(folder: Path, **train: object) -> Config:
    tree = {
        "data": {"train": str(folder), "recipe": "inception", "area": [0.5, 1], "crop_px": 96, "resize_px": 110},
        "model": {"name": "alexnet", "width": 0.25, "dropout": 0},
        "optimizer": {"lr": 0.02},
        "train": {"global_batch": 20, **train},
    }
    return parse(tree, "test")


def losses(config: Config, where: Runtime, steps: int) -> list[float]:
    """Training losses of the first steps."""
    seed_everything(0)
    model = network.build(config.model, config.data, 5).to(where.device).train()
    built = engine.build(model, optim.build(model, config.optimizer), config, where)
    stepper = engine.Stepper(built, config, where)
    given = batches(Path(config.data.train or ""), config.data, where.device, config.train.global_batch, steps)
    return [float(counts[3] / counts[0]) for counts in islice(stepping(stepper, given), steps)]


def test_the_first_losses_in_bf16_are_those_in_fp32(started, photos):
    """Within 3 % on average and 10 % each over 50 steps; they fall meanwhile."""
    fp32 = np.array(losses(settings(photos, precision="fp32"), started, 50))
    bf16 = np.array(losses(settings(photos, precision="bf16"), started, 50))
    apart = np.abs(bf16 / fp32 - 1)
    print(
        f"\n{started.device}: from {fp32[0]:.3f} to {fp32[-1]:.3f}, apart {apart.mean():.4f}, at most {apart.max():.4f}"
    )
    assert fp32[-5:].mean() < 0.95 * fp32[:5].mean()
    assert apart.mean() < 0.03
    assert apart.max() < 0.1
    assert not np.array_equal(fp32, bf16)


@pytest.mark.slow
def test_compiled_steps_are_the_same_steps(started, photos):
    plain = np.array(losses(settings(photos, precision="fp32"), started, 6))
    compiled = np.array(losses(settings(photos, precision="fp32", compile=True), started, 6))
    np.testing.assert_allclose(compiled, plain, rtol=1e-3)


@pytest.mark.gpu
def test_the_first_losses_are_those_of_the_cpu(photos, tmp_path):
    """In fp32 from the same decoder: what is left is how products are rounded (TF32 in convolutions)."""
    with group_on(CUDA) as where:
        config = settings(photos, precision="fp32")
        gpu = losses(config.model_copy(update={"data": config.data.model_copy(update={"decoder": "cpu"})}), where, 20)
        seed_everything(0)
        model = network.build(config.model, config.data, 5).train()
        optimizer = optim.build(model, config.optimizer)
        for step, batch in enumerate(batches(photos, config.data, CPU, 20, 20)):
            loss = torch.nn.functional.cross_entropy(model(batch.images), batch.targets)
            assert loss.item() == pytest.approx(gpu[step], rel=0.02)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.gpu
@pytest.mark.slow
def test_memory_does_not_grow_over_2000_steps(photos):
    with group_on(CUDA) as where:
        config = settings(photos)
        model = network.build(config.model, config.data, 5).to(where.device).train()
        stepper = engine.Stepper(
            engine.build(model, optim.build(model, config.optimizer), config, where), config, where
        )
        given = batches(photos, config.data, where.device, 20, 2000)
        used = {}
        for step, _ in enumerate(islice(stepping(stepper, given), 2000)):
            if step in (400, 1999):
                torch.cuda.synchronize()
                free, total = torch.cuda.mem_get_info()  # DALI's memory is in it too
                used[step] = (total - free) / 2**20, _resident_mb()
    print(f"\nMB on the GPU and of the process: {used}")
    (gpu_early, cpu_early), (gpu_late, cpu_late) = used.values()
    assert gpu_late <= gpu_early + 64
    assert cpu_late <= cpu_early * 1.02 + 64


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.gpu
@pytest.mark.parametrize("view", ["centre", "ten", "dense"])
def test_scores_are_those_of_the_cpu(view, held_out):
    torch.manual_seed(0)
    model = build("alexnet", 5, width=0.25, image_px=96).eval()
    data, index = Data(crop_px=96, resize_px=110), load(held_out)
    found = {}
    for device in (CPU, CUDA):
        scored_model = ScoredModel(model.to(device), data, "square")
        with group_on(device) as where:
            found[device] = evaluate([scored_model], index, data, [view], runtime=where, micro_batch=8, bf16=False)
    cpu, gpu = (found[device].scores()[view] for device in (CPU, CUDA))
    assert cpu.seen == gpu.seen
    assert gpu.loss == pytest.approx(cpu.loss, rel=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_run_with_a_checkpoint_and_the_same_command_goes_on(number, photos, tmp_path):
    run = tmp_path / "run"
    words = ["configs/demo.yaml", f"run={run}", f"data.train={photos}", "data.validation=none", "tracking=none"]
    words += ["train.epochs=400", "train.log_every_steps=10"]
    command = ["launch/single_node.sh", *words]
    environment = os.environ | {"NPROC": "1", "PYTHON": sys.executable}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        _wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0)
        process.send_signal(number)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode in (0, 128 + number), said
    folder = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    step = json.loads((folder / "progress.json").read_text())["step"]
    assert step > 0
    again = subprocess.run(
        [sys.executable, "-m", "launch.train", *words, "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert f"going on after step {step}" in again.stdout


def _wait_for(ready: Callable[[], bool], limit_s: float = 120) -> None:
    begin = time.monotonic()
    while not ready():
        assert time.monotonic() < begin + limit_s
        time.sleep(0.2)
