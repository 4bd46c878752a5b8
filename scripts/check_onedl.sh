#!/usr/bin/env bash
# Runs the test suite with the maintained forks onedl-mmengine, onedl-mmcv and
# onedl-mmdetection in place of OpenMMLab's packages, in an environment of its own.
#
#   bash scripts/check_onedl.sh [pytest arguments]
#
# The first run compiles onedl-mmcv (3 to 4 minutes on 2 cores, see mmcv_build.py) and
# keeps the wheel; the suite itself takes about 15 minutes on 2 cores.
#
#   PYTHON              the interpreter to use (default: python3.11)
#   AMP_HOOKS_CUDA      1: onedl-mmcv for the GPU or an error, 0: for the CPU
#   AMP_HOOKS_CACHE     where built wheels are kept (default: ~/.cache/amp_hooks)
#   AMP_HOOKS_VERSIONS  where the environment is kept
#                       (default: amp_hooks_versions in the temporary folder)
#   MAX_JOBS            parallel compiler jobs (default: number of cores)
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
VENV=${AMP_HOOKS_VERSIONS:-${TMPDIR:-/tmp}/amp_hooks_versions}/onedl
PY=$VENV/bin/python
MMENGINE=0.10.12 MMCV=2.3.6 MMDET=3.5.1
STARTED=$SECONDS
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '[onedl %4ds] %s\n' $((SECONDS - STARTED)) "$*"; }
die() { printf '[onedl] error: %s\n' "$*" >&2; exit 1; }

command -v "$PYTHON" >/dev/null ||
    die "no '$PYTHON' on PATH. Install Python 3.11 or name one: PYTHON=/path/to/python3.11"
[ -x "$PY" ] || "$PYTHON" -m venv "$VENV" ||
    die "python -m venv failed (on Debian: apt-get install python3.11-venv)"
# The same versions as in setup_env.sh, but for the packages that are replaced.
grep -vE '^(mmengine|mmcv|mmdet)==' scripts/constraints.txt > "$VENV/constraints.txt"
export PIP_CONSTRAINT=$VENV/constraints.txt
pip() { "$PY" -m pip "$@"; }

say "torch and the development tools, in $VENV"
pip install -q "setuptools<81" wheel ninja psutil torch tensorboard opencv-python-headless \
    scikit-learn tqdm pycocotools pytest pytest-xdist import-linter wandb mlflow-skinny
say "onedl-mmengine $MMENGINE"
pip install -q "onedl-mmengine==$MMENGINE"
WHEEL=$("$PY" scripts/mmcv_build.py --name onedl-mmcv --mmcv $MMCV) || exit 1
say "onedl-mmcv $MMCV, onedl-mmdetection $MMDET"
pip install -q --force-reinstall --no-deps "$WHEEL"
pip install -q "$WHEEL"
pip install -q --no-build-isolation "onedl-mmdetection==$MMDET"
# Without its dependencies: it asks for a distribution named mmengine.
pip install -q --no-build-isolation --no-deps -e .
pip list 2>/dev/null | grep -E '^(torch|onedl|mm|numpy) *' || true

. scripts/hide_gpu.sh
workers=$(env -u OMP_NUM_THREADS nproc)
workers=$((workers < 8 ? workers : 8))
say "pytest, $workers at a time"
OMP_NUM_THREADS=1 "$PY" -m pytest -n "$workers" "$@"
