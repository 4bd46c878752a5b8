"""Copies and files of the model hold nothing of ours, and methods are given back."""

import copy
import io
import pickle
import warnings
from contextlib import ExitStack

import pytest
import torch
from mmengine.hooks import Hook

from amp_hooks.engine.no_trace import NoTrace
from amp_hooks.engine.patch import replace, wrap
from tests import helpers, small

SUITE = dict(
    type="amp_hooks.StabilityHook",
    head_clamp=dict(when="always"),
    rollback=dict(interval=2, probation=1),
)


def hooks_of(model):
    """What is registered on its modules, and what stands in the place of methods."""
    return [
        (name, key, len(value) if key.endswith("_hooks") else value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if (key.endswith("_hooks") and value)
        or callable(value)
        or key == "__getstate__"
    ]


class Copies(Hook):
    """Somebody's hook that copies the model in the middle of a run."""

    priority = "LOWEST"

    def __init__(self, at=3):
        self.at, self.copies, self.busy = at, [], 0

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == self.at:
            self.busy = len(hooks_of(runner.model))
            file = io.BytesIO()
            torch.save(runner.model, file)
            file.seek(0)
            self.copies = [
                copy.deepcopy(runner.model),
                torch.load(file, weights_only=False),
            ]


class WithMethod(small.Small):
    """A user's own method on one instance."""

    def __init__(self):
        super().__init__()
        self.bbox_head.loss_by_feat = TheirLoss(self.bbox_head.loss_cls)

    def losses(self, features, logits, y):
        return dict(loss_cls=self.bbox_head.loss_by_feat(logits, y))


class TheirLoss:
    def __init__(self, loss):
        self.loss = loss

    def __call__(self, cls_score, y):
        return self.loss(cls_score.float(), y)


@pytest.mark.parametrize("model", [small.Small, WithMethod])
def test_copies_in_the_middle_of_a_run(tmp_path, model):
    user = Copies()
    runner = small.build(tmp_path, [SUITE, user], model=model, iters=6)
    before = hooks_of(runner.model)
    runner.train()
    assert user.busy > len(before)
    assert hooks_of(runner.model) == before
    whole, loaded = user.copies
    for made in user.copies:
        assert hooks_of(made) == [
            (n, k, v if not callable(v) else getattr(made.get_submodule(n), k))
            for n, k, v in before
        ]
        # Its own, and not the original's: they are trained apart.
        x, y = torch.ones(4, 8), torch.zeros(4, dtype=torch.long)
        made.forward(x, y)["loss_cls"].backward()
        assert made.bbox_head.fc_cls.weight.grad is not None
    assert small.same(whole.state_dict(), loaded.state_dict())


def test_a_detector_can_be_saved_whole(build):
    user = Copies()
    runner = build("retinanet", iters=5, hooks=[SUITE], ema=True)
    runner.register_hook(user)
    before = hooks_of(runner.model)
    runner.train()
    assert user.busy > len(before)
    assert [hooks_of(made) for made in user.copies] == [before, before]
    assert helpers.ledger(runner, "failure") == []


def test_a_state_of_the_modules_own_is_asked_for():
    class Own(torch.nn.Linear):
        def __getstate__(self):
            return dict(vars(self), mine=1)

    module, trace = torch.nn.Sequential(Own(2, 2)), NoTrace()
    module[0].register_forward_hook(lambda *args: None)  # not ours
    undo = wrap(module[0], "forward", lambda original, x: original(x) + 1)
    trace.attach(module)
    made = copy.deepcopy(module)
    assert made[0].mine == 1
    assert len(made[0]._forward_hooks) == 1
    x = torch.ones(1, 2)
    torch.testing.assert_close(made(x) + 1, module(x))
    undo()
    trace.detach()
    torch.testing.assert_close(made(x), module(x))
    assert "__getstate__" not in vars(module[0])


class Idiom(torch.nn.Linear):
    def __deepcopy__(self, memo):
        made = type(self).__new__(type(self))
        for key, value in self.__dict__.items():
            made.__dict__[key] = copy.deepcopy(value, memo)
        return made


def test_a_module_that_copies_itself_is_left_alone():
    """Its copy would hold what belongs to the original, and be written as that."""

    model, trace = torch.nn.Sequential(Idiom(1, 1), torch.nn.Linear(1, 1)), NoTrace()
    trace.attach(model)
    assert "__getstate__" not in vars(model[0])
    assert "__getstate__" in vars(model[1])
    made = copy.deepcopy(model)
    trace.detach()
    with torch.no_grad():
        model[0].weight.fill_(7.0)
    again = pickle.loads(pickle.dumps(made))
    assert torch.equal(again[0].weight, made[0].weight)
    assert not any("__getstate__" in vars(m) for m in (*made, *again))


def test_the_way_hooks_are_called_goes_with_them(tmp_path):
    """Their ids begin anew in another process, for hooks of the user's own."""

    class Saves(Hook):
        priority = "LOWEST"

        def after_train_iter(self, runner, *args, **kwargs):
            self.made = copy.deepcopy(runner.model)

    user = Saves()
    small.build(tmp_path, [SUITE, user], iters=3).train()
    ways = [
        (name, key)
        for name, module in user.made.named_modules()
        for key, value in vars(module).items()
        if "_hooks" in key and isinstance(value, dict) and value
    ]
    assert ways == []


def test_what_somebody_put_on_top_of_a_replaced_attribute_stays():
    class Thing:
        def method(self):
            return "own"

    thing, stack = Thing(), ExitStack()
    replace(thing, "method", lambda: "ours", stack)
    thing.method = theirs = lambda: "theirs"
    stack.close()
    assert thing.method is theirs
    replace(thing, "method", lambda: "ours", stack)
    del thing.method
    stack.close()
    assert thing.method() == "own"


def test_layers_go_in_any_order():
    class Thing:
        def method(self, x):
            return [x]

    thing = Thing()
    first = wrap(thing, "method", lambda original, x: [*original(x), "first"])
    second = wrap(thing, "method", lambda original, x: [*original(x), "second"])
    assert thing.method(0) == [0, "first", "second"]
    first()
    assert thing.method(0) == [0, "second"]
    second()
    second()
    assert "method" not in vars(thing)
    thing.method = own = lambda x: ["own", x]
    undo = wrap(thing, "method", lambda original, x: [*original(x), "ours"])
    ours = thing.method
    thing.method = lambda x: [*ours(x), "theirs"]  # on top of ours
    assert thing.method(0) == ["own", 0, "ours", "theirs"]
    undo()
    assert thing.method(0) == ["own", 0, "theirs"]
    thing.method = own
    undo = wrap(thing, "method", lambda original, x: [*original(x), "ours"])
    undo()
    assert vars(thing)["method"] is own


@pytest.mark.parametrize("damage", [[], [0]], ids=["taken", "refused"])
def test_a_scheduler_knows_of_the_first_step(tmp_path, damage):
    """Or MMEngine warns: of a step that is overridden, or has not been called."""
    scheduler = dict(type="ConstantLR", by_epoch=False, factor=1.0, begin=0, end=9)
    hooks = [small.SpoilInputs(damage), SUITE]
    runner = small.build(tmp_path, hooks, iters=2, param_scheduler=scheduler)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        runner.train()
    assert len(small.ledger(runner, "veto")) == len(damage)
    assert [w for w in seen if "optimizer.step()" in str(w.message)] == []
