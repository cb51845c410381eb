"""The table of a network: against tables by hand, published totals, torch's own counter and gradients."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.alexnet import AlexNet2012
from models.build import build
from models.geometry import smallest_image_px
from models.summary import main, summarize

# Layers with weights, and pooling, by hand: kind, output at 224 px, weights, biases, receptive field in px (None of
# linear layers). A field grows by (kernel - 1) times the strides before it.
FULL = (
    ("Linear", (4096,), 512 * 7 * 7 * 4096, 4096, None),
    ("Linear", (4096,), 4096 * 4096, 4096, None),
    ("Linear", (1000,), 4096 * 1000, 1000, None),
)
TABLES = {
    "alexnet_2012": (
        ("Conv2d 11x11/4", (96, 55, 55), 96 * 3 * 11 * 11, 96, 11),
        ("MaxPool2d 3x3/2", (96, 27, 27), 0, 0, 19),
        ("Conv2d 5x5 groups 2", (256, 27, 27), 256 * 48 * 5 * 5, 256, 51),
        ("MaxPool2d 3x3/2", (256, 13, 13), 0, 0, 67),
        ("Conv2d 3x3", (384, 13, 13), 384 * 256 * 3 * 3, 384, 99),
        ("Conv2d 3x3 groups 2", (384, 13, 13), 384 * 192 * 3 * 3, 384, 131),
        ("Conv2d 3x3 groups 2", (256, 13, 13), 256 * 192 * 3 * 3, 256, 163),
        ("MaxPool2d 3x3/2", (256, 6, 6), 0, 0, 195),
        ("Linear", (4096,), 256 * 6 * 6 * 4096, 4096, None),
        ("Linear", (4096,), 4096 * 4096, 4096, None),
        ("Linear", (1000,), 4096 * 1000, 1000, None),
    ),
    "alexnet": (
        ("Conv2d 11x11/4", (64, 55, 55), 64 * 3 * 11 * 11, 64, 11),
        ("MaxPool2d 3x3/2", (64, 27, 27), 0, 0, 19),
        ("Conv2d 5x5", (192, 27, 27), 192 * 64 * 5 * 5, 192, 51),
        ("MaxPool2d 3x3/2", (192, 13, 13), 0, 0, 67),
        ("Conv2d 3x3", (384, 13, 13), 384 * 192 * 3 * 3, 384, 99),
        ("Conv2d 3x3", (256, 13, 13), 256 * 384 * 3 * 3, 256, 131),
        ("Conv2d 3x3", (256, 13, 13), 256 * 256 * 3 * 3, 256, 163),
        ("MaxPool2d 3x3/2", (256, 6, 6), 0, 0, 195),
        ("Linear", (4096,), 256 * 6 * 6 * 4096, 4096, None),
        ("Linear", (4096,), 4096 * 4096, 4096, None),
        ("Linear", (1000,), 4096 * 1000, 1000, None),
    ),
    "vgg11": (
        ("Conv2d 3x3", (64, 224, 224), 64 * 3 * 3 * 3, 64, 3),
        ("MaxPool2d 2x2/2", (64, 112, 112), 0, 0, 4),
        ("Conv2d 3x3", (128, 112, 112), 128 * 64 * 3 * 3, 128, 8),
        ("MaxPool2d 2x2/2", (128, 56, 56), 0, 0, 10),
        ("Conv2d 3x3", (256, 56, 56), 256 * 128 * 3 * 3, 256, 18),
        ("Conv2d 3x3", (256, 56, 56), 256 * 256 * 3 * 3, 256, 26),
        ("MaxPool2d 2x2/2", (256, 28, 28), 0, 0, 30),
        ("Conv2d 3x3", (512, 28, 28), 512 * 256 * 3 * 3, 512, 46),
        ("Conv2d 3x3", (512, 28, 28), 512 * 512 * 3 * 3, 512, 62),
        ("MaxPool2d 2x2/2", (512, 14, 14), 0, 0, 70),
        ("Conv2d 3x3", (512, 14, 14), 512 * 512 * 3 * 3, 512, 102),
        ("Conv2d 3x3", (512, 14, 14), 512 * 512 * 3 * 3, 512, 134),
        ("MaxPool2d 2x2/2", (512, 7, 7), 0, 0, 150),
        *FULL,
    ),
    "vgg13": (
        ("Conv2d 3x3", (64, 224, 224), 64 * 3 * 3 * 3, 64, 3),
        ("Conv2d 3x3", (64, 224, 224), 64 * 64 * 3 * 3, 64, 5),
        ("MaxPool2d 2x2/2", (64, 112, 112), 0, 0, 6),
        ("Conv2d 3x3", (128, 112, 112), 128 * 64 * 3 * 3, 128, 10),
        ("Conv2d 3x3", (128, 112, 112), 128 * 128 * 3 * 3, 128, 14),
        ("MaxPool2d 2x2/2", (128, 56, 56), 0, 0, 16),
        ("Conv2d 3x3", (256, 56, 56), 256 * 128 * 3 * 3, 256, 24),
        ("Conv2d 3x3", (256, 56, 56), 256 * 256 * 3 * 3, 256, 32),
        ("MaxPool2d 2x2/2", (256, 28, 28), 0, 0, 36),
        ("Conv2d 3x3", (512, 28, 28), 512 * 256 * 3 * 3, 512, 52),
        ("Conv2d 3x3", (512, 28, 28), 512 * 512 * 3 * 3, 512, 68),
        ("MaxPool2d 2x2/2", (512, 14, 14), 0, 0, 76),
        ("Conv2d 3x3", (512, 14, 14), 512 * 512 * 3 * 3, 512, 108),
        ("Conv2d 3x3", (512, 14, 14), 512 * 512 * 3 * 3, 512, 140),
        ("MaxPool2d 2x2/2", (512, 7, 7), 0, 0, 156),
        *FULL,
    ),
    "vgg16c": (
        ("Conv2d 3x3", (64, 224, 224), 64 * 3 * 3 * 3, 64, 3),
        ("Conv2d 3x3", (64, 224, 224), 64 * 64 * 3 * 3, 64, 5),
        ("MaxPool2d 2x2/2", (64, 112, 112), 0, 0, 6),
        ("Conv2d 3x3", (128, 112, 112), 128 * 64 * 3 * 3, 128, 10),
        ("Conv2d 3x3", (128, 112, 112), 128 * 128 * 3 * 3, 128, 14),
        ("MaxPool2d 2x2/2", (128, 56, 56), 0, 0, 16),
        ("Conv2d 3x3", (256, 56, 56), 256 * 128 * 3 * 3, 256, 24),
        ("Conv2d 3x3", (256, 56, 56), 256 * 256 * 3 * 3, 256, 32),
        ("Conv2d 1x1", (256, 56, 56), 256 * 256 * 1 * 1, 256, 32),
        ("MaxPool2d 2x2/2", (256, 28, 28), 0, 0, 36),
        ("Conv2d 3x3", (512, 28, 28), 512 * 256 * 3 * 3, 512, 52),
        ("Conv2d 3x3", (512, 28, 28), 512 * 512 * 3 * 3, 512, 68),
        ("Conv2d 1x1", (512, 28, 28), 512 * 512 * 1 * 1, 512, 68),
        ("MaxPool2d 2x2/2", (512, 14, 14), 0, 0, 76),
        ("Conv2d 3x3", (512, 14, 14), 512 * 512 * 3 * 3, 512, 108),
        ("Conv2d 3x3", (512, 14, 14), 512 * 512 * 3 * 3, 512, 140),
        ("Conv2d 1x1", (512, 14, 14), 512 * 512 * 1 * 1, 512, 140),
        ("MaxPool2d 2x2/2", (512, 7, 7), 0, 0, 156),
        *FULL,
    ),
    "vgg16": (
        ("Conv2d 3x3", (64, 224, 224), 64 * 3 * 3 * 3, 64, 3),
        ("Conv2d 3x3", (64, 224, 224), 64 * 64 * 3 * 3, 64, 5),
        ("MaxPool2d 2x2/2", (64, 112, 112), 0, 0, 6),
        ("Conv2d 3x3", (128, 112, 112), 128 * 64 * 3 * 3, 128, 10),
        ("Conv2d 3x3", (128, 112, 112), 128 * 128 * 3 * 3, 128, 14),
        ("MaxPool2d 2x2/2", (128, 56, 56), 0, 0, 16),
        ("Conv2d 3x3", (256, 56, 56), 256 * 128 * 3 * 3, 256, 24),
        ("Conv2d 3x3", (256, 56, 56), 256 * 256 * 3 * 3, 256, 32),
        ("Conv2d 3x3", (256, 56, 56), 256 * 256 * 3 * 3, 256, 40),
        ("MaxPool2d 2x2/2", (256, 28, 28), 0, 0, 44),
        ("Conv2d 3x3", (512, 28, 28), 512 * 256 * 3 * 3, 512, 60),
        ("Conv2d 3x3", (512, 28, 28), 512 * 512 * 3 * 3, 512, 76),
        ("Conv2d 3x3", (512, 28, 28), 512 * 512 * 3 * 3, 512, 92),
        ("MaxPool2d 2x2/2", (512, 14, 14), 0, 0, 100),
        ("Conv2d 3x3", (512, 14, 14), 512 * 512 * 3 * 3, 512, 132),
        ("Conv2d 3x3", (512, 14, 14), 512 * 512 * 3 * 3, 512, 164),
        ("Conv2d 3x3", (512, 14, 14), 512 * 512 * 3 * 3, 512, 196),
        ("MaxPool2d 2x2/2", (512, 7, 7), 0, 0, 212),
        *FULL,
    ),
    "vgg19": (
        ("Conv2d 3x3", (64, 224, 224), 64 * 3 * 3 * 3, 64, 3),
        ("Conv2d 3x3", (64, 224, 224), 64 * 64 * 3 * 3, 64, 5),
        ("MaxPool2d 2x2/2", (64, 112, 112), 0, 0, 6),
        ("Conv2d 3x3", (128, 112, 112), 128 * 64 * 3 * 3, 128, 10),
        ("Conv2d 3x3", (128, 112, 112), 128 * 128 * 3 * 3, 128, 14),
        ("MaxPool2d 2x2/2", (128, 56, 56), 0, 0, 16),
        ("Conv2d 3x3", (256, 56, 56), 256 * 128 * 3 * 3, 256, 24),
        ("Conv2d 3x3", (256, 56, 56), 256 * 256 * 3 * 3, 256, 32),
        ("Conv2d 3x3", (256, 56, 56), 256 * 256 * 3 * 3, 256, 40),
        ("Conv2d 3x3", (256, 56, 56), 256 * 256 * 3 * 3, 256, 48),
        ("MaxPool2d 2x2/2", (256, 28, 28), 0, 0, 52),
        ("Conv2d 3x3", (512, 28, 28), 512 * 256 * 3 * 3, 512, 68),
        ("Conv2d 3x3", (512, 28, 28), 512 * 512 * 3 * 3, 512, 84),
        ("Conv2d 3x3", (512, 28, 28), 512 * 512 * 3 * 3, 512, 100),
        ("Conv2d 3x3", (512, 28, 28), 512 * 512 * 3 * 3, 512, 116),
        ("MaxPool2d 2x2/2", (512, 14, 14), 0, 0, 124),
        ("Conv2d 3x3", (512, 14, 14), 512 * 512 * 3 * 3, 512, 156),
        ("Conv2d 3x3", (512, 14, 14), 512 * 512 * 3 * 3, 512, 188),
        ("Conv2d 3x3", (512, 14, 14), 512 * 512 * 3 * 3, 512, 220),
        ("Conv2d 3x3", (512, 14, 14), 512 * 512 * 3 * 3, 512, 252),
        ("MaxPool2d 2x2/2", (512, 7, 7), 0, 0, 268),
        *FULL,
    ),
}
IN_TABLES = ("Conv2d", "MaxPool2d", "Linear")
TOTALS = {"alexnet_2012": 60_965_224, "alexnet": 61_100_840}
TABLE_2 = {"vgg11": 133, "vgg13": 133, "vgg16c": 134, "vgg16": 138, "vgg19": 144}  # millions (VGG, section 2.3)


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


@pytest.mark.parametrize("name", TABLES)
def test_table_by_hand(name):
    model, table = meta(name), TABLES[name]
    rows = summarize(model, 224)
    found = [row for row in rows if row.kind.startswith(IN_TABLES)]
    assert [(row.kind, row.output, row.num_parameters, row.field_px) for row in found] == [
        (kind, output, weights + biases, field) for kind, output, weights, biases, field in table
    ]
    sizes = [[weight.numel() for weight in model.get_submodule(row.name).parameters()] for row in found]
    assert sizes == [[weights, biases] if weights else [] for _, _, weights, biases, _ in table]
    assert sum(row.num_parameters for row in rows) == sum(weights + biases for _, _, weights, biases, _ in table)


@pytest.mark.parametrize("name", TABLES)
def test_totals_are_the_papers(name):
    total = sum(row.num_parameters for row in summarize(meta(name), 224))
    assert total == TOTALS[name] if name in TOTALS else round(total / 1e6) == TABLE_2[name]


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
    response_norms = 96**2 * 55**2 + 256**2 * 27**2 if name == "alexnet_2012" else 0  # how they are computed here
    assert sum(row.num_macs for row in rows) + response_norms == counter.get_total_flops() / 2
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
        (["vgg17"], "Did you mean"),
        (["vgg16", "--width", "x"], "error: --width: invalid float value: 'x'. See --help"),
    ],
)
def test_command_line_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    told = capsys.readouterr().err
    assert message in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
