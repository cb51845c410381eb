# Sourced by single_node.sh and multi_node.sh: which Python, how many processes and threads.
# NPROC: processes on this machine; by default one a GPU, or two (on one core: one) on a machine without GPUs.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} # the scripts work from any folder
case $root in */site-packages) venv=$root/../../.. ;; *) venv=$root/.venv ;; esac # installed, or a checkout
PYTHON=${PYTHON:-$([ -x "$venv/bin/python" ] && echo "$venv/bin/python" || echo python3)}

cores=$(nproc)
# Counted by their lines: without a driver it explains itself on stdout, and MIG slices have lines of their own.
gpus=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | grep -c '^GPU ' || true)
case ${CUDA_VISIBLE_DEVICES-all} in "" | -1) gpus=0 ;; esac # the CPU is asked for
if [ "$gpus" -gt 0 ]; then
  NPROC=${NPROC:-$gpus}
else
  NPROC=${NPROC:-$(( cores > 1 ? 2 : 1 ))}
  # glibc gives every large activation back to the kernel, which clears its pages again at the next step: keeping them
  # made training on a CPU 1.4 times as fast (BENCHMARKS.md).
  export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-4294967296}
  export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-17179869184}
fi
if ! [[ $NPROC =~ ^[1-9][0-9]*$ ]]; then
  echo "error: NPROC=$NPROC must be a number of processes, 1 or more" >&2
  exit 2
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( cores > NPROC ? cores / NPROC : 1 ))}
