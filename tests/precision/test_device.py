"""amp.py and amp_bf16.py: on a GPU where mmcv's operators run there."""

import pytest

from tests.helpers import ROOT
from tests.machines import Machine

HERE = ROOT / "configs/_base_"
CODE = """
import sys
from mmengine.config import Config
for name in {absent}:
    sys.modules[name] = None
fp16, bf16 = (Config.fromfile(f"{here}/{{n}}.py") for n in ("amp", "amp_bf16"))
assert fp16.optim_wrapper.type == bf16.optim_wrapper.type
print(fp16.optim_wrapper.type)
"""
REHEARSED, REAL = "amp_hooks.CpuAmpOptimWrapper", "AmpOptimWrapper"


@pytest.mark.parametrize(
    ("card", "environ", "absent", "expected"),
    [
        (False, {}, [], REHEARSED),
        (True, {}, [], REHEARSED),  # mmcv for the CPU: nms would fail on the card
        (True, dict(MMCV_BUILT_WITH="13.0"), [], REAL),
        (True, dict(MMCV_BUILT_WITH="13.0", CUDA_VISIBLE_DEVICES=""), [], REHEARSED),
        (True, {}, ["mmcv.ops"], REAL),  # mmcv-lite
        (True, {}, ["mmcv"], REAL),
        (False, {}, ["mmcv"], REHEARSED),
    ],
)
def test_where_a_config_trains(tmp_path, card, environ, absent, expected):
    machine = Machine(tmp_path, card=card, **environ)
    code = CODE.format(absent=absent, here=HERE)
    done = machine.python("-W", "ignore", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == expected
