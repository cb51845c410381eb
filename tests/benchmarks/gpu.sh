#!/usr/bin/env bash
# All that BENCHMARKS.md wants from a machine with a GPU, in about 25 minutes; nothing is downloaded.
#
#   PHOTOS=clothing.tar CIFAR=cifar10.tar.gz tests/benchmarks/gpu.sh OUT [PART ...]
#
#   OUT       folder for tables (PART.md), figures (*.json), pictures; what is made on the way goes to WORK
#   PART      check step loader train evaluate learn; none: all of them, in this order
#   PHOTOS    tar (or folder) of class folders in train/ and validation/; CIFAR the same of CIFAR-10, with test/
#   PACKAGES  folder of wheels, or of packages that are unpacked already, that this machine's Python lacks
#   PYTHON    default python3; WORK default /tmp/tencrop
#
# Every part can be run alone, if a machine is lent for minutes at a time. A part that fails does not stop the others; the
# exit code tells. CPU=1 runs without a GPU, to try the script.
set -uo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3} WORK=${WORK:-/tmp/tencrop}
export PYTHON
export WANDB_MODE=offline
if [ $# -lt 1 ]; then sed -n '2,15p' "$0" >&2; exit 2; fi
mkdir -p "$1" "$WORK"
OUT=$(realpath "$1"); shift
PARTS=${*:-check step loader train evaluate learn}

if [ -n "${PACKAGES:-}" ]; then
  if compgen -G "$PACKAGES/*.whl" > /dev/null && [ ! -e "$WORK/site/.whole" ]; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$WORK/site" "$PACKAGES"/*.whl || exit 2
    touch "$WORK/site/.whole"
  fi
  PACKAGES=$(realpath "$PACKAGES")
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
import torch
if not torch.cuda.is_available() and not sys.argv[1]:
    sys.exit("error: no GPU here")
from pipeline.versions import versions
from tests.benchmarks.loader import machine
facts = machine() | versions()
open(sys.argv[2], "w").write(json.dumps(facts, indent=1))
print("\n".join(f"{name}: {value}" for name, value in facts.items()))
PY

unpacked() { # TAR|FOLDER NAME: where its class folders are
  if [ -d "$1" ]; then realpath "$1"; return; fi
  [ -e "$WORK/$2/.whole" ] || { mkdir -p "$WORK/$2" && tar -xf "$1" -C "$WORK/$2" && touch "$WORK/$2/.whole"; }
  echo "$WORK/$2"
}
packed() { # FOLDER NAME: where the packed sets are
  [ -d "$WORK/packed/$2" ] || "$PYTHON" -m launch.pack "$1" "$WORK/packed/$2" >&2
  echo "$WORK/packed/$2"
}
photos() { unpacked "${PHOTOS:?PHOTOS=... names the photos for this part}" photos; }
bench() { "$PYTHON" -m launch.bench "$@"; }
contest() { # PART NAME WORDS...
  local part=$1 name=$2; shift 2
  bench "$part" --photos "$(photos)" --work "$WORK/bench" --sizes original --rounds "${ROUNDS:-3}" \
    --json "$OUT/$part-$name.json" "$@"
}

check() {
  TENCROP_PHOTOS=$([ -f "${PHOTOS:-}" ] && realpath "$PHOTOS") timeout 400 \
    "$PYTHON" -m pytest -q -s -p no:cacheprovider tests/device tests/data/test_decode.py tests/data/test_rendering.py
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
  contest train alexnet --batch "${BATCHES:-512}" --model alexnet --contestants "ours,ours_raw256,ours_compiled,\
torchvision_reference,timm_train,dali_example,ffcv_jpeg,limit_step,limit_step_compiled,limit_dali,limit_dali_raw256" &&
  contest train vgg16 --batch "${BATCHES:-64}" --model vgg16 --contestants ours,dali_example,limit_step,limit_dali &&
  contest train vgg16-peers --batch "${BATCHES:-64}" --model vgg16 --contestants ours,torchvision_reference,timm_train &&
  contest train vgg19 --batch "${BATCHES:-64}" --model vgg19 --contestants ours,dali_example,limit_step,limit_dali
}
evaluate() {
  local set; set=$(packed "$(photos)" photos)/train
  for network in alexnet vgg16; do
    bench evaluate --set "$set" --model $network --views centre,ten,dense --images "${IMAGES:-2048}" \
      --rounds "${ROUNDS:-3}" --json "$OUT/evaluate-$network.json" || return
  done
}
run() { # CONFIG NAME SET VALIDATION WORDS...: train, export, score with ten crops
  local config=$1 name=$2 set=$3 validation=$4; shift 4
  time timeout -s TERM "${RUN_S:-240}" launch/single_node.sh "configs/$config.yaml" run="$WORK/runs/$name" \
    data.train="$set/train" data.validation="$set/$validation" "$@" &&
  "$PYTHON" -m launch.export "$WORK/runs/$name" "$WORK/runs/$name.safetensors" &&
  "$PYTHON" -m launch.evaluate "$WORK/runs/$name" --views centre,ten --data "$set/test" --out "$OUT/learn-$name.json"
  cp "$WORK/runs/$name/metrics.jsonl" "$OUT/learn-$name.jsonl"
}
learn() {
  local cifar clothing network
  cifar=$(packed "$(unpacked "${CIFAR:?CIFAR=... names CIFAR-10 for this part}" cifar)" cifar10)
  run cifar10_vgg16 cifar10_vgg16 "$cifar" test ${WORDS:-}
  run cifar10_alexnet cifar10_alexnet "$cifar" test ${WORDS:-}
  clothing=$(packed "$(photos)" photos)
  for network in alexnet vgg16; do
    local name=model.name=${network/vgg16/vgg16_bn}
    run photos clothing_$network "$clothing" validation "$name" ${WORDS:-}
    run photos clothing_${network}_tuned "$clothing" validation "$name" ${WORDS:-} optimizer.lr=0.003 \
      model.weights="$WORK/runs/cifar10_$network.safetensors" model.reset_head=true
  done
  "$PYTHON" -m tests.benchmarks.plot curves "$WORK"/runs/cifar10_vgg16 "$WORK"/runs/cifar10_alexnet "$OUT/learn-cifar10.png"
  "$PYTHON" -m tests.benchmarks.plot curves "$WORK"/runs/clothing_{alexnet,vgg16}{,_tuned} "$OUT/learn-clothing.png"
}

failed=
for part in $PARTS; do
  case $part in check | step | loader | train | evaluate | learn) ;; *) echo "error: there is no part $part" >&2; exit 2 ;; esac
  SECONDS=0
  echo "== $part"
  ( "$part" ) 2>&1 | tee "$OUT/$part.md" || failed="$failed $part"
  echo "== $part took $SECONDS s" | tee -a "$OUT/$part.md"
done
if [ -n "$failed" ]; then echo "error: these failed:$failed" >&2; exit 1; fi
