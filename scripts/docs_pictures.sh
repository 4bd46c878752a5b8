#!/usr/bin/env bash
# The pictures of README and pages, from the runs that scripts/demo.sh has left:
# docs/panels.png, docs/report.png and docs/report_dark.png (the run that was lost).
# docs/rescue.png is rescue_benchmark.py's. Needs Chromium.
#
#   bash scripts/demo.sh && bash scripts/docs_pictures.sh [work_dirs/demo]
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=$(realpath "${1:-work_dirs/demo}")
PY=.venv/bin/python
CHROMIUM=${CHROMIUM:-chromium}
command -v "$CHROMIUM" >/dev/null || { echo "error: no $CHROMIUM; name one: CHROMIUM=..." >&2; exit 1; }
[ -d "$RUNS/guarded" ] || { echo "error: $RUNS has no runs; bash scripts/demo.sh makes them" >&2; exit 1; }
WORK=$(mktemp -d)
trap 'kill "${BOARD:-}" 2>/dev/null || true; rm -rf "$WORK"' EXIT

picture() { # file, width, height, address, more options
    timeout 90 "$CHROMIUM" --headless --no-sandbox --disable-gpu --hide-scrollbars \
        --window-size="$2,$3" --screenshot="$WORK/picture.png" "${@:5}" "$4" \
        >"$WORK/log" 2>&1 || { tail -5 "$WORK/log" >&2; exit 1; }
    mv "$WORK/picture.png" "$1"
    echo "$1"
}

# Exit status 1 and 2 are what is to be seen.
for run in guarded stock; do
    "$PY" -m amp_hooks report "$RUNS/$run" --html "$WORK/$run.html" >/dev/null || [ $? -le 2 ]
done
picture docs/report.png 1200 1960 "file://$WORK/guarded.html"
picture docs/report_dark.png 1200 1500 "file://$WORK/stock.html" \
    --blink-settings=preferredColorScheme=0

PORT=$("$PY" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
# TensorBoard gives colours by which began first: captions name those of the picture.
mkdir "$WORK/runs"
ln -s "$RUNS"/stock/*/vis_data "$WORK/runs/1 stock AMP"
ln -s "$RUNS"/guarded/*/vis_data "$WORK/runs/2 with amp_hooks"
"$PY" -m tensorboard.main --logdir "$WORK/runs" --port "$PORT" --load_fast false >"$WORK/board" 2>&1 &
BOARD=$!
for _ in $(seq 60); do
    "$PY" -c "import urllib.request as r; r.urlopen('http://localhost:$PORT/data/plugin/custom_scalars/layout')" \
        2>/dev/null && break
    sleep 1
done
sleep 15  # what is half read would be drawn as an error
picture docs/panels.png 1500 1116 "http://localhost:$PORT/#custom_scalars&_smoothingWeight=0" \
    --virtual-time-budget=20000
