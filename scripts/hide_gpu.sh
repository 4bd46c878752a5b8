# Sourced by what trains in an environment, after PY was set to its interpreter.
# MMEngine's Runner takes a GPU wherever torch sees one, and mmcv's operators, where they
# were built for the CPU only, fail there at the first call. So the GPU is hidden then.
# Sets HIDDEN to what a user has to put before a command to get the same.
HIDDEN=
case $("$PY" -W ignore -c 'import torch
from mmcv.ops import get_compiling_cuda_version
print("built with", get_compiling_cuda_version(), torch.cuda.is_available())' | tail -n 1) in
"built with not available True")
    export CUDA_VISIBLE_DEVICES=
    HIDDEN="CUDA_VISIBLE_DEVICES= "
    echo "[gpu] mmcv has operators for the CPU only, so the GPU is hidden and this runs on" \
        "the CPU. For the GPU: AMP_HOOKS_CUDA=1 (docs/en/get_started.md)" ;;
"built with not available "*) echo "[gpu] none is used: mmcv has operators for the CPU" ;;
"built with "*" True") echo "[gpu] used: mmcv has operators for CUDA" ;;
"built with "*) echo "[gpu] none is visible; mmcv has operators for CUDA and for the CPU" ;;
esac
