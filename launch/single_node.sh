#!/usr/bin/env bash
# Train on this machine: one process a GPU, or two on a machine without one.
#
#   launch/single_node.sh configs/alexnet.yaml data.train=data/mine/train data.validation=data/mine/validation
#   NPROC=4 launch/single_node.sh configs/vgg16.yaml ...     # another number of processes
#
# The same command goes on after the last checkpoint. Ends with the exit code of the job: 0 done, 2 a mistake in the
# config or the data (told in one message, before anything starts), 130 or 143 stopped by Ctrl-C or SIGTERM after
# writing a checkpoint, else a crash.
set -euo pipefail
. "$(dirname "$0")/environment.sh"

case " $* " in *" -h "* | *" --help "*) exec "$PYTHON" -m launch.train --help ;; esac
"$PYTHON" -m launch.train "$@" --check --processes "$NPROC"
case " $* " in *" --check "*) exit ;; esac
exec "$PYTHON" -m launch.torchrun --standalone --nproc-per-node "$NPROC" -m launch.train "$@"
