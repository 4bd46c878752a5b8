#!/usr/bin/env bash
# Everything that must be green: ruff, mypy, pytest. Makes the environment first.
#
#   bash scripts/test.sh [--all] [pytest arguments]
#
# The slowest tests are left out, a tenth of them (tests/short.py), unless --all is given.
set -euo pipefail
cd "$(dirname "$0")/.."
SHORT=--short MINUTES=20
if [ "${1:-}" = --all ]; then
    SHORT="" MINUTES=50
    shift
fi
bash scripts/setup_env.sh
PY=.venv/bin/python
. scripts/hide_gpu.sh
workers=$(env -u OMP_NUM_THREADS nproc)  # which would say 1 if that is set to 1
workers=$((workers < 8 ? workers : 8))
export OMP_NUM_THREADS=1  # the models are tiny; more threads only get in the way
echo "[test] ruff"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
echo "[test] mypy"
.venv/bin/mypy
echo "[test] pytest, $workers at a time; about ${MINUTES} minutes on 2 cores"
$PY -m pytest ${SHORT:+"$SHORT"} -n "$workers" "$@"
