#!/usr/bin/env bash
# Build the wheel, install it alone into an empty folder, and train with it for two
# iterations outside the repository, with MMDetection's tools/train.py: what a user gets
# is complete, and the command line alone attaches it. Needs the environment of
# setup_env.sh; nothing is downloaded.
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

TRAIN=$("$PY" scripts/mmdet_tool.py train.py)
export PYTHONPATH="$WORK/site"

cd "$WORK"
"$PY" -W ignore "$TRAIN" configs/digits/faster-rcnn_r18_fpn_fp16.py --work-dir work \
    --cfg-options default_hooks.stability.type=amp_hooks.StabilityHook \
    train_cfg.max_iters=2 train_cfg.val_interval=2 train_dataloader.batch_size=2 \
    >log 2>&1 || { tail -30 log; exit 1; }
[ -f work/iter_2.pth ] || { tail -30 log; exit 1; }
grep -q '"StepGuardHook"' work/*/stability.jsonl || { echo "no suite in the ledger"; exit 1; }
found=$("$PY" -c 'import amp_hooks; print(amp_hooks.__file__)')
case $found in
"$WORK/site/amp_hooks/"*) ;;
*) echo "not the wheel: $found"; exit 1 ;;
esac
for command in report check-config check-annotations replay doctor; do
    "$PY" "$WORK/site/bin/amp-hooks" "$command" --help >log 2>&1 ||
        { echo "amp-hooks $command"; cat log; exit 1; }
done
"$PY" -W ignore "$WORK/site/bin/amp-hooks" report work --html report.html >log 2>&1 || true
grep -q '<svg' report.html || { echo "no HTML report"; cat log; exit 1; }
"$PY" "$WORK/site/bin/amp-hooks" doctor >log 2>&1 || { cat log; exit 1; }
[ -f "$WORK/site/amp_hooks/py.typed" ] || { echo "py.typed is missing"; exit 1; }
echo "the wheel works: $(basename "$WORK"/dist/*.whl)"
