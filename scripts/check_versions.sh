#!/usr/bin/env bash
# Runs check_resume.py under other versions of torch and MMEngine than the one that
# setup_env.sh installs, each torch in an environment of its own.
#
#   bash scripts/check_versions.sh [torch2.4] [torch2.5] [torch2.6] [torch2.13]   (default: all)
#
# The first run downloads about 3 GB for each torch, because PyPI's have CUDA in them
# (200 MB with an index of CPU wheels in PIP_EXTRA_INDEX_URL), in 3 to 10 minutes; after
# that it takes 2 minutes for each MMEngine on 2 cores. No GPU, mmcv or mmdet is needed.
#
#   PYTHON              the interpreter to use (default: python3.11)
#   AMP_HOOKS_VERSIONS  where the environments are kept
#                       (default: amp_hooks_versions in the temporary folder)
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
PLACE=${AMP_HOOKS_VERSIONS:-${TMPDIR:-/tmp}/amp_hooks_versions}
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1
STARTED=$SECONDS

say() { printf '[versions %4ds] %s\n' $((SECONDS - STARTED)) "$*"; }
die() { printf '[versions] error: %s\n' "$*" >&2; exit 1; }

# check NAME TORCH NUMPY MMENGINE...: NumPy 1 for the torch of its time.
check() {
    local name=$1 torch=$2 numpy=$3 engine py=$PLACE/$1/bin/python
    shift 3
    say "$name: $torch $numpy in $PLACE/$name"
    [ -x "$py" ] || "$PYTHON" -m venv "$PLACE/$name" ||
        die "python -m venv failed (on Debian: apt-get install python3.11-venv)"
    # Not cached: gigabytes that nothing else needs.
    "$py" -m pip install -q --no-cache-dir "$torch" "$numpy" ||
        die "$torch could not be installed in $PLACE/$name"
    for engine; do
        # One or the other: the fork has the same import name.
        "$py" -m pip uninstall -q -y mmengine onedl-mmengine 2>/dev/null
        "$py" -m pip install -q "$numpy" "$engine" || die "$engine could not be installed"
        # MMEngine needs OpenCV, the fork does not bring it, and a machine without libGL
        # cannot load the build with windows. This release goes with NumPy 1 and 2.
        "$py" -c 'import cv2' 2>/dev/null || {
            "$py" -m pip uninstall -q -y opencv-python 2>/dev/null
            "$py" -m pip install -q --force-reinstall --no-deps opencv-python-headless==4.11.0.86
        }
        say "$name: $engine"
        PYTHONPATH=$PWD "$py" scripts/check_resume.py || failed+=("$torch + $engine")
    done
}

command -v "$PYTHON" >/dev/null ||
    die "no '$PYTHON' on PATH. Install Python 3.11 or name one: PYTHON=/path/to/python3.11"
for name; do
    case $name in torch2.4 | torch2.5 | torch2.6 | torch2.13) ;;
    *) die "'$name' is none of torch2.4, torch2.5, torch2.6, torch2.13" ;;
    esac
done
wanted() { [[ -z $ASKED || " $ASKED " == *" $1 "* ]]; }
ASKED=$*
failed=()
wanted torch2.4 &&
    check torch2.4 torch==2.4.1 numpy==1.26.4 mmengine==0.10.3 mmengine==0.10.7
wanted torch2.5 &&
    check torch2.5 torch==2.5.1 numpy==1.26.4 mmengine==0.10.7
wanted torch2.6 &&
    check torch2.6 torch==2.6.0 numpy==2.2.6 mmengine==0.10.5
wanted torch2.13 &&
    check torch2.13 torch==2.13.0 numpy==2.2.6 onedl-mmengine==0.10.12
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
say "all passed"
