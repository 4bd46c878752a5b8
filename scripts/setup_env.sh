#!/usr/bin/env bash
# Make the environment that demo.sh and test.sh run in: ./.venv with torch,
# mmengine, mmcv (C++ operators built from source), mmdet and this package.
#
#   bash scripts/setup_env.sh
#
# Safe to run again: a finished environment is recognised in seconds, and the
# built mmcv wheel is kept outside the checkout, so that only the first run on a
# machine compiles it (about 12 minutes on 2 cores).
#
#   PYTHON           the interpreter to use (default: python3.11)
#   AMP_HOOKS_CACHE  where built wheels are kept (default: ~/.cache/amp_hooks)
#   MAX_JOBS         parallel compiler jobs (default: number of cores)
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
CACHE=${AMP_HOOKS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/amp_hooks}
export PIP_DISABLE_PIP_VERSION_CHECK=1
# The constraints hold in pip's isolated builds too, so mmcv and its operators
# never meet two versions of torch or numpy.
export PIP_CONSTRAINT="$PWD/scripts/constraints.txt"
VENV=.venv
PY=$VENV/bin/python
STARTED=$SECONDS

say() { printf '[setup %4ds] %s\n' $((SECONDS - STARTED)) "$*"; }
die() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

# A second caller waits here instead of installing over the first.
if command -v flock >/dev/null; then
    exec 9>.setup.lock
    flock -n 9 || { say "another set-up is running here, waiting for it"; flock 9; }
fi

command -v "$PYTHON" >/dev/null ||
    die "no '$PYTHON' on PATH. Install Python 3.11 or name one: PYTHON=/path/to/python3.11"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
    die "'$PYTHON' is $("$PYTHON" -V 2>&1), and the pinned packages are for Python 3.11"

# What decides whether the environment is up to date: its recipe and its place.
stamp=$({ echo "$PWD"; cat scripts/setup_env.sh scripts/constraints.txt setup.cfg pyproject.toml; } |
    "$PYTHON" -c 'import hashlib,sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [ -x "$PY" ] && [ "$(cat $VENV/.amp_hooks_stamp 2>/dev/null)" = "$stamp" ]; then
    say "environment is up to date ($VENV)"
    exit 0
fi
say "making the environment in $VENV; a few minutes, or about 15 if mmcv must be compiled"

[ -x "$PY" ] || "$PYTHON" -m venv $VENV ||
    die "python -m venv failed (on Debian: apt-get install python3.11-venv)"
rm -f $VENV/.amp_hooks_stamp
pip() { "$PY" -m pip "$@"; }

say "build tools (setuptools < 81 has the pkg_resources that mmcv's setup.py imports)"
pip install -q "setuptools<81" wheel ninja psutil

say "torch (the largest download)"
pip install -q torch
TORCH=$("$PY" -c 'import torch; print(torch.__version__)')

say "mmengine"
pip install -q mmengine

# A wheel built for another torch installs and then fails with an undefined
# symbol, so wheels are kept by the torch they were compiled for.
WHEELS="$CACHE/wheels/torch-$TORCH"
mkdir -p "$WHEELS" || die "cannot write $WHEELS; name another place: AMP_HOOKS_CACHE=..."
if ! ls "$WHEELS"/mmcv-2.1.0-cp311-*.whl >/dev/null 2>&1; then
    command -v "${CXX:-g++}" >/dev/null ||
        die "mmcv needs a C++ compiler (on Debian: apt-get install g++)"
    say "compiling mmcv 2.1.0 for torch $TORCH; about 12 minutes on 2 cores, once per machine"
    log=$PWD/$VENV/mmcv_build.log
    building=$(mktemp -d "$WHEELS/building.XXXXXX")
    trap 'rm -rf "$building"' EXIT
    MMCV_WITH_OPS=1 FORCE_CUDA=0 MAX_JOBS=${MAX_JOBS:-$(nproc)} \
        "$PY" -m pip wheel -v --no-build-isolation --no-deps --no-binary mmcv \
        --no-cache-dir -w "$building" mmcv==2.1.0 >"$log" 2>&1 &
    pid=$!
    while kill -0 $pid 2>/dev/null; do
        for _ in $(seq 20); do kill -0 $pid 2>/dev/null || break; sleep 1; done
        # Ninja prints [done/all]; the last one is how far the build is.
        say "  mmcv: $(grep -o '\[[0-9]*/[0-9]*\]' "$log" | tail -n 1 || true) files compiled"
    done
    wait $pid || { tail -n 30 "$log" >&2; die "mmcv did not build; the whole log is $log"; }
    mv "$building"/mmcv-*.whl "$WHEELS"/
    rm -rf "$building"
fi

say "mmcv (from $WHEELS)"
pip install -q "$WHEELS"/mmcv-2.1.0-cp311-*.whl
say "mmdet, amp_hooks and the development tools"
pip install -q --no-build-isolation mmdet -e ".[det,tensorboard,dev]"

# A machine without libGL cannot load opencv-python; the headless build can.
"$PY" -c 'import cv2' 2>/dev/null || {
    say "opencv-python needs libGL, which is missing here: taking the headless build"
    pip uninstall -q -y opencv-python
    pip install -q --force-reinstall --no-deps opencv-python-headless
}
say "checking that everything imports"
"$PY" -W ignore -c 'import mmcv.ops, mmdet.models, mmengine, tensorboard, amp_hooks, torch
print("  torch", torch.__version__, "| mmengine", mmengine.__version__,
      "| mmcv", mmcv.__version__, "| mmdet", mmdet.__version__)'
echo "$stamp" > $VENV/.amp_hooks_stamp
say "done"
