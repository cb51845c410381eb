"""Weights in and out: state dicts of torchvision, of a file, of a network with another number of classes or layers.

`alexnet` and the VGGs bear torchvision's parameter names, so a state dict needs no translation, only a strict check
that says what differs. Files are read without running what is in them: `.safetensors`, or torch files of tensors only.

    load_weights(build("vgg16", num_classes=10), torchvision_weights("vgg16"), reset_head=True)  # fine-tuning
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from models.build import check_name, known_names, torchvision_names
from models.vgg import VGG, layers_from_a

WRAPPED_UNDER = ("model", "state_dict", "module")  # torchvision's references, timm, DeepSpeed
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
MAX_DIFFERENCES = 8  # lines of an error text


def load_weights(model: nn.Module, state_dict: Mapping[str, torch.Tensor], *, reset_head: bool = False) -> None:
    """Copies `state_dict` into `model`, all of it or nothing.

    With `reset_head` the last Linear keeps its fresh weights, so its number of classes may differ. Raises ValueError
    naming each parameter that is missing, unknown or of another shape, and a differing number of classes as such.
    """
    head = head_of(model)
    if reset_head and not head:
        raise ValueError(f"{type(model).__name__} has no Linear layer whose fresh weights could be kept")
    own, given = model.state_dict(), dict(state_dict)
    if reset_head:
        given |= {name: own[name] for name in head}
    given |= _batch_counters(own, given)
    _require_same(own, given, head, advice="; reset_head=True keeps a fresh last layer")
    model.load_state_dict(given, strict=True)


def grow(model: VGG, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Copies the layers of a trained configuration A that start a deeper VGG (`layers_from_a`), all of them or nothing.

    Every other layer of `model` keeps its fresh weights. Raises ValueError naming what differs: batch normalisation,
    the number of classes, or each parameter that is missing or of another shape.
    """
    layers, own = layers_from_a(model.configuration, model.batch_norm), model.state_dict()
    if model.batch_norm != any(name.endswith("running_mean") for name in state_dict):
        has, lacks = ("the model", "the checkpoint") if model.batch_norm else ("the checkpoint", "the model")
        raise ValueError(f"{has} has batch normalisation, {lacks} has not")
    parts = [(name, *name.rsplit(".", 1)) for name in own]
    names = {name: f"{layers[layer]}.{kind}" for name, layer, kind in parts if layer in layers}
    needed = {theirs: own[ours] for ours, theirs in names.items()}
    given = {name: state_dict[name] for name in needed if name in state_dict}
    given |= _batch_counters(needed, given)
    _require_same(needed, given, head_of(model), wanted_by="the VGG A that is needed")
    model.load_state_dict(own | {ours: given[theirs] for ours, theirs in names.items()}, strict=True)


def to_torchvision(model: nn.Module, name: str, num_classes: int | None = None) -> dict[str, torch.Tensor]:
    """The state dict of `model`, checked to fit torchvision's network `name` with `num_classes` (None: as many as the
    last Linear has).

    Raises ValueError saying what differs, for example for alexnet_2012 as "alexnet" or for another width.
    """
    from torchvision.models import get_model

    own, head = model.state_dict(), head_of(model)
    bare = _torchvision_name(name)
    # Shapes are enough, but constructors of torchvision's other families compute with values, which meta has not.
    with torch.device("meta" if bare in known_names() else "cpu"):
        count = num_classes or (own[head[0]].shape[0] if head else 1000)
        theirs = get_model(bare, weights=None, num_classes=count)
    _require_same(theirs.state_dict(), own, head, wanted_by=f"torchvision's {bare}", given_by="this model")
    return own


def torchvision_weights(name: str) -> dict[str, torch.Tensor]:
    """torchvision's published ImageNet weights of `name`, fetched into torch's hub folder unless they lie there.

    Raises ValueError for a network without published weights, and OSError with the address when it cannot be reached.
    """
    from torchvision.models import get_model_weights

    published = get_model_weights(_torchvision_name(name)).DEFAULT
    try:
        return published.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except URLError as error:
        raise OSError(f"cannot fetch {published.url} ({error.reason}); fetch it elsewhere and read the file") from error


def published_file(name: str) -> Path:
    """Where `torchvision_weights` leaves the file. Raises ValueError for a network without published weights."""
    from torchvision.models import get_model_weights

    bare = _torchvision_name(name)
    if not list(get_model_weights(bare)):
        raise ValueError(f"torchvision publishes no weights of {bare}")
    return Path(torch.hub.get_dir(), "checkpoints", get_model_weights(bare).DEFAULT.url.rpartition("/")[2])


def without_relics(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A published state dict of torchvision with today's names, and without classifiers that only training uses.

    The files of DenseNet bear names of 2017; those of the two Inception networks hold their auxiliary classifiers.
    """
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
    kept = {
        name: tensor for name, tensor in state_dict.items() if not name.startswith(("AuxLogits.", "aux1.", "aux2."))
    }
    return {old.sub(r"\1\2", name): tensor for name, tensor in kept.items()}


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a `.safetensors` or torch file, on the CPU; wrappers around it are taken off.

    Raises FileNotFoundError, or ValueError for a file that holds more than tensors or is none of the two kinds.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what is no torch file can make the reader raise anything
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__  # then comes bad advice
        raise ValueError(
            f"{path} is not a torch file of nothing but tensors, and code in it is not run; save "
            f"model.state_dict() alone, or as .safetensors ({reason})"
        ) from error
    return _unwrapped(saved, path)


def _unwrapped(saved: Any, path: Path) -> dict[str, torch.Tensor]:
    for key in WRAPPED_UNDER:
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
    if not isinstance(saved, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in saved.items()
    ):
        raise ValueError(f"{path} holds no state dict, neither itself nor under {', '.join(WRAPPED_UNDER)}")
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in saved):
            saved = {name.removeprefix(prefix): tensor for name, tensor in saved.items()}
    return dict(saved)


def _torchvision_name(name: str) -> str:
    bare = name.removeprefix("torchvision:")
    if bare not in torchvision_names():
        check_name(name)  # a misspelt name is told with its neighbours
        raise ValueError(f"torchvision has no {bare}, and publishes no weights of it")
    return bare


def head_of(model: nn.Module) -> list[str]:
    """Parameter names of the last Linear, weight first; empty if there is none."""
    linear = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    return [f"{linear[-1][0]}.{kind}".lstrip(".") for kind, _ in linear[-1][1].named_parameters()] if linear else []


def _batch_counters(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of `own` that `given` lacks: weights older than PyTorch 0.4.1 have none, and nothing here reads them."""
    return {name: own[name] for name in own.keys() - given.keys() if name.endswith("num_batches_tracked")}


def _require_same(
    needed: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
    head: list[str],
    wanted_by: str = "the model",
    given_by: str = "the checkpoint",
    advice: str = "",
) -> None:
    """Raises ValueError listing how names and shapes differ; `advice` follows where only the classes do."""
    differences = list(_differences(needed, given, head, wanted_by, given_by, advice))
    if not differences:
        return
    more = len(differences) - MAX_DIFFERENCES
    lines = differences[:MAX_DIFFERENCES] + ([f"and {more} more"] if more > 0 else [])
    raise ValueError(f"the weights of {given_by} do not fit {wanted_by}: " + "\n  ".join(["", *lines]).lstrip(" "))


def _differences(
    needed: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
    head: list[str],
    wanted_by: str,
    given_by: str,
    advice: str,
) -> Iterator[str]:
    both = [name for name in needed if name in given and needed[name].shape != given[name].shape]
    if head and set(both) == set(head) and needed[head[0]].shape[1:] == given[head[0]].shape[1:]:
        classes = given[head[0]].shape[0], needed[head[0]].shape[0]
        yield f"{given_by} has {classes[0]} classes, {wanted_by} {classes[1]}{advice}"
    for name in both:
        yield f"{name} is {_shape(given[name])} in {given_by} and {_shape(needed[name])} in {wanted_by}"
    for name in needed:
        if name not in given:
            yield f"{name} {_shape(needed[name])} is missing in {given_by}"
    for name in given:
        if name not in needed:
            yield f"{name} {_shape(given[name])} is unknown to {wanted_by}"


def _shape(tensor: torch.Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"
