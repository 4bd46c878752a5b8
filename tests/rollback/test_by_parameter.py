"""A rollback where param groups, the optimizer or layers have changed meanwhile."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

from amp_hooks.rollback.by_parameter import fit_state, fitting, layout_of
from tests import small


def sgd(model, *groups):
    named = dict(model.named_parameters())
    groups = [dict(params=[named[n] for n in names]) for names in groups]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"]):
        optimizer.state[p]["momentum_buffer"] = torch.full_like(p, float(i))
    return optimizer


def fit(model, before, now):
    states = (before.state_dict(), layout_of(before, model))
    return fit_state(*states, now.state_dict(), layout_of(now, model))


def first(state, number):
    own = state["state"].get(number)
    return None if own is None else float(own["momentum_buffer"].view(-1)[0])


@pytest.fixture
def model():
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))


def test_the_same_optimizer_gets_what_was_saved_itself(model):
    before = sgd(model, ["0.weight", "0.bias"])
    saved, layout = before.state_dict(), layout_of(before, model)
    assert fit_state(saved, layout, {}, layout_of(before, model)) is saved


def test_groups_in_another_order(model):
    before = sgd(model, ["0.weight", "0.bias"], ["1.weight"])
    before.param_groups[1]["weight_decay"] = 0.5
    now = sgd(model, ["1.weight"], ["0.bias", "1.bias", "0.weight"])
    state = fit(model, before, now)
    # 2, 1 and 0 as saved; the one that is new keeps its own.
    assert [first(state, i) for i in range(4)] == [2, 1, 2, 0]
    assert [g["weight_decay"] for g in state["param_groups"]] == [0.5, 0]
    now.load_state_dict(state)


def test_what_is_new_begins_without_a_state_that_is_not_finite(model):
    before = sgd(model, ["0.weight"])
    now = sgd(model, ["0.weight"], ["1.weight", "1.bias"])
    now.state[model[1].weight]["momentum_buffer"].fill_(torch.nan)
    state = fit(model, before, now)
    assert [first(state, i) for i in range(3)] == [0, None, 2]


def test_another_class_has_no_use_for_the_saved_state(model):
    before, now = sgd(model, ["0.weight"]), torch.optim.AdamW(model.parameters())
    state = fit(model, before, now)
    assert state["state"] == {}
    assert state["param_groups"] == now.state_dict()["param_groups"]


def test_a_parameter_of_another_shape_is_new(model):
    before = sgd(model, ["1.weight"])
    saved = before.state_dict(), layout_of(before, model)
    weights = model.state_dict()
    model[1] = torch.nn.Linear(2, 3)
    now = sgd(model, ["1.weight"])
    now.state[model[1].weight]["momentum_buffer"].fill_(7.0)
    state = fit_state(*saved, now.state_dict(), layout_of(now, model))
    assert state["state"][0]["momentum_buffer"].shape == (3, 2)
    kept = fitting(weights, model.state_dict())
    assert list(kept) == ["0.weight", "0.bias"]
    assert kept._metadata == weights._metadata


# --- real runs --------------------------------------------------------------------
@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class HeadOnly:
    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        pass

    def __call__(self, model):
        head = model.bbox_head.parameters()
        return OptimWrapper(torch.optim.SGD(head, lr=0.1, momentum=0.9))


class Unfreeze(Hook):
    """The backbone joins in a group of its own."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 12:
            group = dict(params=list(runner.model.backbone.parameters()), lr=0.01)
            runner.optim_wrapper.optimizer.add_param_group(group)


class Replace(Hook):
    """The optimizer is exchanged, or its wrapper."""

    def __init__(self, kind, wrapper):
        self.kind, self.wrapper = kind, wrapper

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 12:
            optimizer = self.kind(runner.model.parameters(), lr=0.01)
            if self.wrapper:
                runner.optim_wrapper = OptimWrapper(optimizer)
            else:
                runner.optim_wrapper.optimizer = optimizer


class Grow(Hook):
    """The model has one layer more."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 12:
            runner.model.backbone.append(torch.nn.BatchNorm1d(16))
            layer = runner.model.backbone[-1]
            group = dict(params=list(layer.parameters()), lr=0.01)
            runner.optim_wrapper.optimizer.add_param_group(group)


CHANGES = {
    "group": lambda: Unfreeze(),
    "layer": lambda: Grow(),
    "sgd": lambda: Replace(torch.optim.SGD, False),
    "adamw": lambda: Replace(torch.optim.AdamW, False),
    "wrapper": lambda: Replace(torch.optim.SGD, True),
    "adamw in a wrapper": lambda: Replace(torch.optim.AdamW, True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_goes_back_and_on(tmp_path, change):
    rollback = dict(type="amp_hooks.RollbackHook", interval=10, probation=1)
    seen = small.Seen(keep=(10, 20))
    only_head = dict(constructor="HeadOnly") if change == "group" else {}
    runner = small.build(
        tmp_path,
        hooks=[
            dict(rollback, warmup_iters=0, patience=3),
            dict(type="amp_hooks.StepGuardHook"),
            CHANGES[change](),
            seen,
            small.SpoilInputs(at=range(17, 20)),
        ],
        iters=40,
        wrapper=only_head,
    )
    runner.train()
    (line,) = small.ledger(runner, "rollback")
    assert (line["iter"], line["target_iter"]) == (19, 10)
    assert runner.iter == 40
    now = seen.states[20]
    assert small.same({k: now[k] for k in seen.states[10]}, seen.states[10])
    for p in runner.model.parameters():
        assert torch.isfinite(p).all()
