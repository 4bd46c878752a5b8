"""What is installed is looked at when the hooks are imported, in one sentence."""

import pytest

from tests import processes

# As it is for someone whose torch or MMEngine is another one.
OLD = """
import torch, mmengine
{module}.__version__ = {version!r}
"""
IN_A_CONFIG = """
from mmengine.registry import HOOKS
HOOKS.build(dict(type='amp_hooks.RollbackHook'))
"""
IMPORTED = "from amp_hooks import RollbackHook"


@pytest.mark.parametrize("use", [IN_A_CONFIG, IMPORTED], ids=["config", "import"])
@pytest.mark.parametrize(
    ("module", "version", "words"),
    [
        ("torch", "1.13.1+cu117", "needs torch 2.0 or later, and this is torch 1.13.1"),
        ("mmengine", "0.7.4", "needs mmengine 0.8 or later, and this is mmengine 0.7"),
    ],
)
def test_too_old(module, version, words, use):
    old = OLD.format(module=module, version=version)
    done = processes.code(old + use, status=1)
    last = done.stderr.strip().splitlines()[-1]
    assert "MissingError" in last
    assert words in last
    assert "mmcv" in last


def test_there_is_no_torch():
    """A report can be read there all the same."""
    missing = """
import sys
sys.modules['torch'] = None
import amp_hooks, amp_hooks.report
"""
    done = processes.code(missing + IMPORTED, status=1)
    last = done.stderr.strip().splitlines()[-1]
    assert "amp_hooks needs torch 2.0 or later, which is not installed" in last


@pytest.mark.parametrize("version", ["2.0.0", "2.1.2+cu118", "2.13.0a0+gitabc", "3.0"])
def test_new_enough(version):
    processes.code(OLD.format(module="torch", version=version) + IMPORTED)
