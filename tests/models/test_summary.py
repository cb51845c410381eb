"""The table of a network: totals against published ones and torch's own counter, receptive fields against gradients."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.alexnet import AlexNet2012
from models.build import build
from models.geometry import smallest_image_px
from models.summary import main, summarize


def meta(name, **settings):
    with torch.device("meta"):
        return build(name, num_classes=1000, **settings)


def fields(model, image_px=224, kinds=("Conv2d", "MaxPool2d")):
    return [(row.field_px, row.stride_px) for row in summarize(model, image_px) if row.kind.startswith(kinds)]


def measured_fields(features, image_px=480):
    """(receptive field, stride) after each convolution or pooling, from which pixels move two neighbouring outputs."""
    maps = images = torch.ones(1, 1, image_px, image_px, dtype=torch.float64, requires_grad=True)
    found = []
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            positive = nn.Conv2d(1, 1, layer.kernel_size, layer.stride, layer.padding, bias=False, dtype=torch.float64)
            nn.init.constant_(positive.weight, 1 / positive.weight.numel())
            maps = positive(maps)
        elif isinstance(layer, nn.MaxPool2d):  # a maximum sends its gradient to one pixel, a mean to all it sees
            maps = nn.functional.avg_pool2d(maps, layer.kernel_size, layer.stride, layer.padding)
        else:
            continue
        at = maps.shape[-1] // 2
        rows = [
            torch.autograd.grad(maps[0, 0, here, at], images, retain_graph=True)[0][0, 0].any(dim=1).nonzero()
            for here in (at, at + 1)
        ]
        found.append((len(rows[0]), (rows[1][0] - rows[0][0]).item()))
    return found


def test_receptive_fields_of_alexnet():
    expected = [(11, 4), (19, 8), (51, 8), (67, 16), (99, 16), (131, 16), (163, 16), (195, 32)]
    assert fields(meta("alexnet_2012")) == fields(meta("alexnet")) == expected


@pytest.mark.parametrize("name", ["alexnet_2012", "alexnet", "vgg11", "vgg16c", "vgg16"])
def test_receptive_fields_are_those_of_the_gradient(name):
    model = meta(name, width=0.125)
    assert fields(model) == measured_fields(model.features)


def test_fields_end_where_the_chain_does():
    rows = {row.name: row for row in summarize(meta("alexnet", width=0.125), 224)}
    assert rows["avgpool"].field_px == 195  # 6 x 6 maps stay as they are
    assert rows["classifier.1"].field_px is None
    rows = {row.name: row for row in summarize(meta("alexnet", width=0.125), 128)}
    assert rows["features.12"].field_px == 195
    assert rows["avgpool"].field_px is None

    rows = {row.name: row for row in summarize(build("torchvision:resnet18", 10), 64)}
    assert rows["layer1.0.bn2"].field_px == 27
    assert all(row.field_px is None for name, row in rows.items() if name.startswith("layer2"))


def test_an_in_place_shortcut_ends_the_chain():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

        def forward(self, images):
            start = self.first(images)
            maps = self.second(start)
            maps += start
            return self.third(maps)

    assert [row.field_px for row in summarize(Shortcut(), 16)] == [3, 5, None]


@pytest.mark.parametrize(
    ("name", "giga_macs"),
    [("alexnet", 0.714), ("vgg11", 7.609), ("vgg16", 15.470), ("vgg19", 19.632), ("torchvision:resnet18", 1.814)],
)
def test_macs_are_torchvisions_published_ones(name, giga_macs):
    model = build(name, 1000) if ":" in name else meta(name)
    assert sum(row.num_macs for row in summarize(model, 224)) / 1e9 == pytest.approx(giga_macs, abs=6e-4)


@pytest.mark.parametrize("name", ["alexnet_2012", "vgg16c_bn"])
def test_macs_are_those_of_torchs_counter(name):
    model = meta(name)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    rows = summarize(model, 224)
    assert sum(row.num_macs for row in rows) == counter.get_total_flops() / 2
    assert sum(row.num_parameters for row in rows) == sum(weight.numel() for weight in model.parameters())


def test_conv1_of_2012_by_hand():
    row = summarize(meta("alexnet_2012"), 224)[0]
    assert (row.kind, row.output) == ("Conv2d 11x11/4", (96, 55, 55))
    assert (row.num_parameters, row.num_macs) == (96 * (3 * 11 * 11 + 1), 96 * 55 * 55 * 3 * 11 * 11)


def test_the_model_is_left_as_it_was():
    model = AlexNet2012(num_classes=10, width=0.125)
    model.features.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    summarize(model, 96)
    assert model.training
    assert model.classifier.training
    assert not model.features.training
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["alexnet", "vgg16c"])
def test_smallest_image_is_the_smallest(name):
    features = meta(name, width=0.125).features
    smallest = smallest_image_px(features)
    assert features(torch.empty(1, 3, smallest, smallest, device="meta")).shape[-2:] == (1, 1)
    with pytest.raises(RuntimeError):
        features(torch.empty(1, 3, smallest - 1, smallest - 1, device="meta"))


def test_command_line(capsys):
    main(["alexnet_2012", "--groups", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "MACs", "field", "px", "stride", "px"]
    assert "Conv2d 11x11/4" in lines[1]
    assert "34,944  105,415,200" in lines[1]
    assert "parameters   62,378,344" in lines
    assert len({len(line) for line in lines[: lines.index("")]}) == 1


def test_command_line_tells_what_lies_outside_of_layers(capsys):
    main(["torchvision:vit_b_32", "--image-px", "64"])
    assert "parameters lie in no layer above" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vgg16", "--groups", "2"], "model vgg16 has no setting groups"),
        (["alexnet", "--image-px", "62"], "the smallest size that works is 63 px"),
        (["vgg17"], "did you mean"),
    ],
)
def test_command_line_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err
