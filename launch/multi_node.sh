#!/usr/bin/env bash
# Train on several machines: run this same command on each of them, in the same checkout, with the same files in reach.
#
#   NODES=4 MASTER_ADDR=node0 launch/multi_node.sh configs/vgg16.yaml data.train=/shared/imagenet/train ...
#
#   NODES         how many machines (required)
#   MASTER_ADDR   name or address of one of them, the same everywhere (required); it hosts the rendezvous
#   MASTER_PORT   a free port there (default 29400)
#   JOB_ID        tells jobs apart that share a host (default tencrop)
#   NPROC         processes a machine (default: its GPUs; without one, 1)
#   MAX_RESTARTS  how often the job starts over from the last checkpoint when a machine is lost (default 0)
#
# The run folder must be on a file system that all machines share. Ends with the exit code of the job, as single_node.sh.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} # works from any folder
PYTHON=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python3)}

for name in NODES MASTER_ADDR; do
  if [ -z "${!name:-}" ]; then
    echo "error: $name is not set. For example: NODES=2 MASTER_ADDR=node0 launch/multi_node.sh $*" >&2
    exit 2
  fi
done
if [ -z "${NPROC:-}" ]; then
  NPROC=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)
  [ "$NPROC" -gt 0 ] || NPROC=1
fi
"$PYTHON" -m launch.train "$@" --check --processes $(( NODES * NPROC ))

cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( cores > NPROC ? cores / NPROC : 1 ))}
exec "$PYTHON" -m torch.distributed.run \
  --nnodes "$NODES" --nproc-per-node "$NPROC" --max-restarts "${MAX_RESTARTS:-0}" \
  --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:${MASTER_PORT:-29400}" --rdzv-id "${JOB_ID:-tencrop}" \
  -m launch.train "$@"
