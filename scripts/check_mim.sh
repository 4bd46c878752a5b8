#!/usr/bin/env bash
# Train with `mim train mmdet`, with the suite attached on its command line.
#
#   bash scripts/check_mim.sh
#
# openmim pins setuptools, requests, rich, tqdm and others below what torch and the
# development tools need, so it is no development dependency and no test: it gets an
# environment of its own, which sees the one of setup_env.sh. Downloads about 40 MB.
set -euo pipefail
cd "$(dirname "$0")/.."
PY=${PYTHON:-$PWD/.venv/bin/python}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
SITE=$("$PY" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

"$PY" -m venv "$WORK/venv"
OWN=$("$WORK/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$SITE" >"$OWN/stack.pth"  # comes after openmim's own packages
PIP_CONSTRAINT= PIP_DISABLE_PIP_VERSION_CHECK=1 "$WORK/venv/bin/python" -m pip install -q \
    openmim==0.3.9 2>/dev/null || { echo "openmim did not install"; exit 1; }

"$PY" scripts/make_digits.py --out "$WORK/data/digits" --size 64 --train 8 --val 2 \
    >/dev/null 2>&1
cp -r configs "$WORK"
export PYTHONPATH="$PWD" OMP_NUM_THREADS=1
cd "$WORK"
"$WORK/venv/bin/mim" train mmdet configs/digits/faster-rcnn_r18_fpn_fp16.py --gpus 0 \
    --work-dir work --cfg-options default_hooks.stability.type=amp_hooks.StabilityHook \
    train_cfg.max_iters=2 train_cfg.val_interval=2 train_dataloader.batch_size=2 \
    >log 2>&1 || { tail -30 log; exit 1; }
[ -f work/iter_2.pth ] || { tail -30 log; exit 1; }
grep -q '"StepGuardHook"' work/*/stability.jsonl || { echo "no suite in the ledger"; exit 1; }
echo "mim train works: $("$WORK/venv/bin/mim" --version)"
