"""What a GPU would refuse or wait for, found without one: training steps and evaluation on fake CUDA tensors.

Fake tensors have a shape, a type and a device but no values. An operation on two devices fails as on a GPU, and so does
whatever needs a value (item, tolist, nonzero, a boolean mask), for which a GPU's host would wait. `Guard` adds what
torch lets pass: copies to the CPU, and CPU tensors that an operation would fetch by itself.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import alexnet
from models.build import build, known_names
from models.dense import Dense
from pipeline import engine, optim
from pipeline.bench.trainers.ours import NeverStopped
from pipeline.config import Config, Data
from pipeline.config_io import parse
from pipeline.data.loader import Batch, WholeImages, _upload
from pipeline.data.output import Output
from pipeline.evaluation import evaluate as evaluation
from pipeline.evaluation.evaluate import ScoredModel, evaluate
from pipeline.evaluation.outcomes import Accumulator
from pipeline.runtime import Runtime
from pipeline.train import take_step
from pipeline.whereabouts import Whereabouts

CUDA = torch.device("cuda", 0)
TORCHVISION = "torchvision:resnet18"  # no features, avgpool, classifier: no dense form
NAMES = [*known_names(), TORCHVISION]
PX, CLASSES, ROWS = 64, 10, 6
DATA = Data(crop_px=PX, resize_px=72)
VIEWS = ["centre", "five", "ten", "50", "dense"]
precisions = pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])


class Waits(AssertionError):
    """An operation that makes the host wait for the GPU, or the GPU fetch from the host."""


class Guard(TorchDispatchMode):
    """Raises `Waits`; `uploads` has each copy to the GPU, true if it was asked not to block."""

    def __init__(self) -> None:
        super().__init__()
        self.uploads: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        from_gpu, is_copy = any(tensor.is_cuda for tensor in given), func is torch.ops.aten.copy_.default
        if from_gpu and not is_copy and any(tensor.ndim and not tensor.is_cuda for tensor in given):
            raise Waits(f"{func} is given tensors of the GPU and of the CPU")
        if func in INDEX_PUT and any(tensor.dtype == torch.bool for tensor in args[1] if tensor is not None):
            raise Waits(f"{func} counts a boolean mask")
        result = None if func is FUSED_SGD else func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if from_gpu and not all(tensor.is_cuda for tensor in made):
            raise Waits(f"{func} copies to the CPU")
        from_cpu = not given[1].is_cuda if is_copy else given and not from_gpu
        if from_cpu and any(tensor.is_cuda for tensor in made):
            self.uploads.append(kwargs.get("non_blocking", is_copy and args[2:] == (True,)))
        return result


FUSED_SGD = torch.ops.aten._fused_sgd_.default  # writes to what it is given; torch has no fake of it
INDEX_PUT = (torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


@pytest.fixture
def guard(monkeypatch) -> Iterator[Guard]:
    """All tensors are fake while the test runs; autocast takes a GPU to be there, fake tensors leave one alone."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    monkeypatch.setattr(FakeTensorMode, "avoid_device_init", True)
    with FakeTensorMode(), Guard() as found:
        yield found


def on_gpu(network: nn.Module) -> nn.Module:
    """The network with parameters and buffers on the GPU, and nothing else of it: what `to` does, but with fakes."""
    for module in network.modules():
        owned: list[dict[str, Any]] = [module._parameters, module._buffers]
        for own in owned:
            for name, value in own.items():
                if value is not None:
                    there = torch.empty(value.shape, dtype=value.dtype, device=CUDA)
                    own[name] = nn.Parameter(there) if isinstance(value, nn.Parameter) else there
    return network


def network_of(name: str) -> nn.Module:
    return build(name, CLASSES, **({} if name == TORCHVISION else {"width": 0.125, "image_px": PX}))


def runtime_of(world: int) -> Runtime:
    return Runtime(0, world, 0, world, CUDA, None)


def settings(bf16: bool = False, **sections: dict) -> Config:
    train = {"global_batch": 2 * ROWS, "micro_batch": ROWS, "precision": "bf16" if bf16 else "fp32"}
    return parse({**sections, "train": train | sections.get("train", {})}, "test")


@torch.no_grad()
def backward(loss: torch.Tensor) -> None:
    """loss.backward() without torch's engine, which asks CUDA for streams: a node of the graph is called when all its
    gradients are there, each of the shape and type of what it is the gradient of."""
    nodes: list[Any] = [loss.grad_fn]
    missing: Counter[Any] = Counter()
    for node in nodes:
        for after in {after for after, _ in node.next_functions if after is not None}:
            nodes += [] if after in missing else [after]
        missing.update(after for after, _ in node.next_functions if after is not None)
    arrived: dict[Any, dict[int, torch.Tensor]] = {node: {} for node in nodes}
    arrived[loss.grad_fn][0] = torch.ones_like(loss)
    ready: list[Any] = [loss.grad_fn]
    while ready:
        node = ready.pop()
        gradients = [arrived[node].get(number) for number in range(len(node._input_metadata))]
        found = (node if callable(node) else node.apply)(*gradients)
        found = found if isinstance(found, tuple) else (found,)
        for (after, number), gradient in zip(node.next_functions, found, strict=False):
            if after is None:
                continue
            if gradient is not None:
                about = after._input_metadata[number]
                assert gradient.device == about.device
                part, before = gradient.sum_to_size(about.shape).to(about.dtype), arrived[after].get(number)
                arrived[after][number] = part if before is None else before + part
            missing[after] -= 1
            if not missing[after]:
                ready.append(after)


class PlainEngine:
    """What `Stepper` asks of DeepSpeed, in plain torch."""

    def __init__(self, module: nn.Module, config: Config, world: int = 1) -> None:
        self.module, self.bf16 = module, config.train.precision == "bf16"
        self.optimizer = optim.build(module, config.optimizer)
        self.micro_steps, self.done, self.updates = config.train.split(world)[1], 0, 0

    def gradient_accumulation_steps(self) -> int:
        return self.micro_steps

    def is_gradient_accumulation_boundary(self) -> bool:
        return (self.done + 1) % self.micro_steps == 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.bf16):
            return self.module(images)

    def backward(self, loss: torch.Tensor) -> None:
        backward(loss / self.micro_steps)

    def step(self) -> None:
        if self.is_gradient_accumulation_boundary():
            for parameter in self.module.parameters():
                assert parameter.grad is not None
                assert (parameter.grad.device, parameter.grad.shape) == (CUDA, parameter.shape)
                assert parameter.grad.dtype == parameter.dtype
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.updates += 1
        self.done += 1


def batches() -> Iterator[Batch]:
    while True:
        images = torch.empty(ROWS, PX, PX, 3, device=CUDA).permute(0, 3, 1, 2)
        yield Batch(
            images,
            torch.empty(ROWS, dtype=torch.int64, device=CUDA),
            torch.ones(ROWS, dtype=torch.bool, device=CUDA),
            np.arange(ROWS),
        )


@contextmanager
def nothing_uploaded(guard: Guard) -> Iterator[None]:
    guard.uploads.clear()
    yield
    assert guard.uploads == []


def step_once(network: nn.Module, config: Config, world: int = 1) -> tuple[torch.Tensor, PlainEngine]:
    plain = PlainEngine(network, config, world)
    stepper = engine.Stepper(plain, config, runtime_of(world))
    assert stepper.reducer
    stepper.reducer.communication = nullcontext()  # type: ignore[assignment]  # a Stopwatch needs CUDA's events
    counts = take_step(stepper, batches(), 0, NeverStopped(), nullcontext(), Whereabouts(Path(), 0))  # type: ignore[arg-type]
    return counts, plain


@precisions
@pytest.mark.parametrize("name", NAMES)
def test_a_step_stays_on_the_gpu_and_reads_nothing_back(name, bf16, guard):
    """Two micro-steps with loss, counts, backward pass and the fused update, after which all is where it was."""
    network = on_gpu(network_of(name).train())
    seen = []
    network.register_forward_hook(lambda _, __, logits: seen.append((logits.device, logits.dtype)))
    with nothing_uploaded(guard):
        counts, plain = step_once(network, settings(bf16))
    assert seen == [(CUDA, torch.bfloat16 if bf16 else torch.float32)] * 2
    assert (counts.device, counts.dtype, plain.updates) == (CUDA, torch.float64, 1)
    kept = [*network.parameters(), *network.buffers()]
    momenta = [state["momentum_buffer"] for state in plain.optimizer.state.values()]
    assert len(momenta) == len(list(network.parameters()))
    assert {tensor.device for tensor in kept + momenta} == {CUDA}
    assert {tensor.dtype for tensor in momenta} == {torch.float32}


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"label_smoothing": 0.1}},
        {"optimizer": {"nesterov": True}},
        {"optimizer": {"lr_in_velocity": True}},
        {"optimizer": {"momentum": 0.0}},
    ],
    ids=["smoothing", "nesterov", "papers", "no momentum"],
)
def test_other_losses_and_updates_read_nothing_back(sections, guard):
    with nothing_uploaded(guard):
        _, plain = step_once(on_gpu(network_of("alexnet")), settings(**sections))
    assert plain.updates == 1
    assert {group["fused"] for group in plain.optimizer.param_groups} == {True}


@precisions
def test_gradients_of_two_ranks_are_reduced_without_reading_back(bf16, guard, monkeypatch):
    """In the last micro-step each gradient once, on the GPU, averaged by NCCL; small ones together."""
    reduced: list[tuple[torch.Tensor, Any]] = []

    def all_reduce(gradient: torch.Tensor, operation: Any, async_op: bool) -> Any:
        assert async_op
        reduced.append((gradient, operation))
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    network = on_gpu(network_of("vgg11_bn").train())
    with nothing_uploaded(guard):
        _, plain = step_once(network, settings(bf16, train={"global_batch": 4 * ROWS}), world=2)
    assert plain.updates == 1
    assert {gradient.device for gradient, _ in reduced} == {CUDA}
    sizes = [parameter.numel() for parameter in network.parameters()]
    assert sum(gradient.numel() for gradient, _ in reduced) == sum(sizes)
    assert len(reduced) < len(sizes) / 2
    assert {operation for _, operation in reduced} == {dist.ReduceOp.AVG}


def table_of(
    scored_models: list[ScoredModel], views: list[str], rows: int, bf16: bool, patch: pytest.MonkeyPatch
) -> Accumulator:
    """What evaluation has on the GPU before it reads that one table back. Two batches; half of the last is padding."""
    sides = np.array([[72, 90], [72, 72], [100, 80], [72, 90], [150, 130], [72, 90]])[:rows]  # of photos
    padding = rows // 2
    ids = np.concatenate([np.arange(2 * rows - padding), np.full(padding, -1)]).reshape(2, rows)

    def eval_batches(_: Any, data: Data, outputs: list[Output], **__: Any) -> Iterator[WholeImages]:
        sizes = [output.sizes(*sides.T).tolist() for output in outputs]
        for some in ids:
            images = [[torch.empty(*size, 3, dtype=torch.uint8, device=CUDA) for size in of_one] for of_one in sizes]
            yield WholeImages(images, torch.ones(rows, dtype=torch.bool, device=CUDA), some)

    patch.setattr(evaluation, "eval_batches", eval_batches)
    patch.setattr(Accumulator, "reduced", lambda table: table)
    index: Any = SimpleNamespace(label=np.arange(ids.max() + 1) % CLASSES)
    found: Any = evaluate(scored_models, index, DATA, views, runtime=runtime_of(1), micro_batch=rows, bf16=bf16)
    return found


@pytest.fixture
def real(request, monkeypatch) -> nn.Module:
    """A network in evaluation mode that has values yet, which its dense form is compared by. The two share layers, so
    where one goes the other goes."""
    name = getattr(request, "param", "alexnet")
    network = network_of(name).eval()
    if name != TORCHVISION:
        dense = Dense(network, PX)
        monkeypatch.setattr(evaluation, "require_views", lambda *_: dense)
    return network


@precisions
@pytest.mark.parametrize("real", NAMES, indirect=True)
def test_evaluation_stays_on_the_gpu_and_reads_nothing_back(real, bf16, guard, monkeypatch):
    """What is uploaded are ids and rows of a batch, and once the labels, mean and deviation."""
    views = ["ten", "dense"] if hasattr(real, "features") else ["ten"]
    network = on_gpu(real)
    guard.uploads.clear()
    table = table_of([ScoredModel(network, DATA, "square")], views, 4, bf16, monkeypatch)
    assert table.rows.device == CUDA
    assert guard.uploads[-4:] == [True] * 4  # ids and rows of two batches, without a wait
    assert len(guard.uploads) == 2 * 2 + 3


@precisions
@pytest.mark.parametrize("views", [*([view] for view in VIEWS), VIEWS, ["five@72-90+dense@72-90"]], ids="+".join)
def test_every_kind_of_view_stays_on_the_gpu_and_reads_nothing_back(views, real, bf16, guard, monkeypatch):
    """Of two networks, on images of several sizes; 50 crops of six images take two passes."""
    two = [ScoredModel(on_gpu(real), DATA, "whole")] * 2
    table = table_of(two, views, 6, bf16, monkeypatch)
    assert (table.rows.device, tuple(table.rows.shape)) == (CUDA, (9, 3 + 17 * len(views)))


def test_targets_are_uploaded_without_waiting(guard):
    assert [_upload(column, CUDA).device for column in (np.arange(ROWS), np.arange(ROWS) > 3)] == [CUDA] * 2
    assert guard.uploads == [True] * 2


# That the tests above can fail


def planted(work: Callable[[torch.Tensor], Any]) -> nn.Module:
    """A network that does `work` on its logits."""
    network = on_gpu(network_of("alexnet"))
    network.register_forward_hook(lambda _, __, logits: [logits, work(logits)][0])
    return network


READ_BACKS: dict[str, Callable[[torch.Tensor], Any]] = {
    "item": lambda logits: logits[0, 0].item(),
    "if": lambda logits: bool(logits.isnan().any()),
    "tolist": lambda logits: logits.tolist(),
    "cpu": lambda logits: logits.cpu(),
    "to": lambda logits: logits.detach().to("cpu", non_blocking=True),
    "copy": lambda logits: torch.empty(logits.shape).copy_(logits),
    "nonzero": lambda logits: logits.nonzero(),
    "mask": lambda logits: logits[logits[:, 0] > 0],
    "fill by mask": lambda logits: logits.detach().clone().__setitem__(logits > 0, logits[0, 0]),
    "unique": lambda logits: logits.unique(),
}
CPU_TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "sum": lambda logits: logits + torch.zeros(CLASSES),
    "index": lambda logits: logits[torch.zeros(2, dtype=torch.int64)],
}
CAUGHT = (Waits, DataDependentOutputException, DynamicOutputShapeException)
plants = pytest.mark.parametrize("plant", [*READ_BACKS, *CPU_TENSORS])


@plants
def test_what_is_planted_in_a_step_is_caught(plant, guard):
    with pytest.raises(CAUGHT):
        step_once(planted((READ_BACKS | CPU_TENSORS)[plant]), settings())


@plants
def test_what_is_planted_in_evaluation_is_caught(plant, guard, monkeypatch):
    scored_model = ScoredModel(planted((READ_BACKS | CPU_TENSORS)[plant]).eval(), DATA, "square")
    with pytest.raises(CAUGHT):
        table_of([scored_model], ["centre"], 4, False, monkeypatch)


def test_response_norm_of_torch_operators_stays_on_the_gpu(guard, monkeypatch):
    """Where no kernels can be built."""
    monkeypatch.setattr(alexnet, "builds_triton", lambda: False)
    with nothing_uploaded(guard):
        _, plain = step_once(on_gpu(network_of("alexnet_2012").train()), settings(bf16=True))
    assert plain.updates == 1


def test_a_constant_that_is_no_buffer_is_caught(guard, monkeypatch):
    """`to` leaves it on the CPU."""
    monkeypatch.setattr(alexnet, "builds_triton", lambda: False)
    network = network_of("alexnet_2012")
    norm: Any = network.features[2]
    norm.band = norm._buffers.pop("band")
    with pytest.raises(Waits, match="of the GPU and of the CPU"):
        step_once(on_gpu(network), settings())


def test_an_upload_in_a_step_is_seen(guard):
    with pytest.raises(AssertionError), nothing_uploaded(guard):
        step_once(planted(lambda logits: torch.tensor([1.0, 2.0], device=CUDA)), settings())
    assert guard.uploads == [False] * 2
    step_once(planted(lambda logits: torch.zeros(2).to(CUDA, non_blocking=True)), settings())
    assert guard.uploads == [False, False, True, True]


@pytest.mark.parametrize("name", ["alexnet_2012", "vgg11_bn", TORCHVISION])
def test_the_backward_pass_of_these_tests_is_torchs(name):
    def gradients(how: Callable[[torch.Tensor], None]) -> list[torch.Tensor | None]:
        torch.manual_seed(0)
        network = network_of(name).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(torch.rand(ROWS, 3, PX, PX))
        how(logits.float().square().mean())
        return [parameter.grad for parameter in network.parameters()]

    for ours, theirs in zip(gradients(backward), gradients(torch.Tensor.backward), strict=True):
        assert ours is not None
        assert theirs is not None
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
