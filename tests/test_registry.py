"""``type='amp_hooks.X'`` builds from anywhere, by config alone."""

import inspect
import re

import pytest
from mmengine.registry import HOOKS as MMENGINE_HOOKS

import amp_hooks
from amp_hooks.registry import HOOKS, OPTIM_WRAPPERS
from tests import processes
from tests.helpers import REQUIRED


def build(type, **arguments):
    """As a Runner does, whatever default scope an earlier test has left."""
    return MMENGINE_HOOKS.build(dict(type=f"amp_hooks.{type}", **arguments))


NAMES = [n for n in amp_hooks.__all__ if n.endswith("Hook")]


@pytest.mark.parametrize("scope", [None, "mmengine", "mmdet", "nowhere"])
def test_builds_from_any_default_scope_without_imports(scope):
    """A fresh process that has never heard of amp_hooks."""
    code = f"""
from mmengine.registry import HOOKS, OPTIM_WRAPPERS, init_default_scope
if {scope!r}:
    init_default_scope({scope!r})
for name in {NAMES}:
    config = dict(type='amp_hooks.' + name, **{REQUIRED}.get(name, {{}}))
    assert type(HOOKS.build(config)).__name__ == name
assert OPTIM_WRAPPERS.get('amp_hooks.CpuAmpOptimWrapper') is not None
"""
    processes.code(code)


def test_import_needs_neither_mmdet_nor_mmcv_nor_tensorboard():
    code = """
import sys
for name in ('mmdet', 'mmcv', 'tensorboard', 'torch.utils.tensorboard'):
    sys.modules[name] = None
import amp_hooks.hooks, amp_hooks.precision.cpu_amp
assert 'mmengine' in sys.modules
"""
    processes.code(code)


def test_the_lazy_package_has_every_public_name():
    """``amp_hooks.X`` in a process that has imported the package and nothing else."""
    code = f"""
import amp_hooks, sys
assert 'torch' not in sys.modules
for name in {amp_hooks.__all__}:
    assert getattr(amp_hooks, name) is not None, name
assert set(amp_hooks.__all__) <= set(dir(amp_hooks))
for name in {NAMES}:
    assert getattr(amp_hooks.hooks, name) is getattr(amp_hooks, name), name
try:
    amp_hooks.nothing
except AttributeError as e:
    assert "has no attribute 'nothing'" in str(e)
else:
    raise AssertionError
"""
    processes.code(code)


def documented():
    classes = [HOOKS.get(n) for n in NAMES] + [OPTIM_WRAPPERS.get("CpuAmpOptimWrapper")]
    for cls in classes:
        for name, parameter in inspect.signature(cls.__init__).parameters.items():
            if name in REQUIRED.get(cls.__name__, {}):
                continue
            if name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
                yield pytest.param(
                    cls, name, parameter.default, id=f"{cls.__name__}-{name}"
                )


@pytest.mark.parametrize(("cls", "name", "default"), documented())
def test_documented_defaults_are_the_real_ones(cls, name, default):
    text = " ".join(inspect.getdoc(cls).split("Args:", 1)[1].split())
    match = re.search(rf"\b{name} \([^)]*\): .*?Defaults to ('?[\w.+-]+'?)", text)
    assert match, f"{cls.__name__} does not document {name}"
    shown = match[1].rstrip(".,")
    assert shown == repr(default)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_argument_names_the_hook_and_what_there_is(name):
    with pytest.raises(TypeError, match=f"{name} has no argument 'intervalx'"):
        build(type=name, intervalx=3)


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        (dict(type="RollbackHook", interval=0), ValueError, "interval.*at least 1"),
        (dict(type="RollbackHook", interval="5"), TypeError, "interval.*integer"),
        (dict(type="RollbackHook", intervall=5), TypeError, "mean 'interval'"),
        (dict(type="RollbackHook", lr_factor=2), ValueError, "lr_factor.*at most 1"),
        (dict(type="RollbackHook", patience=0), ValueError, "patience"),
        (dict(type="StabilityPanelHook", interval=0), ValueError, "interval"),
        (dict(type="HeadClampHook", limit=-1.0), ValueError, "limit.*greater than 0"),
        (dict(type="HeadClampHook", when="often"), ValueError, "when.*always"),
        (dict(type="HeadClampHook", trigger=1.0), ValueError, "trigger.*limit"),
        (dict(type="ClsScoreMonitorHook", targets=3), TypeError, "targets"),
        (dict(type="GradNormMonitorHook", groups="x"), TypeError, "groups.*dict"),
        (dict(type="LossScaleMonitorHook", patience=0.5), TypeError, "patience"),
    ],
)
def test_wrong_arguments_name_argument_and_remedy(config, error, words):
    with pytest.raises(error, match=words):
        build(**config)
