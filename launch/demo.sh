#!/usr/bin/env bash
# The whole path on data that is drawn here: images -> shards -> training -> ten-crop scores. `make demo` calls this.
# A second call starts at once and goes on where the first stopped; remove runs/demo to train anew.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -e "$root/pyproject.toml" ]; then # a checkout
  cd "$root"
  PYTHON=${PYTHON:-.venv/bin/python}
else # installed: data and runs go to the folder that this is called from
  export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
  PYTHON=${PYTHON:-python3}
fi
export PYTHON

echo "== 1 of 4: draw a synthetic data set (ten shapes)"
"$PYTHON" -m launch.draw data/demo-images
echo "== 2 of 4: pack it into WebDataset shards"
"$PYTHON" -m launch.pack data/demo-images data/demo | sed '/^next:/d'
echo "== 3 of 4: train AlexNet on it (its error stays at chance, 90 %, for the first third: that is expected)"
"$root/launch/single_node.sh" configs/demo.yaml
echo "== 4 of 4: score the last checkpoint on the synthetic validation set"
"$PYTHON" -m launch.evaluate runs/demo --views centre,ten

cat <<'END'

Next, your own photos, a folder with one folder of images per class (on GPUs: configs/alexnet.yaml, runs/alexnet):
  .venv/bin/python -m launch.pack YOUR_PHOTOS data/photos --holdout 0.1
  launch/single_node.sh configs/alexnet_cpu.yaml data.train=data/photos/train data.validation=data/photos/validation
  .venv/bin/python -m launch.evaluate runs/alexnet_cpu --views centre,five,ten
END
