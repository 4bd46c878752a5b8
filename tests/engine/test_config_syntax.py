"""Lines for a pure Python config do there what they do in a text config."""

import pytest
from mmengine.config import Config

from amp_hooks.engine.config_syntax import in_pure_python, is_pure_python
from amp_hooks.report.read.config import parse_config

BASE = """
from mmengine.hooks import EMAHook
from mmengine.optim import AmpOptimWrapper
from torch.optim import SGD

optim_wrapper = dict(
    type=AmpOptimWrapper, loss_scale=512.0, optimizer=dict(type=SGD, lr=0.02)
)
custom_hooks = [dict(type=EMAHook)]
"""
MINE = """
from mmengine.config import read_base

with read_base():
    from .base import *
"""
WRAPPER = dict(
    type="mmengine.optim.AmpOptimWrapper",
    loss_scale=512.0,
    optimizer=dict(type="torch.optim.SGD", lr=0.02),
)


@pytest.fixture
def read(tmp_path):
    def read(lines):
        (tmp_path / "base.py").write_text(BASE)
        path = tmp_path / "mine.py"
        path.write_text(MINE + in_pure_python(lines, {"optim_wrapper"}) + "\n")
        return Config.fromfile(path)

    return read


@pytest.mark.parametrize(
    ("lines", "name", "value"),
    [
        (
            "optim_wrapper = dict(clip_grad=dict(max_norm=35))",
            "optim_wrapper",
            dict(WRAPPER, clip_grad=dict(max_norm=35)),
        ),
        (
            "optim_wrapper = dict(optimizer=dict(lr=0.1))",
            "optim_wrapper",
            dict(WRAPPER, optimizer=dict(type="torch.optim.SGD", lr=0.1)),
        ),
        (
            "optim_wrapper = dict(_delete_=True, type='OptimWrapper', optimizer=dict("
            "type='torch.optim.AdamW'))",
            "optim_wrapper",
            dict(
                type="mmengine.optim.OptimWrapper",
                optimizer=dict(type="torch.optim.AdamW"),
            ),
        ),
        (
            "optim_wrapper = dict(optimizer=dict(_delete_=True, type='torch.optim."
            "AdamW', lr=0.1), accumulative_counts=2)",
            "optim_wrapper",
            dict(
                WRAPPER,
                accumulative_counts=2,
                optimizer=dict(type="torch.optim.AdamW", lr=0.1),
            ),
        ),
        # Not inherited, so there is nothing to update.
        ("auto_scale_lr = dict(enable=True)", "auto_scale_lr", dict(enable=True)),
        ("resume = True", "resume", True),
        (
            "custom_hooks = [\n    dict(type='amp_hooks.StabilityHook'),\n]",
            "custom_hooks",
            [dict(type="amp_hooks.StabilityHook")],
        ),
    ],
)
def test_the_same_by_other_lines(read, lines, name, value):
    assert read(lines).to_dict()[name] == value


def test_an_entry_keeps_its_comma_and_its_place():
    lines = "# in param_scheduler, first:\ndict(type='LinearLR', by_epoch=False),"
    assert in_pure_python(lines, set()).splitlines() == [
        "# at the top:",
        "from mmengine.optim import LinearLR",
        "# in param_scheduler, first:",
        "dict(type=LinearLR, by_epoch=False),",
    ]


@pytest.mark.parametrize("lines", ["dict(type='EMAHook', ...),", "a = (", "# a note"])
def test_what_is_no_python_stays_as_it_is(lines):
    assert in_pure_python(lines, set()) == lines


def test_a_dump_tells_what_it_was(read, tmp_path):
    cfg = read("")
    cfg.dump(tmp_path / "dump.py")
    assert is_pure_python(parse_config((tmp_path / "dump.py").read_text()))
    assert is_pure_python(cfg.to_dict())
    text = dict(optim_wrapper=dict(type="OptimWrapper"), a=[dict(type="mmdet.X")])
    assert not is_pure_python(text)
    assert not is_pure_python({})
