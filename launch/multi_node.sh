#!/usr/bin/env bash
# Train on several machines: run this same command on each of them, in the same checkout, with the same files in reach.
#
#   NODES=4 MASTER_ADDR=node0 launch/multi_node.sh configs/vgg16.yaml data.train=/shared/imagenet/train ...
#
#   NODES         how many machines (required)
#   MASTER_ADDR   name or address of one of them, the same everywhere (required); it hosts the rendezvous
#                 gloo and NCCL use the network towards it, unless GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME are set
#   MASTER_PORT   a free port there (default 29400)
#   JOB_ID        tells jobs apart that share a host (default tencrop)
#   NPROC         processes on this machine, the same number on all (default: one a GPU)
#   MAX_RESTARTS  how often the job starts over from the last checkpoint when a process dies (default 0)
#
# The run folder must be on a file system that all machines share. Ends with the exit code of the job, as single_node.sh;
# when a process fails, those of all machines end within 10 seconds, and all terminals tell which was first and why.
set -euo pipefail
. "$(dirname "$0")/environment.sh"

for name in NODES MASTER_ADDR; do
  if [ -z "${!name:-}" ]; then
    echo "error: $name is not set. For example: NODES=2 MASTER_ADDR=node0 launch/multi_node.sh $*" >&2
    exit 2
  fi
done
network=$("$PYTHON" -m launch.network)
eval "$network" # exports the interface, this machine's address, and whether it hosts the rendezvous
"$PYTHON" -m launch.train "$@" --check --processes $(( NODES * NPROC ))
case " $* " in *" --check "*) exit ;; esac
exec "$PYTHON" -m launch.torchrun \
  --nnodes "$NODES" --nproc-per-node "$NPROC" --max-restarts "${MAX_RESTARTS:-0}" \
  --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:${MASTER_PORT:-29400}" --rdzv-id "${JOB_ID:-tencrop}" \
  -m launch.train "$@"
