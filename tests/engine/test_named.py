"""Names without what torch wraps around modules."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    checkpoint_wrapper,
)

from amp_hooks.engine.named import (
    named_buffers,
    named_modules,
    named_parameters,
    submodule,
)
from tests import small


def wrapped():
    model = small.Small()
    model.backbone = checkpoint_wrapper(model.backbone)
    model.bbox_head.fc_cls = checkpoint_wrapper(model.bbox_head.fc_cls)
    return model


def test_they_are_those_of_the_model():
    plain, model = small.Small(), wrapped()
    for named in (named_modules, named_parameters, named_buffers):
        names = [name for name, _ in named(plain)]
        assert [name for name, _ in named(model)] == names
    assert dict(named_modules(plain)) == dict(plain.named_modules())
    # The layer itself, not what is wrapped around it.
    assert type(dict(named_modules(model))["bbox_head.fc_cls"]) is nn.Linear
    assert {name for name, _ in named_parameters(model)} <= model.state_dict().keys()


def test_one_of_them():
    model = wrapped()
    assert type(submodule(model, "bbox_head.fc_cls")) is nn.Linear
    assert type(submodule(model, "backbone")) is nn.Sequential
    assert type(submodule(model, "backbone.1")) is nn.BatchNorm1d
    assert submodule(model, "") is model
    with pytest.raises(AttributeError, match="nothing"):
        submodule(model, "backbone.nothing")


def test_a_run_with_activation_checkpointing(tmp_path):
    """Its classifier is found and its snapshots are those of the model."""
    suite = dict(type="amp_hooks.StabilityHook", boxes=None, preflight=None)
    suite.update(rollback=dict(interval=10, probation=1))
    bad = small.SpoilInputs(at=range(15, 18))
    runner = small.build(tmp_path, [bad, suite], wrapped(), iters=30)
    runner.train()
    (line,) = small.ledger(runner, "rollback")
    assert line["target_iter"] == 10
    (line,) = small.ledger(runner, "clamp_on")
    (overflow, *_) = small.ledger(runner, "overflow")
    assert overflow["layers"] == ["bbox_head.fc_cls"]
    (path,) = tmp_path.rglob("rollback/iter_*.pth")
    saved = torch.load(path, weights_only=False)
    assert saved["state_dict"].keys() == small.Small().state_dict().keys()
