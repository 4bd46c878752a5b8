#!/usr/bin/env bash
# Train a small Faster R-CNN twice at a learning rate that overflows FP16: with stock
# AMP, and with the suite attached. Prints a table of both at the end.
#
#   bash scripts/demo.sh
#
# After set-up it takes about 6 minutes on 2 cores. The two runs go side by side, each
# on half of the cores. Nothing differs but what amp_hooks may do: in the first run
# look (configs/_base_/watch.py), in the second act (configs/_base_/stability.py).
set -euo pipefail
cd "$(dirname "$0")/.."
STARTED=$SECONDS
bash scripts/setup_env.sh
READY=$SECONDS

PY=.venv/bin/python
. scripts/hide_gpu.sh
TRAIN=$($PY scripts/mmdet_tool.py train.py)
TRAIN=${TRAIN#"$PWD"/}
OUT=work_dirs/demo
CONFIG=configs/digits/faster-rcnn_r18_fpn_fp16_hot
cores=$(nproc)
export OMP_NUM_THREADS=$((cores > 1 ? cores / 2 : 1)) PYTHONUNBUFFERED=1

say() { printf '[demo %4ds] %s\n' $((SECONDS - READY)) "$*"; }

say "making the digits data set"
$PY scripts/make_digits.py --out data/digits

rm -rf $OUT
mkdir -p $OUT
say "training twice, side by side: [stock  ] plain AMP, [guarded] with amp_hooks"
say "the stock run is watched by the monitors, which changes no bit of it"
say "whole logs: $OUT/stock.log and $OUT/guarded.log"

train() { # name, config
    # MMEngine's lines without their date; only progress, warnings and results.
    $PY "$TRAIN" "$2" --work-dir "$OUT/$1" 2>&1 | tee "$OUT/$1.log" |
        grep --line-buffered -E 'Iter\(|amp_hooks\]|Error' |
        sed -uE "s/^.* - mmengine - (INFO|WARNING) - //; s/  data_time: [0-9.]+//; s/  loss_rpn.*//; \
s/^/$(printf '[%-7s] ' "$1")/"
}
train stock ${CONFIG}_watched.py & stock=$!
train guarded ${CONFIG}_stability.py & guarded=$!
status=0
wait $stock || { say "the stock run failed; see $OUT/stock.log"; status=1; }
wait $guarded || { say "the guarded run failed; see $OUT/guarded.log"; status=1; }
[ $status = 0 ] || exit $status

say "done; what became of the two runs:"
echo
$PY -W ignore scripts/compare_runs.py "stock AMP=$OUT/stock" \
    "with amp_hooks=$OUT/guarded" --check 0.7
echo
say "$((SECONDS - READY)) s after set-up ($((SECONDS - STARTED)) s in all)"
echo "See why:"
echo "    $PY -m amp_hooks report $OUT/guarded --html $OUT/guarded.html"
echo "See it in the browser (tab 'Custom Scalars'):"
echo "    .venv/bin/tensorboard --logdir $OUT"
echo "Go on from the auto-rollback checkpoint of a killed run:"
echo "    $HIDDEN$PY $TRAIN ${CONFIG}_stability.py --work-dir $OUT/guarded --resume"
