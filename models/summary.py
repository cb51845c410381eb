"""A network layer by layer: output shape, parameters, multiply-adds, receptive field and stride.

In: a model name and an image size (or a model, for `summarize`). Out: one line a layer, then totals. Only shapes are
computed (torch's meta device), so VGG takes no longer than AlexNet.

    python -m models.summary alexnet_2012 --image-px 224 --groups 1
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NoReturn

if __name__ == "__main__":
    import launch  # noqa: F401  # which says so in one line without the environment

import torch
from torch import nn

from models.alexnet import ResponseNorm
from models.build import build, known_names
from models.geometry import window

HEADINGS = ("layer", "kind", "output", "parameters", "MACs", "field px", "stride px")
POINTWISE = (
    *(nn.ReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.BatchNorm2d, ResponseNorm, nn.Dropout, nn.Identity),
    nn.AdaptiveAvgPool2d,  # while it changes no size
)


@dataclass(frozen=True)
class LayerSummary:
    """One call of one layer on one image. `output` is a shape without the batch.

    `num_macs` counts multiply-adds of convolutions and linear layers, biases aside. `field_px` and `stride_px` are the
    side of the receptive field and the distance of two neighbouring ones, in pixels of the image; None where no single
    chain of windows leads to the layer (from a branch, a linear layer or an adaptive pooling that pools onwards).
    """

    name: str
    kind: str
    output: tuple[int, ...]
    num_parameters: int
    num_macs: int
    field_px: int | None
    stride_px: int | None


def summarize(model: nn.Module, image_px: int) -> list[LayerSummary]:
    """The layers of `model` in the order in which one image of (3, `image_px`, `image_px`) passes them.

    A layer called twice has two rows, its parameters in the first. The model is left as it was; its weights are not
    read. Raises what its forward raises for that size.
    """
    images = torch.empty(1, 3, image_px, image_px, device="meta")
    weights = {name: tensor.to("meta") for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    trace = _Trace(images)
    with ExitStack() as undo, torch.no_grad():
        for name, layer in model.named_modules():
            undo.callback(setattr, layer, "training", layer.training)
            if next(layer.children(), None) is None:
                undo.callback(layer.register_forward_pre_hook(trace.enter).remove)
                undo.callback(layer.register_forward_hook(partial(trace.leave, name)).remove)
        model.eval()
        torch.func.functional_call(model, weights, (images,))
    return trace.rows


def table(rows: Sequence[LayerSummary], num_parameters: int) -> str:
    """`rows` as aligned columns and totals; `num_parameters` is the whole model's, of which rows may miss a part."""
    cells = [HEADINGS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(size) if at < 3 else cell.rjust(size) for at, (cell, size) in enumerate(columns)).rstrip()
        for columns in (zip(row, widths, strict=True) for row in cells)
    ]
    activations = sum(prod(row.output) for row in rows if row.num_macs)
    lines += [
        "",
        f"parameters   {num_parameters:,}",
        f"MACs         {sum(row.num_macs for row in rows) / 1e9:.3f} G (convolutions and linear layers, one image)",
        f"activations  {activations / 1e6:.3f} M (outputs of the same layers)",
    ]
    if missed := num_parameters - sum(row.num_parameters for row in rows):
        lines.append(f"{missed:,} parameters lie in no layer above (attention, tokens); their MACs are not counted")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table of one network; a wrong name or setting ends with its message and exit code 2."""
    parser = _Parser(prog="python -m models.summary", description="A network layer by layer.")
    parser.add_argument("name", help=f"{', '.join(known_names())}, torchvision:NAME or package.module:factory")
    parser.add_argument("--image-px", type=int, default=224, help="side of the image (224)")
    parser.add_argument("--num-classes", type=int, default=1000, help="outputs of the last layer (1000)")
    parser.add_argument("--width", type=float, default=argparse.SUPPRESS, help="factor on all channels")
    parser.add_argument("--groups", type=int, default=argparse.SUPPRESS, help="of alexnet_2012: 1, 2, 4 or 8")
    settings = vars(parser.parse_args(arguments))
    name, image_px = settings.pop("name"), settings.pop("image_px")
    if ":" not in name or name.startswith("torchvision:"):
        settings["image_px"] = image_px
    try:
        # Other people's constructors may compute with their weights, which have no values on the meta device.
        with torch.device("cpu" if ":" in name else "meta"):
            model = build(name, **settings)
        print(table(summarize(model, image_px), sum(weight.numel() for weight in model.parameters())))
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line without the usage, as launch.command has it."""
        self.exit(2, f"error: {message.removeprefix('argument ')}. See --help\n")


class _Trace:
    """Hooks that collect a row per call, and follow the receptive field while each layer gets the last one's output."""

    def __init__(self, images: torch.Tensor) -> None:
        self.rows: list[LayerSummary] = []
        self.counted: set[str] = set()
        self.last, self.version = images, images._version
        self.field: tuple[int, int] | None = (1, 1)

    def enter(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        # The version shows `maps += shortcut`, which changes the last output without making a new tensor.
        if len(inputs) != 1 or inputs[0] is not self.last or self.last._version != self.version:
            self.field = None

    def leave(self, name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, torch.Tensor):
            self.field = None
            return
        self.field = _field_after(layer, self.field, same_size=bool(inputs) and inputs[0].shape == output.shape)
        self.last, self.version = output, output._version
        num_parameters = 0 if name in self.counted else sum(weight.numel() for weight in layer.parameters())
        self.counted.add(name)
        shape, macs = tuple(output.shape[1:]), _num_macs(layer, output)
        self.rows.append(LayerSummary(name, _kind(layer), shape, num_parameters, macs, *(self.field or (None, None))))


def _field_after(layer: nn.Module, field: tuple[int, int] | None, same_size: bool) -> tuple[int, int] | None:
    if field is None or (same_size and isinstance(layer, POINTWISE)):
        return field
    try:
        seen = window(layer)
    except ValueError:  # not square
        return None
    return None if seen is None else (field[0] + (seen.extent - 1) * field[1], field[1] * seen.stride)


def _num_macs(layer: nn.Module, output: torch.Tensor) -> int:
    if isinstance(layer, nn.Conv2d):
        return output.numel() * (layer.in_channels // layer.groups) * prod(layer.kernel_size)
    return output.numel() * layer.in_features if isinstance(layer, nn.Linear) else 0


def _kind(layer: nn.Module) -> str:
    words = [type(layer).__name__]
    if hasattr(layer, "kernel_size"):
        kernel, stride = (
            side if isinstance(side, tuple) else (side, side) for side in (layer.kernel_size, layer.stride)
        )
        words.append(f"{kernel[0]}x{kernel[1]}" + (f"/{max(stride)}" if max(stride) > 1 else ""))
    if getattr(layer, "groups", 1) > 1:
        words.append(f"groups {layer.groups}")
    return " ".join(words)


def _cells(row: LayerSummary) -> tuple[str, ...]:
    counts = (f"{count:,}" if count else "-" for count in (row.num_parameters, row.num_macs))
    sides = (str(side) if side is not None else "-" for side in (row.field_px, row.stride_px))
    return (row.name, row.kind, " x ".join(map(str, row.output)), *counts, *sides)


if __name__ == "__main__":
    main()
