"""How large the images of a set are: a histogram of short sides, and the extremes by name.

In: heights and widths, shard by shard. Out: figures that add up in any grouping, so that workers can count apart.
"""

from typing import Any

EDGES_PX = (0, 32, 64, 128, 224, 256, 384, 512, 768, 1024, 1536, 2048, 4096)  # 224, 256, 512: what recipes ask for
Sizes = dict[str, Any]


def no_sizes() -> Sizes:
    return {"short_side": [0] * len(EDGES_PX), "extremes": {}}


def add(sizes: Sizes, shard: str, key: str, height: int, width: int) -> None:
    short, long = sorted((height, width))
    sizes["short_side"][max(number for number, edge in enumerate(EDGES_PX) if short >= edge)] += 1
    extreme = {"shard": shard, "key": key, "width": width, "height": height}
    for name, rank in (("smallest", -short), ("largest", short * long), ("most_elongated", long / max(short, 1))):
        _keep(sizes["extremes"], name, {**extreme, "rank": rank})


def merge(sizes: Sizes, more: Sizes) -> None:
    sizes["short_side"] = [a + b for a, b in zip(sizes["short_side"], more["short_side"], strict=True)]
    for name, extreme in more["extremes"].items():
        _keep(sizes["extremes"], name, extreme)


def _keep(extremes: dict[str, Any], name: str, extreme: dict[str, Any]) -> None:
    """The first of the largest rank: shards come in order, so the same one at any number of workers."""
    if name not in extremes or extreme["rank"] > extremes[name]["rank"]:
        extremes[name] = extreme


def as_json(sizes: Sizes) -> dict[str, Any]:
    histogram = [
        {"from_px": low, "below_px": high, "count": count}
        for low, high, count in zip(EDGES_PX, [*EDGES_PX[1:], None], sizes["short_side"], strict=True)
    ]
    extremes = {
        name: {field: value for field, value in extreme.items() if field != "rank"}
        for name, extreme in sizes["extremes"].items()
    }
    return {"short_side": histogram, "extremes": extremes}
