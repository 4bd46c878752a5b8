#!/usr/bin/env bash
# What can only be seen on a machine with a GPU, in at most 8 minutes: one table, one
# JSON file, exit status 1 if a check has failed. Without a card it rehearses itself on
# the CPU, made tiny, and says so.
#
#   bash scripts/gpu_check.sh [--out DIR] [--only CHECK...] [--minutes N] [--rehearse]
#   bash scripts/gpu_check.sh --wheels DIR ...
#
# Needs torch, mmengine, mmcv and mmdet, and no network; amp_hooks is this checkout's.
# Checks: operators bits rollback overflow waits launches time memory snapshots fallback
# nccl preflight. The log of each is in DIR/checks (DIR: work_dirs/gpu_check).
#
# --wheels installs from a folder of wheels into a temporary place, for a machine that
# has torch and torchvision but neither mmcv nor a network; torchvision's operators then
# take the place of mmcv's, for this check alone. To fill the folder (8 MB; for Python
# 3.12; leave out --no-deps where OpenCV, matplotlib, SciPy, PyYAML, rich or TensorBoard
# are missing as well):
#
#   pip download --no-deps --only-binary=:all: --python-version 3.12 \
#     --implementation cp --platform manylinux_2_28_x86_64 \
#     --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d DIR \
#     mmengine==0.10.7 mmdet==3.3.0 mmcv-lite==2.1.0 addict yapf platformdirs \
#     pycocotools shapely terminaltables termcolor six 'setuptools<81'
#
#   PYTHON  the interpreter to use (default: .venv/bin/python if it is there, or python3)
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x "$ROOT/.venv/bin/python" ] && PYTHON=$ROOT/.venv/bin/python
fi
die() { printf '[gpu_check] error: %s\n' "$*" >&2; exit 2; }

options=() wheels=
while [ $# -gt 0 ]; do
    case $1 in
    --wheels)
        [ $# -gt 1 ] || die "--wheels needs a folder"
        wheels=$2
        shift
        ;;
    *) options+=("$1") ;;
    esac
    shift
done

command -v "$PYTHON" >/dev/null || die "no '$PYTHON' on PATH; name one: PYTHON=/path/to/python3"
export PYTHONPATH=$ROOT:$ROOT/scripts${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
if [ -n "$wheels" ]; then
    ls "$wheels"/*.whl >/dev/null 2>&1 || die "there are no wheels in '$wheels'"
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$PYTHON" -m pip install -q --no-index --no-deps --no-cache-dir --target "$site" \
        "$wheels"/*.whl || die "the wheels in '$wheels' could not be installed"
    export PYTHONPATH=$site:$PYTHONPATH
fi
missing=$("$PYTHON" -c 'import importlib.util as u, sys
print(*[m for m in ("torch", "mmengine", "mmcv", "mmdet") if not u.find_spec(m)])')
[ -z "$missing" ] || die "'$PYTHON' lacks $missing; see --wheels at the top of $0"
command -v nvidia-smi >/dev/null &&
    { nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used --format=csv || true; }
"$PYTHON" -W ignore -m gpu_check "${options[@]}"
