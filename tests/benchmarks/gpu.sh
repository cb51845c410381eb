#!/usr/bin/env bash
# All that BENCHMARKS.md wants from a machine with a GPU; nothing is downloaded.
#
#   PHOTOS=clothing.tar CIFAR=cifar10.tar.gz tests/benchmarks/gpu.sh OUT [PART ...]
#
#   OUT       folder for tables (PART.md), figures (*.json), pictures; what is made on the way goes to WORK
#   PART      check first decoding step loader train evaluate learn tune; none: all of them, in this order. `first` has
#             what decides how the rest is set. tune starts from learn's weights where WORK has them
#   PHOTOS    tar (or folder) of class folders in train/, validation/ and test/, or in the first two
#   CIFAR     the same of CIFAR-10 in train/ and test/
#   PACKAGES  folder of wheels, or of packages that are unpacked already, that this machine's Python lacks
#   PYTHON    default python3; WORK default /tmp/tencrop; BATCHES, IMAGES, WORDS (of a config): to make it small
#   ROUNDS    turns of each contestant (3); CORES threads or workers of each (all)
#
# Every part can be run alone and takes less than nine minutes. A command that fails or takes longer than LIMIT_S does not
# stop the next; launch.bench then tells what its whole rounds gave, and the exit code tells that something was missing. A
# part leaves eight files at most, each of them small. CPU=1 runs without a GPU, to try the script; SLOWER=4 gives all limits
# four times.
set -uo pipefail
if [ $# -lt 1 ]; then sed -n '2,18p' "$0" >&2; exit 2; fi
OUT=$1; shift
PARTS=${*:-check first decoding step loader train evaluate learn tune}
for part in $PARTS; do
  case $part in check | first | decoding | step | loader | train | evaluate | learn | tune) ;; *) echo "error: there is no part $part" >&2; exit 2 ;; esac
done
export PYTHON=${PYTHON:-python3} WANDB_MODE=offline
WORK=${WORK:-/tmp/tencrop}
# Seconds that a command may take. A part has PART_S, so the last of its commands may get less, and each KILL_S more to tell
# what it has.
PART_S=$((515 * ${SLOWER:-1})) KILL_S=15
declare -A LIMIT_S=(
  [pack]=60 [tests]=450
  [kernels]=45 [loader-first]=130 [first-alexnet_2012]=100 [first-vgg16]=100 [saving]=45
  [ways]=150 [torn]=360
  [step]=260 [step-compiled]=80
  [loader-all]=400
  [train-alexnet]=220 [train-vgg16]=120 [train-vgg16-peers]=100 [train-vgg19]=120
  [evaluate]=240
  [learn]=200 [tune]=95 [export]=30 [ten crops]=60 [curves]=20
)
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
for name in "torch torchvision nvidia.dali deepspeed webdataset pydantic yaml numpy PIL rich safetensors fsspec matplotlib pytest hypothesis".split():
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
from pipeline.bench.machine import machine
facts = machine() | versions()
open(sys.argv[2], "w").write(json.dumps(facts, indent=1))
print("\n".join(f"{name}: {value}" for name, value in facts.items()))
PY

unpacked() { # TAR|FOLDER NAME: where its class folders are
  if [ -d "$1" ]; then echo "$1"; return; fi
  [ -e "$WORK/$2/.whole" ] || { mkdir -p "$WORK/$2" && tar -xf "$1" -C "$WORK/$2" && touch "$WORK/$2/.whole"; } || return
  echo "$WORK/$2"
}
limited() { # NAME COMMAND...: ended by SIGTERM after LIMIT_S[NAME], or when its part has no time left
  local name=$1 most=$((LIMIT_S[$1] * ${SLOWER:-1})) left=$((PART_S - SECONDS)) status; shift
  if [ $left -lt 10 ]; then echo "$name: left out, the part has no time left"; return 1; fi
  [ $most -lt $left ] || most=$left
  timeout --foreground -s TERM -k $KILL_S $most "$@"
  status=$?
  case $status in 124 | 137) echo "$name: cut after $most s" ;; esac
  return $status
}
packed() { # TAR|FOLDER NAME: where the packed sets are
  local folders; folders=$(unpacked "$1" "$2") || return
  [ -d "$WORK/packed/$2" ] || limited pack "$PYTHON" -m launch.pack "$folders" "$WORK/packed/$2" >&2 || return
  echo "$WORK/packed/$2"
}
bench() { # NAME PART WORDS...
  local name=$1; shift
  limited "$name" "$PYTHON" -m launch.bench "$@"
}
contest() { # PART NAME WORDS...
  local part=$1 name=$2 photos; shift 2
  photos=$(unpacked "${PHOTOS:?PHOTOS=... names the photos for this part}" photos) || return
  bench "$part-$name" "$part" --photos "$photos" --work "$WORK/bench" --sizes original --rounds "${ROUNDS:-3}" \
    ${CORES:+--cores "$CORES"} --json "$OUT/$part-$name.json" "$@"
}

check() {
  local gpu_alone="-m gpu"; [ -n "${CPU:-}" ] && gpu_alone=
  TENCROP_PHOTOS=$([ -f "${PHOTOS:-}" ] && echo "$PHOTOS") limited tests "$PYTHON" -m pytest -q -s -p no:cacheprovider \
    $gpu_alone tests/device tests/data/decoding/test_decoder.py tests/data/test_output.py tests/models/test_response_norm.py
}
first() {
  local one failed=0
  local hardware=,ours_on_cpu,ours_hardware0,ours_hardware50,ours_hardware100
  [ -n "${CPU:-}" ] && hardware=
  limited kernels "$PYTHON" -m pipeline.bench.kernels --network alexnet_2012 --batch "${BATCHES:-128}" || failed=1
  limited kernels "$PYTHON" -m pipeline.bench.kernels --network vgg16 --batch "${BATCHES:-64}" || failed=1
  contest loader first --batch "${BATCHES:-256}" --contestants \
    "ours,ours_raw256,ours_whole$hardware,limit_dali" || failed=1
  for one in alexnet_2012:128 vgg16:64; do
    bench "first-${one%:*}" step --networks "${one%:*}" --batches "${BATCHES:-${one#*:}}" --compile --alternatives \
      --rounds "${ROUNDS:-3}" --min-turn-s 0.3 --json "$OUT/first-${one%:*}.json" || failed=1
  done
  limited saving "$PYTHON" -m pipeline.bench.saving --network vgg16 --folder "$WORK" || failed=1
  return $failed
}
decoding() {
  local set table failed=0; set=$(packed "${PHOTOS:?PHOTOS=... names the photos for this part}" photos) || return
  for table in ways torn; do
    limited $table "$PYTHON" -m tests.benchmarks.decoding "$set/train" $table || failed=1
  done
  return $failed
}
step() {
  local one failed=0
  bench step step --rounds "${ROUNDS:-3}" --min-turn-s 0.4 ${BATCHES:+--batches $BATCHES} --json "$OUT/step.json" || failed=1
  for one in alexnet_2012:256 alexnet:512 vgg16:64 vgg19:64; do
    bench step-compiled step --networks "${one%:*}" --batches "${BATCHES:-${one#*:}}" --compile --rounds "${ROUNDS:-3}" \
      --min-turn-s 0.4 --json "$OUT/step-compiled-${one%:*}.json" || failed=1
  done
  return $failed
}
loader() {
  local hardware=,ours_on_cpu,ours_hardware0,ours_hardware50,ours_hardware80,ours_hardware100
  [ -n "${CPU:-}" ] && hardware=
  contest loader all --batch "${BATCHES:-256}" --contestants "ours,ours_short256,ours_raw256,ours_whole$hardware,dali_reader,limit_dali,\
limit_dali_whole,limit_dali_short256,limit_dali_raw256"
}
train() { # all contestants of one contest are in the GPU's memory at once
  local failed=0
  contest train alexnet --batch "${BATCHES:-512}" --model alexnet --contestants "ours,ours_raw256,ours_eager,\
torchvision_reference,timm_train,dali_example,limit_step,limit_step_eager,limit_dali,limit_dali_raw256" || failed=1
  contest train vgg16 --batch "${BATCHES:-64}" --model vgg16 --contestants ours,dali_example,limit_step,limit_dali \
    || failed=1
  contest train vgg16-peers --batch "${BATCHES:-64}" --model vgg16 --contestants ours,torchvision_reference,timm_train \
    || failed=1
  contest train vgg19 --batch "${BATCHES:-64}" --model vgg19 --contestants ours,dali_example,limit_step,limit_dali \
    || failed=1
  return $failed
}
evaluate() {
  local set network failed=0; set=$(packed "${PHOTOS:?PHOTOS=... names the photos for this part}" photos) || return
  for network in alexnet vgg16; do
    bench evaluate evaluate --set "$set/train" --model $network --views centre,ten,dense --images "${IMAGES:-2048}" \
      --rounds "${ROUNDS:-3}" --json "$OUT/evaluate-$network.json" || failed=1
  done
  return $failed
}
run() { # LIMIT CONFIG NAME SET VALIDATION WORDS...: train, export, score with ten crops
  local limit=$1; shift
  local config=$1 name=$2 set=$3 validation=$4 scored=test status; shift 4
  local run=$WORK/runs/$name
  [ -d "$set/test" ] || scored=$validation
  time limited "$limit" launch/single_node.sh "configs/$config.yaml" run="$run" data.train="$set/train" \
    data.validation="$set/$validation" "$@"
  status=$?
  if [ $status = 124 ]; then
    echo "$name: what follows is of its last checkpoint, in mid schedule"
  elif [ $status != 0 ]; then return $status; fi
  limited export "$PYTHON" -m launch.export "$run" "$run.safetensors" &&
    limited "ten crops" "$PYTHON" -m launch.evaluate "$run" --views centre,ten --data "$set/$scored" \
      --out "$run/ten-crops.json"
}
runs() { # PART NAME...: points and scores of these runs in one archive, and a picture of all
  local part=$1 name found=(); shift
  for name; do [ ! -e "$WORK/runs/$name/metrics.jsonl" ] || found+=("$name"); done
  [ ${#found[@]} -gt 0 ] || return
  (cd "$WORK/runs" && find "${found[@]}" -maxdepth 1 -name "*.json*" -print0 | tar -czf "$OUT/$part.tar.gz" --null -T -)
  "$PYTHON" -c "import matplotlib" 2> /dev/null || { echo "no picture: matplotlib is not installed"; return 0; }
  limited curves "$PYTHON" -m tests.benchmarks.plot curves "${found[@]/#/$WORK/runs/}" "$OUT/$part.png"
}
learn() {
  local cifar network failed=0; cifar=$(packed "${CIFAR:?CIFAR=... names CIFAR-10 for this part}" cifar) || return
  for network in vgg16 alexnet; do
    run learn cifar10_$network cifar10_$network "$cifar" test ${WORDS:-} || failed=1
  done
  runs learn cifar10_{vgg16,alexnet} || failed=1
  return $failed
}
tune() {
  local clothing network weights failed=0
  clothing=$(packed "${PHOTOS:?PHOTOS=... names the photos for this part}" photos) || return
  for network in alexnet vgg16; do
    local name=model.name=${network/vgg16/vgg16_bn}
    run tune photos clothing_$network "$clothing" validation "$name" ${WORDS:-} || failed=1
    weights=$WORK/runs/cifar10_$network.safetensors
    if [ ! -e "$weights" ]; then echo "$weights is not there: run the part learn first"; failed=1; continue; fi
    run tune photos clothing_${network}_tuned "$clothing" validation "$name" ${WORDS:-} optimizer.lr=0.003 \
      model.weights="$weights" model.reset_head=true || failed=1
  done
  runs tune clothing_{alexnet,vgg16}{,_tuned} || failed=1
  return $failed
}

failed=
for part in $PARTS; do
  echo "== $part"
  ( "$part" ) 2>&1 | "$PYTHON" -m tests.benchmarks.short_log "$OUT/$part.md" || failed="$failed $part"
  echo "== $part took $SECONDS s" | tee -a "$OUT/$part.md"
  SECONDS=0 # not sooner: what came before the first part counts as its own
done
if [ -n "$failed" ]; then echo "error: these failed:$failed" >&2; exit 1; fi
