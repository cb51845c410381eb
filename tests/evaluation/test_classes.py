"""Classes of a set against outputs of a network: by name, WordNet id or number, and what does not match is told."""

import pytest
from torchvision.models import AlexNet_Weights

from pipeline.errors import UserError
from pipeline.evaluation.classes import imagenet_synsets, match, shown_names

NAMES = tuple(AlexNet_Weights.DEFAULT.meta["categories"])


def test_the_list_of_imagenet():
    synsets = imagenet_synsets()
    assert len(synsets) == len(set(synsets)) == 1000
    assert list(synsets) == sorted(synsets)
    # tench, English springer, cassette player, chain saw, church: classes of Imagenette, with their known outputs
    known = {"n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497, "n15075141": 999}
    assert {synset: synsets.index(synset) for synset in known} == known


@pytest.mark.parametrize(
    ("classes", "network_classes", "outputs"),
    [
        (["cat", "dog"], ("cat", "dog"), [0, 1]),
        (["dog"], ("cat", "dog"), [1]),  # a part of them
        (["dog", "cat"], ("cat", "dog"), [1, 0]),  # in another order
        (["Great_White  shark"], ("goldfish", "great white shark"), [1]),
        (["1", "0"], ("0", "1"), [1, 0]),
        (["3", "4"], ("3", "4"), [0, 1]),  # names come before numbers
        (["A", "a"], ("A", "a"), [0, 1]),  # to the letter, before letters count alike
        (["b_c", "b c"], ("b c", "b_c"), [1, 0]),
        (["0", "1"], ("cat", "dog"), [0, 1]),
        (["a", "b", "c"], None, [0, 1, 2]),  # as many as outputs, in order
    ],
)
def test_match(classes, network_classes, outputs):
    number = len(network_classes) if network_classes else 3
    assert match(classes, network_classes, number, "net").tolist() == outputs


@pytest.mark.parametrize("network_classes", [None, NAMES, imagenet_synsets()])
def test_networks_of_imagenet_know_ids_names_and_numbers(network_classes):
    for classes in (["n01443537", "n02102040"], ["goldfish", "English springer"], ["Goldfish", "english_springer"]):
        assert match(classes, network_classes, 1000, "net").tolist() == [1, 217]
    assert match(["1", "217"], network_classes, 1000, "net").tolist() == [1, 217]
    assert match(imagenet_synsets(), network_classes, 1000, "net").tolist() == list(range(1000))
    assert shown_names(network_classes, 1000)[1] == "goldfish"


@pytest.mark.parametrize(
    ("classes", "network_classes", "number", "reason"),
    [
        (
            ["cat", "cow"],
            ("cat", "dog"),
            2,
            r"net has 2 classes \(cat, dog\), and the set 2 classes, of which 'cow' is none",
        ),
        (["cta"], ("cat", "dog"), 2, r"'cta' is none of them \(near: cat"),
        (["a", "b"], None, 3, r"net has 3 outputs \(0, 1, 2\), and the set 2 classes, of which 'a' is none"),
        (["0", "3"], None, 3, "'3' is none of them"),
        (["crane"], ("crane", "crane"), 2, "'crane' is the name of outputs 0 and 1: use numbers or WordNet ids"),
        (["goldfish", "gold fish co"], NAMES, 1000, "'gold fish co' is none of them .near: goldfish"),
        (["0", "1"], ("1", "2", "3"), 3, "'0' is none of them"),
        (["cat", "Cat"], ("cat", "dog"), 2, "two classes of the set have the same output"),
        ([f"c{n}" for n in range(1000)], None, 1000, "'c0' is none of them"),
    ],
)
def test_what_does_not_match_is_told(classes, network_classes, number, reason):
    with pytest.raises(UserError, match=reason) as caught:
        match(classes, network_classes, number, "net")
    assert "--classes FILE" in str(caught.value)


def test_names_for_people():
    assert shown_names(("cat", "dog"), 3) == ["cat", "dog", "2"]
    assert shown_names(None, 2) == ["0", "1"]
