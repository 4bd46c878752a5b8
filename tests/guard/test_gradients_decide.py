"""What a step is judged by: gradients, and what the forward pass knows of itself."""

import math
import sys
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from amp_hooks.errors import TrainingDivergedError
from amp_hooks.report.cli import main as report
from tests import helpers, small

GUARD = [dict(type="amp_hooks.StepGuardHook")]
SUITE = [
    dict(
        type="amp_hooks.StabilityHook",
        preflight=None,
        rollback=dict(interval=5, probation=2),
    )
]
HOOKS = [GUARD, SUITE]
LOOPS = [dict(iters=40), dict(epochs=2)]
BAD = ("overflow", "veto", "rollback", "abort", "diverged")


class NoSamples(small.Small):
    """A second branch whose labels are mostly 'ignore': NaN, with a gradient of 0."""

    def __init__(self):
        super().__init__()
        self.aux = nn.Linear(16, 4)
        self.loss_aux = nn.CrossEntropyLoss(ignore_index=255)

    def losses(self, features, logits, y):
        target = torch.full_like(y, 255) if self.calls % 2 else y
        aux = self.loss_aux(self.aux(features).float(), target)
        return dict(super().losses(features, logits, y), loss_aux=aux)


class LogsNaN(small.Small):
    """DAFormer's feature distance, of images without a thing in them."""

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            losses = self(**self.data_preprocessor(data, True))
        loss = sum(losses.values())
        optim_wrapper.update_params(loss)
        return dict(losses, loss=loss.detach(), loss_distance=torch.tensor(math.nan))


@pytest.mark.parametrize("hooks", HOOKS, ids=["guard", "suite"])
@pytest.mark.parametrize("dtype", small.DTYPES)
@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize(
    ("model", "term"), [(NoSamples, "loss_aux"), (LogsNaN, "loss_distance")]
)
def test_a_loss_without_a_gradient_does_no_harm(
    tmp_path, model, term, loop, dtype, hooks
):
    """Stock trains on; so do we, bit for bit, and tell once."""
    stock = small.build(tmp_path, model=model, dtype=dtype, **loop)
    stock.train()
    runner = small.build(tmp_path, hooks, model, dtype, **loop)
    runner.train()
    assert small.same(small.state(stock), small.state(runner))
    (line,) = small.ledger(runner, "nan_term")
    assert list(line["losses"]) == [term]
    assert line["verdict"] == "HEALTHY"
    assert small.ledger(runner, *BAD) == []


def test_under_accumulation_as_well(tmp_path):
    wrapper = dict(accumulative_counts=4)
    stock = small.build(tmp_path, model=NoSamples, wrapper=wrapper)
    stock.train()
    runner = small.build(tmp_path, SUITE, NoSamples, wrapper=wrapper)
    runner.train()
    assert small.same(small.state(stock), small.state(runner))
    assert small.ledger(runner, *BAD) == []


class Cleaned(small.Small):
    """Ten public repositories do so."""

    def __init__(self):
        super().__init__()
        for p in self.parameters():
            p.register_hook(lambda g: torch.nan_to_num(g, nan=0, posinf=0, neginf=0))


def test_hooks_that_clean_gradients_are_told_of_once(tmp_path):
    hooks = [*SUITE, small.SpoilInputs([5, 9])]
    runner = small.build(tmp_path, hooks, Cleaned, iters=12, log_level="WARNING")
    runner.train()
    told = "may replace NaN by numbers (nan_to_num)"
    assert helpers.log(runner).count(told) == 1


class CleanedByStep(small.Small):
    """The same between the backward pass and the step."""

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            losses = self(**self.data_preprocessor(data, True))
        loss = losses["loss_cls"]
        optim_wrapper.backward(loss)
        for p in self.parameters():
            p.grad.nan_to_num_(0, 0, 0)
        optim_wrapper.step()
        optim_wrapper.zero_grad()
        return dict(losses, loss=loss.detach())


class CleanedWithoutNorm(Cleaned):
    """Nothing but the loss shows it."""

    def __init__(self):
        super().__init__()
        self.backbone[1] = nn.Identity()


class Floats(small.Small):
    """A training step that returns numbers, and calls no loss module."""

    def losses(self, features, logits, y):
        return dict(other=(logits[:, 0].float() - y).square().mean())

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            losses = self(**self.data_preprocessor(data, True))
        total = sum(losses.values())
        optim_wrapper.update_params(total)
        return {**{k: v.item() for k, v in losses.items()}, **dict(loss=total.item())}


@pytest.mark.parametrize("hooks", HOOKS, ids=["guard", "suite"])
@pytest.mark.parametrize("dtype", small.DTYPES)
@pytest.mark.parametrize(
    "model", [small.Small, Cleaned, CleanedByStep, CleanedWithoutNorm, Floats]
)
def test_a_forward_pass_that_fails_leaves_no_trace(tmp_path, model, dtype, hooks):
    seen = small.Seen(keep=(20, 21))
    spoil = small.SpoilInputs([20])
    runner = small.build(tmp_path, [*hooks, spoil, seen], model, dtype, 40)
    runner.train()
    assert small.same(seen.states[20], seen.states[21])
    (line,) = small.ledger(runner, "overflow")
    assert (line["iter"], line["verdict"]) == (20, "FORWARD_NONFINITE")
    assert all(value.isfinite().all() for value in small.state(runner).values())
    if dtype == "float16":  # the loss scale has nothing to do with it
        assert small.ledger(runner, "veto")[0]["scale"] == line["scale"]


@pytest.mark.parametrize("hooks", HOOKS, ids=["guard", "suite"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_batchnorm_that_becomes_infinite_under_a_finite_loss(tmp_path, dtype, hooks):
    """Inputs of 1e30: their variance is no number, the layer returns zeros."""
    spoil = small.SpoilInputs([20, 30], 1e30)
    stock = small.build(tmp_path, [spoil], dtype=dtype, iters=40)
    stock.train()
    assert not small.state(stock)["backbone.1.running_var"].isfinite().all()
    assert all(p.isfinite().all() for p in stock.model.parameters())

    seen = small.Seen(keep=(20, 21))
    runner = small.build(tmp_path, [*hooks, spoil, seen], dtype=dtype, iters=40)
    runner.train()
    assert small.same(seen.states[20], seen.states[21])
    lines = small.ledger(runner, "overflow")
    assert [line["iter"] for line in lines] == [20, 30]
    assert lines[0]["buffers"][0] == "backbone.1.running_mean" or lines[0]["buffers"]
    assert math.isfinite(seen.losses[20])


class Mask(small.Small):
    """An additive attention mask, kept from the first forward pass on."""

    def losses(self, features, logits, y):
        if not hasattr(self, "mask"):
            mask = torch.full((4, 4), -math.inf).triu(1)
            self.register_buffer("mask", mask, persistent=False)
        return super().losses(features, logits, y)


class NaNBuffer(small.Small):
    def __init__(self):
        super().__init__()
        self.register_buffer("unused", torch.full((3,), math.nan))


class NaNParameter(small.Small):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.full((3,), math.nan), requires_grad=False)


class NaNTrainable(small.Small):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.full((3,), math.nan))


class Expanded(small.Small):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(1).expand(10))


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@pytest.mark.parametrize(
    ("model", "ema"),
    [
        # MMEngine's EMA can do nothing with these two.
        (Mask, False),
        (Expanded, False),
        (NaNBuffer, False),
        (NaNBuffer, True),
        (NaNParameter, True),
        (NaNTrainable, True),
    ],
)
def test_what_was_never_finite_is_by_design(tmp_path, model, loop, ema):
    """Snapshots are taken and a rollback goes to one, which can be read back."""
    average = [dict(type="EMAHook")] if ema else []
    spoil = small.SpoilInputs([20, 21, 22])
    runner = small.build(tmp_path, [*SUITE, *average, spoil], model, **loop)
    runner.train()
    (line,) = small.ledger(runner, "rollback")
    assert line["verdict"] == "FORWARD_NONFINITE"
    assert 10 <= line["target_iter"] <= 20
    assert small.ledger(runner, "abort") == []
    again = dict(work_dir=runner.work_dir, resume=True)
    more = dict(iters=50) if "iters" in loop else dict(epochs=3)
    second = small.build(tmp_path, [*SUITE, *average], model, **more, **again)
    second.train()
    (line,) = small.ledger(second, "resume")
    assert Path(line["checkpoint"]).parent.name == "rollback"
    assert second.iter >= (50 if "iters" in loop else 96)


def test_a_used_parameter_that_is_nan_ends_soon(tmp_path):
    """There is no healthy step to show that it does no harm."""
    model = small.Small()
    with torch.no_grad():
        model.backbone[0].weight.fill_(math.nan)
    runner = small.build(tmp_path, SUITE, model)
    with pytest.raises(Exception, match="before the first iteration") as raised:
        runner.train()
    assert type(raised.value).__name__ == "TrainingDivergedError"
    assert runner.iter < 5


class Detr(small.Small):
    """generalized_box_iou of DETR and its copies."""

    def losses(self, features, logits, y):
        boxes1 = torch.cat([logits[:, :2] - 1, logits[:, :2].detach() + 1], 1)
        assert (boxes1[:, 2:] >= boxes1[:, :2]).all() or boxes1.isfinite().all()
        assert (boxes1[:, 2:] >= boxes1[:, :2] - 99).all(), f"incorrect {boxes1}"
        return super().losses(features, logits, y)


class Detectron2(small.Small):
    def losses(self, features, logits, y):
        if not torch.isfinite(logits).all():
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")
        return super().losses(features, logits, y)


class Sklearn(small.Small):
    def losses(self, features, logits, y):
        if not torch.isfinite(logits).all():
            raise ValueError("Input X contains NaN.")
        return super().losses(features, logits, y)


class Printed(small.Small):
    def losses(self, features, logits, y):
        if not torch.isfinite(logits).all():
            raise RuntimeError(f"cannot match costs {logits}")
        return super().losses(features, logits, y)


class OneHot(small.Small):
    """It says "Class values must be non-negative"."""

    def losses(self, features, logits, y):
        torch.nn.functional.one_hot(logits.softmax(1).sum(1).round().long(), 64)
        return super().losses(features, logits, y)


class NotFinite(small.Small):
    def losses(self, features, logits, y):
        losses = super().losses(features, logits, y)
        if not math.isfinite(losses["loss_cls"].item()):
            raise RuntimeError("Loss is not finite, stopping training")
        return losses


class InItsVariables(small.Small):
    def losses(self, features, logits, y):
        losses = super().losses(features, logits, y)
        assert losses["loss_cls"] < 1e9, "stopping training"
        return losses


@pytest.mark.parametrize(
    "model",
    [Detr, Detectron2, Sklearn, Printed, OneHot, NotFinite, InItsVariables],
)
def test_exceptions_that_are_nan_are_survived(tmp_path, model):
    spoil = small.SpoilInputs([20])
    runner = small.build(tmp_path, [*GUARD, spoil], model, iters=40)
    runner.train()
    (line,) = small.ledger(runner, "veto")
    assert (line["iter"], line["verdict"]) == (20, "RAISED")


class ReadsLosses(small.Hook):
    """As MMDetection's CheckInvalidLossHook and many hooks of users do."""

    def __init__(self):
        self.losses = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses[runner.iter] = (outputs["loss"].item(), outputs["loss_cls"].item())


@pytest.mark.parametrize("length", [dict(iters=40), dict(epochs=2)])
def test_hooks_that_read_the_losses_of_such_an_iteration(tmp_path, length):
    """They get NaN, as of any iteration that is refused."""
    hooks = [*GUARD, small.SpoilInputs([20]), theirs := ReadsLosses()]
    runner = small.build(tmp_path, hooks, Detr, **length)
    runner.train()
    assert small.ledger(runner, "veto")[0]["verdict"] == "RAISED"
    # Nobody takes them for losses of the run.
    assert small.ledger(runner, "nan_term") == []
    assert "losses" not in small.ledger(runner, "overflow")[0]
    assert len(theirs.losses) == runner.iter
    bad = [i for i, pair in theirs.losses.items() if not all(map(math.isfinite, pair))]
    assert bad == [20]
    assert all(map(math.isnan, theirs.losses[20]))


class Exits(small.Small):
    """As DETR's engine does."""

    def losses(self, features, logits, y):
        losses = super().losses(features, logits, y)
        if not math.isfinite(losses["loss_cls"].item()):
            sys.exit(1)
        return losses


@pytest.mark.parametrize("spoilt", [True, False])
def test_a_run_that_ends_itself_at_nan_is_lost(tmp_path, spoilt, capsys):
    """And one that a scheduler ends is not."""
    spoil = [small.SpoilInputs([20])] if spoilt else [ExitsAt(20)]
    runner = small.build(tmp_path, [*GUARD, *spoil], Exits, iters=40)
    with pytest.raises(SystemExit):
        runner.train()
    (abort,) = small.ledger(runner, "abort")
    assert (abort["error"], abort["iter"]) == ("SystemExit: 1", 20)
    assert abort["verdict"] == ("RAISED" if spoilt else "HEALTHY")
    assert report([str(runner.work_dir)]) == (2 if spoilt else 0)
    out = " ".join(capsys.readouterr().out.split())
    if spoilt:
        assert "the training step raised because of NaN: SystemExit: 1" in out
    else:
        assert "It has not ended: SystemExit: 1 in iteration 20" in out


class ExitsAt(small.Hook):
    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter == self.at:
            sys.exit(1)


class Always(small.Small):
    def losses(self, features, logits, y):
        if self.calls > 10:
            raise ValueError("matrix contains invalid numeric entries")
        return super().losses(features, logits, y)


def test_what_was_raised_in_vain_is_told_to_the_end(tmp_path):
    runner = small.build(tmp_path, SUITE, Always, iters=60)
    with pytest.raises(TrainingDivergedError) as ended:
        runner.train()
    text = "ValueError: matrix contains invalid numeric entries"
    (abort,) = small.ledger(runner, "abort")
    assert abort["error"] == text
    assert "rollbacks" in abort
    assert text in str(ended.value)
    # It came back at once each time: that is no learning rate.
    assert "another one is no cure" in str(ended.value)
    assert "lower learning rate" not in str(ended.value)


@OPTIM_WRAPPERS.register_module()
class CleaningOptimWrapper(OptimWrapper):
    """A user's own."""

    def step(self, **kwargs):
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    torch.nan_to_num_(p.grad, 0.0, 0.0, 0.0)
        super().step(**kwargs)


class RootOfZero(small.Small):
    """Its gate begins at 0, where the gradient of the root is infinite."""

    def __init__(self):
        super().__init__()
        self.gate, self.unused = nn.Parameter(torch.zeros(1)), nn.Linear(2, 2)

    def losses(self, features, logits, y):
        losses = super().losses(features, logits, y)
        losses["loss_gate"] = (1 - self.gate.sqrt()).pow(2).sum()
        return losses


@OPTIM_WRAPPERS.register_module()
class ByHandOptimWrapper(OptimWrapper):
    """Never asks its optimizer."""

    def step(self, **kwargs):
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad, alpha=-group["lr"])


def test_a_wrapper_that_steps_by_hand_is_guarded_before_it(tmp_path):
    hooks = [*GUARD, small.SpoilInputs([20])]
    options = dict(wrapper=dict(type="ByHandOptimWrapper"), iters=40)
    runner = small.build(tmp_path, hooks, **options)
    runner.train()
    (line,) = small.ledger(runner, "veto")
    assert (line["iter"], line["verdict"]) == (20, "FORWARD_NONFINITE")
    assert all(torch.isfinite(v).all() for v in small.state(runner).values())


CLEANING = dict(type="CleaningOptimWrapper")
ROLLBACK = dict(type="amp_hooks.RollbackHook", interval=5, probation=2)
BY_VALUE = dict(clip_grad=dict(type="value", clip_value=0.1))


@pytest.mark.parametrize("wrapper", [CLEANING, BY_VALUE], ids=["own", "by_value"])
@pytest.mark.parametrize("hooks", [GUARD, [SUITE], []], ids=["guard", "suite", "watch"])
def test_what_the_optimizer_gets_decides(tmp_path, wrapper, hooks):
    hooks = hooks or [dict(type="amp_hooks.GradNormMonitorHook"), ROLLBACK]
    stock = small.build(tmp_path, [], RootOfZero, wrapper=wrapper, iters=60)
    stock.train()
    options = dict(wrapper=wrapper, iters=60, log_level="WARNING")
    runner = small.build(tmp_path, hooks, RootOfZero, **options)
    runner.train()
    assert small.ledger(runner, "veto", "rollback", "overflow") == []
    assert small.same(small.state(stock), small.state(runner))
    assert all(torch.isfinite(v).all() for v in small.state(runner).values())


@pytest.mark.parametrize("wrapper", [CLEANING, BY_VALUE], ids=["own", "by_value"])
def test_a_forward_pass_that_is_not_finite_is_refused_all_the_same(tmp_path, wrapper):
    hooks = [*GUARD, small.SpoilInputs([20])]
    options = dict(wrapper=wrapper, iters=40)
    runner = small.build(tmp_path, hooks, RootOfZero, **options)
    runner.train()
    (line,) = small.ledger(runner, "veto")
    assert (line["iter"], line["verdict"]) == (20, "FORWARD_NONFINITE")
    assert all(torch.isfinite(v).all() for v in small.state(runner).values())


class Breaks(small.Small):
    def losses(self, features, logits, y):
        if self.calls == 21:
            raise KeyError("no such thing")
        return super().losses(features, logits, y)


class BreaksElsewhere(small.Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 20:
            raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("hooks", "model", "error"),
    [
        ([], Breaks, "KeyError: 'no such thing'"),
        ([BreaksElsewhere()], small.Small, "OSError: the disk is gone"),
    ],
)
def test_any_exception_that_ends_training_leaves_a_line(tmp_path, hooks, model, error):
    runner = small.build(tmp_path, [*SUITE, *hooks], model)
    with pytest.raises((KeyError, OSError)):
        runner.train()
    (line,) = small.ledger(runner, "abort")
    assert (line["iter"], line["error"]) == (20, error)


def test_the_loss_that_is_propagated_is_the_loss(tmp_path):
    """Under accumulation too, and whatever train_step calls it."""
    from amp_hooks.engine.runtime import Runtime

    wrapper = dict(accumulative_counts=4)
    for model in (small.Small, Floats):
        seen = small.Seen()
        hooks = [dict(type="amp_hooks.HealthHook"), seen]
        runner = small.build(tmp_path, hooks, model, iters=22, wrapper=wrapper)
        runner.train()
        records = Runtime.of(runner).recorder.records
        noted = [record.get("backward_loss") for record in records]
        assert noted == pytest.approx(seen.losses, rel=1e-5)


def test_nothing_stays_on_the_parameters(tmp_path):
    model = Cleaned()
    before = [len(p._backward_hooks) for p in model.parameters()]
    small.build(tmp_path, GUARD, model, iters=5).train()
    assert [len(p._backward_hooks) for p in model.parameters()] == before


class LateMask(small.Small):
    """A padding mask, made anew in each forward pass; padding comes late."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.zeros(4))

    def losses(self, features, logits, y):
        if self.calls > 20:
            self.mask = torch.tensor([0.0, 0.0, 0.0, -math.inf])
        return super().losses(features, logits, y)


class Lazy(small.Small):
    """Buffers that come and go, and kinds that have no norm."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(3))
        self.register_buffer("graph", torch.eye(4).to_sparse())
        self.register_buffer("phase", torch.zeros(3, dtype=torch.complex64))
        self.register_buffer("scale", torch.ones(3, dtype=torch.float64))
        float8 = getattr(torch, "float8_e4m3fn", torch.uint8)  # of torch 2.1
        self.register_buffer("codes", torch.ones(3).to(float8))

    def losses(self, features, logits, y):
        self.cache = None if self.calls % 3 else torch.zeros(3)
        return super().losses(features, logits, y)


class Wide(small.Small):
    """A parameter that is float64, one that is complex, and a sparse gradient."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        self.phase = nn.Parameter(torch.zeros(4, dtype=torch.complex64))
        self.table = nn.Embedding(4, 4, sparse=True)
        self.table.weight.register_hook(lambda grad: grad)

    def losses(self, features, logits, y):
        logits = logits + self.offset.float() + self.phase.real + self.table(y % 4) * 0
        return super().losses(features, logits, y)


@pytest.mark.parametrize("model", [LateMask, Lazy, Wide])
def test_odd_models_train_as_without_us(tmp_path, model):
    more = dict(wrapper=dict(optimizer=dict(type="SGD", lr=0.1)))
    stock = small.build(tmp_path, model=model, iters=60, **more)
    stock.train()
    suite = [dict(SUITE[0], panel=None)]
    runner = small.build(tmp_path, suite, model, iters=60, **more)
    runner.train()
    assert runner.iter == 60
    a, b = stock.model.parameters(), runner.model.parameters()
    assert all(torch.equal(p, q) for p, q in zip(a, b))
    assert small.ledger(runner, *BAD) == []
    if model is LateMask:  # the others hold what torch does not save
        assert small.ledger(runner, "snapshot")[-1]["iter"] > 40


def test_a_loop_that_steps_by_itself_forgets_old_faults(tmp_path):
    """Three bad losses in the whole run are not three in a row."""

    class Bare(small.Small):
        def train_step(self, data, optim_wrapper):
            loss = self(**self.data_preprocessor(data, True))["loss_cls"]
            bad = self.calls in (20, 60, 100)
            if not bad:
                optim_wrapper.optimizer.zero_grad()
                loss.backward()
                optim_wrapper.optimizer.step()
            return dict(loss=loss.detach() * (math.nan if bad else 1.0))

    stock = small.build(tmp_path, model=Bare, iters=120)
    stock.train()
    runner = small.build(tmp_path, SUITE, Bare, iters=120)
    runner.train()
    a, b = stock.model.parameters(), runner.model.parameters()
    assert all(torch.equal(p, q) for p, q in zip(a, b))
    assert small.ledger(runner, "rollback") == []
