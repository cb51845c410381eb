#!/usr/bin/env bash
# All that BENCHMARKS.md wants from a machine with a GPU; nothing is downloaded.
#
#   PHOTOS=clothing.tar CIFAR=cifar10.tar.gz tests/benchmarks/gpu.sh OUT [PART ...]
#
#   OUT       folder for tables (PART.md), figures (*.json), pictures; what is made on the way goes to WORK
#   PART      check first step loader train evaluate learn; none: all of them, in this order. Each takes less than nine
#             minutes. `first` has the five measurements that decide how the rest is set
#   PHOTOS    tar (or folder) of class folders in train/, validation/ and test/, or in the first two
#   CIFAR     the same of CIFAR-10 in train/ and test/
#   PACKAGES  folder of wheels, or of packages that are unpacked already, that this machine's Python lacks
#   PYTHON    default python3; WORK default /tmp/tencrop; RUN_S seconds that each of the six runs of learn has (80)
#   ROUNDS    turns of each contestant (3); CORES threads or workers of each (all)
#
# Every part can be run alone, if a machine is lent for minutes at a time. A part that fails does not stop the others; the
# exit code tells. CPU=1 runs without a GPU, to try the script.
set -uo pipefail
if [ $# -lt 1 ]; then sed -n '2,18p' "$0" >&2; exit 2; fi
OUT=$1; shift
PARTS=${*:-check first step loader train evaluate learn}
for part in $PARTS; do
  case $part in check | first | step | loader | train | evaluate | learn) ;; *) echo "error: there is no part $part" >&2; exit 2 ;; esac
done
export PYTHON=${PYTHON:-python3} WANDB_MODE=offline
WORK=${WORK:-/tmp/tencrop} RUN_S=${RUN_S:-80}
mkdir -p "$OUT" "$WORK" || exit 2
for name in OUT WORK PHOTOS CIFAR PACKAGES; do
  if [ -n "${!name:-}" ]; then path=$(realpath -e "${!name}") && declare "$name=$path" || exit 2; fi
done
cd "$(dirname "$0")/../.." || exit 2

if [ -n "${PACKAGES:-}" ]; then
  if compgen -G "$PACKAGES/*.whl" > /dev/null && [ ! -e "$WORK/site/.whole" ]; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$WORK/site" "$PACKAGES"/*.whl || exit 2
    touch "$WORK/site/.whole"
  fi
  export PYTHONPATH="$WORK/site:$PACKAGES${PYTHONPATH:+:$PYTHONPATH}"
fi
"$PYTHON" - "${CPU:-}" "$OUT/machine.json" <<'PY' || exit 2
import importlib, json, sys
missing = []
for name in "torch torchvision nvidia.dali deepspeed webdataset pydantic yaml numpy PIL rich safetensors fsspec pytest hypothesis".split():
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing.append(f"{name} ({error})")
if missing:
    sys.exit(f"error: this Python lacks {', '.join(missing)}. Put their wheels into a folder and name it: PACKAGES=...")
import ctypes, torch
if not sys.argv[1]:
    if not torch.cuda.is_available():
        sys.exit("error: torch sees no GPU here")
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version := ctypes.c_int()))
    if version.value < 13000:
        sys.exit(f"error: the driver knows CUDA {version.value / 1000:g}, and nvidia-dali-cuda130 needs 13.0")
    from pathlib import Path
    import nvidia
    if not any(found for folder in nvidia.__path__ for found in Path(folder).rglob("libnvjpeg.so.13")):
        sys.exit("error: there is no libnvjpeg.so.13 beside DALI, so that the CPU would decode: add the package nvidia-nvjpeg")
from pipeline.versions import versions
from tests.benchmarks.loader import machine
facts = machine() | versions()
open(sys.argv[2], "w").write(json.dumps(facts, indent=1))
print("\n".join(f"{name}: {value}" for name, value in facts.items()))
PY

unpacked() { # TAR|FOLDER NAME: where its class folders are
  if [ -d "$1" ]; then echo "$1"; return; fi
  [ -e "$WORK/$2/.whole" ] || { mkdir -p "$WORK/$2" && tar -xf "$1" -C "$WORK/$2" && touch "$WORK/$2/.whole"; } || return
  echo "$WORK/$2"
}
packed() { # TAR|FOLDER NAME: where the packed sets are
  local folders; folders=$(unpacked "$1" "$2") || return
  [ -d "$WORK/packed/$2" ] || "$PYTHON" -m launch.pack "$folders" "$WORK/packed/$2" >&2 || return
  echo "$WORK/packed/$2"
}
bench() { "$PYTHON" -m launch.bench "$@"; }
contest() { # PART NAME WORDS...
  local part=$1 name=$2 photos; shift 2
  photos=$(unpacked "${PHOTOS:?PHOTOS=... names the photos for this part}" photos) || return
  bench "$part" --photos "$photos" --work "$WORK/bench" --sizes original --rounds "${ROUNDS:-3}" \
    ${CORES:+--cores "$CORES"} --json "$OUT/$part-$name.json" "$@"
}

check() {
  local gpu_alone="-m gpu"; [ -n "${CPU:-}" ] && gpu_alone=
  TENCROP_PHOTOS=$([ -f "${PHOTOS:-}" ] && echo "$PHOTOS") timeout 400 "$PYTHON" -m pytest -q -s -p no:cacheprovider \
    $gpu_alone tests/device tests/data/test_decode.py tests/data/test_rendering.py tests/models/test_response_norm.py
}
first() { # what costs nothing if it fails comes last
  local set failed=0; set=$(packed "${PHOTOS:?PHOTOS=... names the photos for this part}" photos) || return
  local hardware=,ours_on_cpu,ours_hardware0,ours_hardware50,ours_hardware100
  [ -n "${CPU:-}" ] && hardware=
  "$PYTHON" -m tests.benchmarks.kernels --network alexnet_2012 --batch "${BATCHES:-128}" || failed=1
  "$PYTHON" -m tests.benchmarks.kernels --network vgg16 --batch "${BATCHES:-64}" || failed=1
  contest loader first --batch "${BATCHES:-256}" --contestants \
    "ours,ours_raw256,ours_whole$hardware,limit_dali" || failed=1
  for one in alexnet_2012:128 vgg16:64; do
    bench step --networks "${one%:*}" --batches "${BATCHES:-${one#*:}}" --compile --alternatives --rounds "${ROUNDS:-3}" \
      --min-turn-s 0.3 --json "$OUT/first-${one%:*}.json" || failed=1
  done
  "$PYTHON" -m tests.benchmarks.saving --network vgg16 --folder "$WORK" || failed=1
  "$PYTHON" -m tests.benchmarks.decoding "$set/train" 2> "$WORK/decoding.log" || failed=1
  return $failed
}
step() {
  bench step --rounds "${ROUNDS:-3}" --min-turn-s 0.4 ${BATCHES:+--batches $BATCHES} --json "$OUT/step.json" &&
  for one in alexnet_2012:256 alexnet:512 vgg16:64 vgg19:64; do
    bench step --networks "${one%:*}" --batches "${BATCHES:-${one#*:}}" --compile --rounds "${ROUNDS:-3}" --min-turn-s 0.4 \
      --json "$OUT/step-compiled-${one%:*}.json" || return
  done
}
loader() {
  local hardware=,ours_on_cpu,ours_hardware0,ours_hardware50,ours_hardware80,ours_hardware100
  [ -n "${CPU:-}" ] && hardware=
  contest loader all --batch 256 --contestants "ours,ours_short256,ours_raw256,ours_whole$hardware,dali_reader,limit_dali,\
limit_dali_whole,limit_dali_short256,limit_dali_raw256"
}
train() { # all contestants of one contest are in the GPU's memory at once
  contest train alexnet --batch "${BATCHES:-512}" --model alexnet --contestants "ours,ours_raw256,ours_eager,\
torchvision_reference,timm_train,dali_example,limit_step,limit_step_eager,limit_dali,limit_dali_raw256" &&
  contest train vgg16 --batch "${BATCHES:-64}" --model vgg16 --contestants ours,dali_example,limit_step,limit_dali &&
  contest train vgg16-peers --batch "${BATCHES:-64}" --model vgg16 --contestants ours,torchvision_reference,timm_train &&
  contest train vgg19 --batch "${BATCHES:-64}" --model vgg19 --contestants ours,dali_example,limit_step,limit_dali
}
evaluate() {
  local set network; set=$(packed "${PHOTOS:?PHOTOS=... names the photos for this part}" photos) || return
  for network in alexnet vgg16; do
    bench evaluate --set "$set/train" --model $network --views centre,ten,dense --images "${IMAGES:-2048}" \
      --rounds "${ROUNDS:-3}" --json "$OUT/evaluate-$network.json" || return
  done
}
run() { # CONFIG NAME SET VALIDATION WORDS...: train, export, score with ten crops
  local config=$1 name=$2 set=$3 validation=$4 scored=test status; shift 4
  local run=$WORK/runs/$name
  [ -d "$set/test" ] || scored=$validation
  time timeout -s TERM "$RUN_S" launch/single_node.sh "configs/$config.yaml" run="$run" data.train="$set/train" \
    data.validation="$set/$validation" "$@"
  status=$?
  if [ $status = 124 ]; then
    echo "$name was cut after $RUN_S s (RUN_S): what follows is of its last checkpoint, in mid schedule"
  elif [ $status != 0 ]; then return $status; fi
  cp "$run/metrics.jsonl" "$OUT/learn-$name.jsonl" &&
    "$PYTHON" -m launch.export "$run" "$run.safetensors" &&
    "$PYTHON" -m launch.evaluate "$run" --views centre,ten --data "$set/$scored" --out "$OUT/learn-$name.json"
}
learn() { # what fails does not stop the rest
  local cifar clothing network failed=0
  cifar=$(packed "${CIFAR:?CIFAR=... names CIFAR-10 for this part}" cifar) || return
  clothing=$(packed "${PHOTOS:?PHOTOS=... names the photos for this part}" photos) || return
  for network in vgg16 alexnet; do
    run cifar10_$network cifar10_$network "$cifar" test ${WORDS:-} || failed=1
    local name=model.name=${network/vgg16/vgg16_bn}
    run photos clothing_$network "$clothing" validation "$name" ${WORDS:-} || failed=1
    run photos clothing_${network}_tuned "$clothing" validation "$name" ${WORDS:-} optimizer.lr=0.003 \
      model.weights="$WORK/runs/cifar10_$network.safetensors" model.reset_head=true || failed=1
  done
  "$PYTHON" -m tests.benchmarks.plot curves "$WORK"/runs/cifar10_{vgg16,alexnet} "$OUT/learn-cifar10.png" || failed=1
  "$PYTHON" -m tests.benchmarks.plot curves "$WORK"/runs/clothing_{alexnet,vgg16}{,_tuned} "$OUT/learn-clothing.png" || failed=1
  return $failed
}

failed=
for part in $PARTS; do
  SECONDS=0
  echo "== $part"
  ( "$part" ) 2>&1 | tee "$OUT/$part.md" || failed="$failed $part"
  echo "== $part took $SECONDS s" | tee -a "$OUT/$part.md"
done
if [ -n "$failed" ]; then echo "error: these failed:$failed" >&2; exit 1; fi
