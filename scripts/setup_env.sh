#!/usr/bin/env bash
# Make the environment that demo.sh and test.sh run in: ./.venv with torch,
# mmengine, mmcv (operators built from source), mmdet and this package.
#
#   bash scripts/setup_env.sh
#
# Safe to run again: a finished environment is recognised in seconds, and the
# built mmcv wheel is kept outside the checkout, so that only the first run on a
# machine compiles it (3 to 4 minutes on 2 cores, see mmcv_build.py). Without an nvcc of
# torch's CUDA that is mmcv for the CPU, and demo.sh and test.sh then hide a GPU.
#
#   PYTHON           the interpreter to use (default: python3.11)
#   AMP_HOOKS_CUDA   1: mmcv for the GPU or an error, 0: for the CPU (default: what fits)
#   AMP_HOOKS_CACHE  where built wheels are kept (default: ~/.cache/amp_hooks)
#   MAX_JOBS         parallel compiler jobs (default: number of cores)
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
export PIP_DISABLE_PIP_VERSION_CHECK=1
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

# The constraints hold in pip's isolated builds too, so mmcv and its operators never meet
# two versions of torch or numpy. As a URL, because pip splits a path at its spaces.
PIP_CONSTRAINT=$("$PYTHON" -c 'import pathlib
print(pathlib.Path("scripts/constraints.txt").resolve().as_uri())')
export PIP_CONSTRAINT

# What decides whether the environment is up to date: its recipe, its place, and whether
# mmcv is what this machine wants now.
stamp=$({ echo "$PWD"; cat scripts/{setup_env.sh,mmcv_*.py,constraints.txt} setup.cfg pyproject.toml; } |
    "$PYTHON" -c 'import hashlib,sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
made=$(cat $VENV/.amp_hooks_stamp 2>/dev/null || true)
if [ -x "$PY" ] && [ "${made% *}" = "$stamp" ]; then
    wanted=$("$PY" scripts/mmcv_build.py --plan --kept "${made##* }") || exit 1
    [ "$made" != "$stamp $wanted" ] || { say "environment is up to date ($VENV)"; exit 0; }
    say "mmcv is for ${made##* }, and this machine wants $wanted"
fi
say "making the environment in $VENV; 2 minutes, or about 5 if mmcv must be compiled"

[ -x "$PY" ] || "$PYTHON" -m venv $VENV ||
    die "python -m venv failed (on Debian: apt-get install python3.11-venv)"
rm -f $VENV/.amp_hooks_stamp
pip() { "$PY" -m pip "$@"; }

say "build tools (setuptools < 81 has the pkg_resources that mmcv's setup.py imports)"
pip install -q "setuptools<81" wheel ninja psutil

say "torch (the largest download)"
pip install -q torch

say "mmengine"
pip install -q mmengine

wanted=$("$PY" scripts/mmcv_build.py --plan) || exit 1
WHEEL=$("$PY" scripts/mmcv_build.py --mmcv 2.1.0) || exit 1
built=$(basename "$(dirname "$WHEEL")")  # for the CPU, where CUDA's did not compile
[ "$built" = "$wanted" ] || wanted=$wanted:$built
say "mmcv (from $WHEEL)"
# One of another kind has the same version, which pip takes for the same.
pip install -q --force-reinstall --no-deps "$WHEEL"
pip install -q "$WHEEL"
say "mmdet, amp_hooks and the development tools"
pip install -q --no-build-isolation mmdet -e ".[det,tensorboard,dev]"

# A machine without libGL cannot load opencv-python; the headless build can.
"$PY" -c 'import cv2' 2>/dev/null || {
    say "opencv-python needs libGL, which is missing here: taking the headless build"
    pip uninstall -q -y opencv-python
    pip install -q --force-reinstall --no-deps opencv-python-headless
}
say "checking that everything imports and mmcv's operators run"
"$PY" -W ignore scripts/check_setup.py ||
    die "the environment does not work (with a GPU, operators for the CPU: AMP_HOOKS_CUDA=0)"
echo "$stamp $wanted" > $VENV/.amp_hooks_stamp
say "done"
