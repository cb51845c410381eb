"""Seconds that a checkpoint stops training and takes in all: python -m pipeline.bench.saving --network vgg16

On the disk of the folder that --folder names (default: the system's for temporary files).
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from models.build import build
from pipeline import checkpoint_writer, engine, optim
from pipeline.bench.trainers.ours import NUM_CLASSES
from pipeline.bench.turns import config_of
from pipeline.checkpoint import Progress
from pipeline.runtime import seed_everything, start

TIMES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="vgg16")
    parser.add_argument("--folder", type=Path, default=None)
    args = parser.parse_args()
    seed_everything(0)
    with start() as runtime, tempfile.TemporaryDirectory(dir=args.folder) as run:
        config = config_of(args.network, 8, False)
        model = build(args.network, NUM_CLASSES).to(runtime.device).train()
        built = engine.build(model, optim.build(model, config.optimizer), config, runtime)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        built.optimizer.step()  # momentum is there from now on
        writer, stops_s, whole_s = checkpoint_writer.Writer(Path(run), runtime, keep=1), [], []
        for step in range(1, TIMES + 1):
            begin = time.perf_counter()
            writer.save(built, Progress(step=step))
            stops_s.append(time.perf_counter() - begin)
            writer.finish()
            whole_s.append(time.perf_counter() - begin)
        stops, whole = (", ".join(f"{seconds:.2f}" for seconds in took) for took in (stops_s, whole_s))
        print(f"{args.network}: a checkpoint stops training for {stops} s, and is whole after {whole} s")


if __name__ == "__main__":
    main()
