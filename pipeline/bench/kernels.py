"""What the GPU does in a training step: python -m pipeline.bench.kernels --network alexnet --batch 128 [--compile]

Out: how much of the time of 20 steps it worked, what made the process wait for it or copied to and fro, and the kernels
that took longest, by torch's profiler. On one batch that stays on the device.
"""

import argparse
from collections import Counter

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from pipeline.bench.turns import ours
from pipeline.runtime import start

WARM_UP, STEPS, MOST_KERNELS = 10, 20, 22
WAITS = ("Synchronize", "Memcpy", "cudaMalloc", "cudaFree")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="alexnet")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    with start() as runtime:
        step = ours(args.network, args.batch, args.compile, runtime)
        for _ in range(WARM_UP):
            step()
        on_gpu = [ProfilerActivity.CUDA] if runtime.on_gpu else []
        with profile(activities=[ProfilerActivity.CPU, *on_gpu]) as profiled:
            for _ in range(STEPS):
                step()
            if runtime.on_gpu:
                torch.cuda.synchronize()
    print(table(f"{args.network}, {args.batch} images{', compiled' if args.compile else ''}", profiled.events()))


def table(what: str, events) -> str:
    """Markdown of a profile of STEPS steps."""
    kernels: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    waits: Counter[str] = Counter()
    begin, end = float("inf"), 0.0
    for event in events:
        if event.device_type == DeviceType.CUDA:
            if event.is_user_annotation:  # such as Optimizer.step, which spans kernels that are counted themselves
                continue
            kernels[event.name] += event.time_range.elapsed_us()
            counts[event.name] += 1
            begin, end = min(begin, event.time_range.start), max(end, event.time_range.end)
        elif any(word in event.name for word in WAITS):
            waits[event.name] += 1
    if not kernels:
        return f"{what}: no GPU, so no kernels; on the host: {dict(waits)}"
    wall_us, busy_us = (end - begin) / STEPS, sum(kernels.values()) / STEPS
    lines = [
        f"{what}: {wall_us / 1e3:.3f} ms a step, of which kernels {busy_us / 1e3:.3f} ms ({busy_us / wall_us:.2f})",
        "on the host, a step: " + ", ".join(f"{name} {count / STEPS:g}" for name, count in waits.most_common()),
        "",
        "| kernel | us a step | share | calls a step |",
        "|---|---|---|---|",
    ]
    for name, took in kernels.most_common(MOST_KERNELS):
        cells = [name[:110].replace("|", "/"), f"{took / STEPS:.0f}", f"{took / STEPS / busy_us:.3f}"]
        lines.append(f"| {' | '.join(cells)} | {counts[name] / STEPS:g} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
