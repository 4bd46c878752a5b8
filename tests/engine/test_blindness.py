"""What cannot be seen of a run is told within 20 iterations; the rest is acted on."""

import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from tests import helpers
from tests.small import (
    DTYPES,
    RaiseLR,
    Small,
    SpoilInputs,
    build,
    ledger,
    same,
    state,
)

SUITE = dict(type="amp_hooks.StabilityHook", rollback=dict(interval=5, probation=2))
UNSEEN = "no optimizer step has been seen"
PAST = "steps the torch optimizer itself"
CLOSURE = "gives the torch optimizer a closure"


class Loop(IterBasedTrainLoop):
    """Does in its own way what ``train_step`` does."""

    returns_loss = True

    def run_iter(self, data_batch):
        r, at = self.runner, dict(batch_idx=self._iter, data_batch=data_batch)
        r.call_hook("before_train_iter", **at)
        with r.optim_wrapper.optim_context(r.model):
            data = r.model.data_preprocessor(data_batch, True)
            losses = r.model(**data, mode="loss")
        loss, logged = r.model.parse_losses(losses)
        self.update(r.optim_wrapper, loss)
        logged = logged if self.returns_loss else None
        r.call_hook("after_train_iter", **at, outputs=logged)
        self._iter += 1


class BareStep(Loop):
    def update(self, wrapper, loss):
        wrapper.backward(wrapper.scale_loss(loss))
        if wrapper.should_update():
            wrapper.optimizer.step()
            wrapper.optimizer.zero_grad()


class NothingOfTheWrapper(Loop):
    def update(self, wrapper, loss):
        wrapper.optimizer.zero_grad()
        loss.backward()
        wrapper.optimizer.step()


class Silent(NothingOfTheWrapper):
    returns_loss = False


class WithClosure(Loop):
    def update(self, wrapper, loss):
        wrapper.optimizer.zero_grad()
        wrapper.backward(loss)
        wrapper.optimizer.step(lambda: loss.detach())


class ByHand(Loop):
    """Updates the weights without any optimizer."""

    def update(self, wrapper, loss):
        wrapper.backward(loss)
        with torch.no_grad():
            for group in wrapper.optimizer.param_groups:
                for p in group["params"]:
                    p -= group["lr"] * p.grad
                    p.grad = None


class ScalerByHand(Loop):
    """As in a training script of torch's own."""

    def update(self, wrapper, loss):
        scaler = wrapper.loss_scaler
        scaler.scale(loss).backward()
        scaler.step(wrapper.optimizer)
        scaler.update()
        wrapper.optimizer.zero_grad()


def runner_of(tmp_path, loop, hooks, iters=40, at=(), **more):
    more.setdefault("log_level", "WARNING")
    runner = build(tmp_path, [SpoilInputs(at), *hooks], iters=iters, **more)
    runner._train_loop = loop(runner, runner._train_dataloader, iters)
    return runner


@pytest.mark.parametrize("loop", [BareStep, NothingOfTheWrapper, ByHand])
def test_watching_a_loop_of_ones_own_changes_nothing(tmp_path, loop):
    states = []
    for hooks in ([], [SUITE]):
        runner = runner_of(tmp_path, loop, hooks)
        runner.train()
        states.append(state(runner))
    assert same(*states)
    assert not ledger(runner, "veto", "rollback", "watch")


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize(
    ("loop", "words"),
    [(BareStep, PAST), (NothingOfTheWrapper, PAST), (WithClosure, CLOSURE)],
)
def test_steps_past_the_wrapper_are_told_at_once(tmp_path, loop, words, accumulate):
    wrapper = dict(accumulative_counts=accumulate)
    runner = runner_of(tmp_path, loop, [SUITE], iters=5, wrapper=wrapper)
    runner.train()
    assert helpers.log(runner).count(words) == 1


def test_steps_that_nobody_can_see_are_told(tmp_path):
    runner = runner_of(tmp_path, ByHand, [SUITE], iters=20)
    runner.train()
    assert helpers.log(runner).count(UNSEEN) == 1


def test_a_loop_that_shows_no_loss_is_told(tmp_path):
    runner = runner_of(tmp_path, Silent, [SUITE], iters=20)
    runner.train()
    assert helpers.log(runner).count("no loss has been seen") == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("accumulate", [1, 16])
def test_an_ordinary_run_is_told_nothing(tmp_path, dtype, accumulate):
    """Nor one that accumulates for long, or whose first steps overflow."""
    wrapper = dict(accumulative_counts=accumulate)
    if dtype == "float16":
        wrapper["loss_scale"] = dict(init_scale=2.0**40)
    more = dict(dtype=dtype, wrapper=wrapper, log_level="WARNING")
    runner = build(tmp_path, [SUITE], iters=40, **more)
    runner.train()
    for words in (UNSEEN, PAST, "no loss has been seen"):
        assert words not in helpers.log(runner)


@pytest.mark.parametrize("loop", [BareStep, NothingOfTheWrapper, ByHand])
def test_snapshots_are_recent(tmp_path, loop):
    runner = runner_of(tmp_path, loop, [SUITE])
    runner.train()
    assert max(line["iter"] for line in ledger(runner, "snapshot")) >= 30


@pytest.mark.parametrize("loop", [BareStep, NothingOfTheWrapper])
def test_a_bad_step_past_the_wrapper_leaves_no_trace(tmp_path, loop):
    """Weights, BatchNorm and momentum are those of a run without that batch."""
    runner = runner_of(tmp_path, loop, [SUITE], at=[30])
    states = []

    def keep(_):
        momentum = runner.optim_wrapper.optimizer.state_dict()["state"]
        whole = {f"momentum.{i}": s["momentum_buffer"] for i, s in momentum.items()}
        states.append({n: t.clone() for n, t in {**state(runner), **whole}.items()})

    hook = helpers.hook_of(runner, "SpoilInputs")
    original = hook.before_train_iter
    hook.before_train_iter = lambda r, **kw: (
        keep(r) if r.iter in (30, 31) else None,
        original(r, **kw),
    )
    runner.train()
    assert [line["iter"] for line in ledger(runner, "veto")] == [30]
    assert not ledger(runner, "rollback")
    assert same(*states)


class Closure(Small):
    """LBFGS computes the gradients anew, within the step."""

    def train_step(self, data, optim_wrapper):
        optimizer = optim_wrapper.optimizer

        def closure():
            optimizer.zero_grad()
            loss = self(**data)["loss_cls"]
            loss.backward()
            return loss

        return dict(loss=optimizer.step(closure).detach())


def test_steps_that_compute_their_gradients_are_said_to(tmp_path):
    wrapper = dict(optimizer=dict(type="LBFGS", lr=0.1, max_iter=2))
    more = dict(model=Closure, wrapper=wrapper, iters=40, log_level="WARNING")
    runner = build(tmp_path, [SUITE, SpoilInputs(at=[33])], **more)
    runner.train()
    said = " ".join(helpers.log(runner).split())
    assert said.count(CLOSURE) == 1
    assert "no optimizer step," not in said
    assert all(t.isfinite().all() for t in state(runner).values())


def test_a_loop_whose_steps_are_not_seen_goes_back_to_a_recent_snapshot(tmp_path):
    runner = runner_of(tmp_path, ByHand, [SUITE], at=[33])
    runner.train()
    (line,) = ledger(runner, "rollback")
    assert line["target_iter"] >= 20
    assert all(t.isfinite().all() for t in state(runner).values())


@pytest.mark.parametrize("loop", [BareStep, ByHand])
def test_a_run_of_such_a_loop_that_diverges_goes_back(tmp_path, loop):
    """The learning rate has become 3000 times what it was, which is taken back.

    Where no step can be refused, weights overflow before the losses say so.
    """
    runner = runner_of(tmp_path, loop, [RaiseLR(3000.0), SUITE], iters=160)
    runner.train()
    (line,) = ledger(runner, "rollback")
    assert line["verdict"] == ("STATE_NONFINITE" if loop is ByHand else "DIVERGED")
    assert 40 <= line["target_iter"] <= 60
    assert line["lr_factor"] <= 1 / 100
    assert all(t.isfinite().all() for t in state(runner).values())


def test_a_scaler_by_hand_trains_as_without_us(tmp_path):
    states = []
    for hooks in ([], [SUITE]):
        runner = runner_of(tmp_path, ScalerByHand, hooks, dtype="float16")
        runner.train()
        states.append(state(runner))
    assert same(*states)
    assert not ledger(runner, "veto", "rollback", "watch")
    assert max(line["iter"] for line in ledger(runner, "snapshot")) >= 30


class Copies(Hook):
    """As one does that keeps an average of its own."""

    priority = 5

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.model = copy.deepcopy(runner.model)


def test_a_model_can_be_copied_while_its_classifiers_are_searched(tmp_path):
    """No graph is in the way."""
    runner = build(tmp_path, [Copies(), SUITE], iters=3)
    runner.train()
    assert runner.iter == 3
