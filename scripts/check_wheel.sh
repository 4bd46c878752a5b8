#!/usr/bin/env bash
# Build the wheel, install it alone into an empty folder, and train with it for two
# iterations outside the repository: what a user gets is complete, and config alone
# attaches it. Needs the environment of setup_env.sh; nothing is downloaded.
#
#   bash scripts/check_wheel.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PY=${PYTHON:-$PWD/.venv/bin/python}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

# From a copy, so that the build leaves nothing in the checkout.
mkdir "$WORK/source"
cp -r amp_hooks setup.cfg pyproject.toml README.md LICENSE "$WORK/source"
"$PY" -m pip wheel -q --no-deps --no-build-isolation --no-index \
    -w "$WORK/dist" "$WORK/source"
"$PY" -m pip install -q --no-deps --no-index --target "$WORK/site" "$WORK"/dist/*.whl
"$PY" scripts/make_digits.py --out "$WORK/data/digits" --size 64 --train 8 --val 2 \
    >/dev/null 2>&1
cp -r configs "$WORK"

cd "$WORK"
cat >train.py <<'PYTHON'
import sys

from mmengine.config import Config
from mmengine.runner import Runner

cfg = Config.fromfile("configs/digits/retinanet_r18_fpn_fp16_stability.py")
cfg.work_dir = "work"
cfg.custom_hooks = [dict(type="amp_hooks.StabilityHook")]
cfg.train_cfg.max_epochs = cfg.train_cfg.val_interval = 1
runner = Runner.from_cfg(cfg)
runner.train()
assert runner.iter == 2, runner.iter
members = [h for h in runner.hooks if type(h).__module__.startswith("amp_hooks.")]
assert len(members) > 5, members
print("trained two iterations with", sys.modules["amp_hooks"].__file__)
PYTHON
PYTHONPATH="$WORK/site" "$PY" -W ignore train.py >log 2>&1 || { tail -30 log; exit 1; }
found=$(grep "trained two iterations with" log)
case $found in
*"$WORK/site/amp_hooks/"*) ;;
*) echo "not the wheel: $found"; exit 1 ;;
esac
[ -f "$WORK/site/amp_hooks/py.typed" ] || { echo "py.typed is missing"; exit 1; }
echo "the wheel works: $(basename "$WORK"/dist/*.whl)"
