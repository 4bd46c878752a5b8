"""Classes of the user's own, whatever they do when they are looked at."""

import copy
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from amp_hooks.engine.hook import AmpHook
from amp_hooks.engine.of_others import ByIdentity, attribute, first_line, has, text_of
from amp_hooks.engine.runtime import Runtime
from tests import small

SUITE = dict(
    type="amp_hooks.StabilityHook", rollback=dict(interval=10, probation=2), panel=None
)


class Raises:
    def __getattr__(self, name):
        raise KeyError(name)


def test_attributes():
    assert attribute(Raises(), "tensor", 3) == 3
    assert not has(Raises(), "tensor")
    assert has("", "join")


class Mute(ValueError):
    def __str__(self):
        raise ZeroDivisionError


def test_texts():
    assert text_of(Mute()) == "Mute"
    assert text_of(KeyError("a")) == "'a'"
    assert first_line(MemoryError()) == ""
    assert first_line(ValueError("one\ntwo")) == "one"


class Odd:
    __hash__ = None

    def __eq__(self, other):
        raise ZeroDivisionError


def test_by_identity():
    kept, a, b = ByIdentity(), Odd(), Odd()
    kept[a] = 1
    assert a in kept
    assert b not in kept
    assert kept[a] == 1
    del a
    kept[b] = 2
    kept.discard(b)
    kept.discard(b)
    assert b not in kept
    assert not kept._kept


class EqualToAll(small.Hook):
    """What it says of equality has no truth value."""

    priority = 1
    __hash__ = small.Hook.__hash__

    def __eq__(self, other):
        return torch.ones(3) == 1


@dataclass
class DataHook(small.Hook):
    """Has no hash."""

    seen: list = field(default_factory=list)

    def after_train_iter(self, runner, *args, **kwargs):
        self.seen.append(runner.iter)


@OPTIM_WRAPPERS.register_module()
class AttributesAreItems(OptimWrapper):
    def __getattr__(self, name):
        raise KeyError(name)


class OddRunner(Runner):
    __hash__ = None

    def __eq__(self, other):
        raise ZeroDivisionError


class OddLoop(IterBasedTrainLoop):
    __hash__ = None


class OddLoopRunner(Runner):
    def build_train_loop(self, loop):
        return OddLoop(self, self._train_dataloader, max_iters=loop["max_iters"])


class NoLength(small.Small):
    def __len__(self):
        raise TypeError("does not support len()")


def compiled():
    return torch.compile(small.Small(), backend="eager")


class Buffer(small.Small):
    def __init__(self, buffer):
        super().__init__()
        self.register_buffer("odd", buffer)


def quantized():
    return Buffer(torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8))


def sparse():
    return Buffer(torch.eye(4).to_sparse())


def compressed():
    return Buffer(torch.eye(4).to_sparse_csr())


CASES = {
    "equal": dict(hooks=[EqualToAll()]),
    "no hash": dict(hooks=[DataHook()]),
    "items": dict(wrapper=dict(type="AttributesAreItems")),
    "runner": dict(kind=OddRunner),
    "loop": dict(kind=OddLoopRunner),
    "no length": dict(model=NoLength),
    "quantized": dict(model=quantized),
    "sparse": dict(model=sparse),
    "compressed": dict(model=compressed),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:.*quantiz")
@pytest.mark.parametrize("case", CASES)
def test_a_run_with_them_is_that_of_stock_and_guarded(tmp_path, case):
    """And a NaN is refused: nothing of ours was switched off."""
    states = []
    for ours in ([], [SUITE]):
        options = {k: copy.copy(v) for k, v in CASES[case].items()}
        torch.manual_seed(0)
        options["model"] = options.pop("model", small.Small)()
        hooks = [*ours, *options.pop("hooks", [])]
        runner = small.build(tmp_path, hooks, iters=40, **options)
        runner.train()
        states.append({k: v for k, v in small.state(runner).items() if k != "odd"})
    assert small.same(*states)
    assert not small.ledger(runner, "failure")
    written = list((tmp_path / runner.work_dir).glob("rollback/*.pth"))
    assert written or small.ledger(runner, "end")
    spoil = small.SpoilInputs(at=[25])
    options = {k: copy.copy(v) for k, v in CASES[case].items()}
    options["model"] = options.pop("model", small.Small)()
    hooks = [SUITE, spoil, *options.pop("hooks", [])]
    runner = small.build(tmp_path, hooks, iters=40, **options)
    runner.train()
    assert [line["iter"] for line in small.ledger(runner, "veto")] == [25]


@pytest.mark.filterwarnings("default::UserWarning:torch.*")
def test_a_model_that_was_compiled(tmp_path):
    """OptimizedModule has a length that raises."""
    spoil = small.SpoilInputs(at=[25])
    runner = small.build(tmp_path, [SUITE, spoil], model=compiled(), iters=40)
    runner.train()
    assert not small.ledger(runner, "failure")
    assert [line["iter"] for line in small.ledger(runner, "veto")] == [25]


def test_numbers_are_double_by_default(tmp_path):
    torch.set_default_dtype(torch.float64)
    try:

        class Double(small.Small):
            def forward(self, x, y, mode="loss"):
                return super().forward(x.double(), y, mode)

        spoil = small.SpoilInputs(at=[25])
        runner = small.build(tmp_path, [SUITE, spoil], model=Double, iters=40)
        runner.train()
    finally:
        torch.set_default_dtype(torch.float32)
    assert not small.ledger(runner, "failure")
    assert [line["iter"] for line in small.ledger(runner, "veto")] == [25]


class Items(dict):
    __getattr__ = dict.__getitem__


class WithSamples(small.Small):
    def forward(self, x, y, mode="loss", data_samples=None):
        return super().forward(x, y, mode)


class Adds(small.Hook):
    """Samples of a class of the user's own, in the batch."""

    priority = 1

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        data_batch["data_samples"] = [Items(a=1) for _ in range(8)]


def test_samples_that_have_no_attributes(tmp_path):
    hooks = [SUITE, Adds(), small.SpoilInputs(at=[25])]
    runner = small.build(tmp_path, hooks, model=WithSamples, iters=40)
    runner.train()
    assert not small.ledger(runner, "failure")
    assert small.ledger(runner, "veto")


class Embedding(small.Small):
    """Momentum of a sparse gradient is sparse."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Embedding(8, 4, sparse=True)

    def losses(self, features, logits, y):
        losses = super().losses(features, logits, y)
        losses["loss_extra"] = self.extra(torch.arange(3)).pow(2).mean()
        return losses


def test_a_rollback_file_holds_sparse_momentum(tmp_path, capsys):
    runner = small.build(
        tmp_path, [SUITE], model=Embedding, iters=40, log_level="WARNING"
    )
    runner.train()
    assert "could not be written" not in capsys.readouterr().out
    assert not small.ledger(runner, "failure")


class Pair(NamedTuple):
    average: nn.Module


class Averages(small.Hook):
    """Begins an average of the weights, in a container of its own, at some time."""

    priority = 1

    def __init__(self, begin, put):
        self.begin, self.put, self.kept = begin, put, None

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == self.begin:
            self.kept = self.put(copy.deepcopy(runner.model))
        if self.kept is not None:
            (average,) = (
                [self.kept] if isinstance(self.kept, nn.Module) else list(self.kept)
            )
            with torch.no_grad():
                for mean, now in zip(average.parameters(), runner.model.parameters()):
                    mean.lerp_(now, 0.1)


@pytest.mark.parametrize("put", [lambda m: m, Pair, lambda m: deque([m])])
@pytest.mark.parametrize("begin", [0, 5, 30])
def test_an_average_that_is_begun_later(tmp_path, capsys, begin, put):
    """Within 20 iterations it is known, and sees an iteration when it was judged."""
    hook = Averages(begin, put)
    spoil = small.SpoilInputs(at=[begin + 25])
    runner = small.build(
        tmp_path, [SUITE, spoil, hook], iters=begin + 40, log_level="WARNING"
    )
    runner.train()
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("Averages keeps a copy of the model in its attribute 'kept'") == 1
    (average,) = [hook.kept] if isinstance(hook.kept, nn.Module) else list(hook.kept)
    assert all(torch.isfinite(p).all() for p in average.parameters())


class Writes(small.Hook):
    priority = "VERY_HIGH"

    def __init__(self, rate):
        self.rate = rate

    def before_train_iter(self, runner, *args, **kwargs):
        for group in runner.optim_wrapper.param_groups:
            self.rate(group, runner.iter)


def test_one_learning_rate_of_nan_is_healed(tmp_path):
    """It had to be the snapshot's, or each rollback would go back to NaN."""

    def once(group, now):
        if now == 30 and not group.get("done"):
            group["lr"], group["done"] = float("nan"), True

    rollback = dict(interval=10, probation=2, cooldown=5, warmup_iters=5)
    hooks = [dict(SUITE, rollback=rollback), Writes(once)]
    runner = small.build(tmp_path, hooks, iters=60)
    runner.train()
    assert runner.iter == 60
    assert len(small.ledger(runner, "rollback")) == 1
    assert all(torch.isfinite(v).all() for v in small.state(runner).values())


@pytest.mark.parametrize("period", [1, 7])
def test_a_writer_that_writes_zero_now_and_then_is_held(tmp_path, period):
    """Whether it knew of the cut shows when it writes something else."""
    ruin, seen = small.SpoilInputs(at=[20, 21, 22]), {}

    class Look(small.Hook):
        priority = "LOWEST"

        def after_train_iter(self, runner, *args, **kwargs):
            seen[runner.iter] = runner.optim_wrapper.param_groups[0]["lr"]

    def write(group, now):
        group["lr"] = 0.1 if now % period or period == 1 else 0.0

    rollback = dict(interval=5, probation=0, warmup_iters=5, lr_factor=0.1)
    suite = dict(SUITE, rollback=rollback, head_clamp=None)
    runner = small.build(tmp_path, [suite, ruin, Writes(write), Look()], iters=60)
    runner.train()
    assert small.ledger(runner, "rollback")
    assert {round(lr, 6) for i, lr in seen.items() if i > 40} <= {0.0, 0.01}


def test_of_a_learning_rate_in_a_tensor_it_is_said_that_nobody_reads_it(
    tmp_path, capsys
):
    def write(group, now):
        group["lr"] = torch.tensor(0.1)

    ruin = small.SpoilInputs(at=[20, 21, 22])
    rollback = dict(interval=5, probation=0, warmup_iters=5)
    suite = dict(SUITE, rollback=rollback, head_clamp=None)
    hooks = [suite, ruin, Writes(write)]
    runner = small.build(tmp_path, hooks, iters=40, log_level="WARNING")
    runner.train()
    assert small.ledger(runner, "rollback")
    assert "the learning rate is a tensor" in capsys.readouterr().out


class Unknown:
    def __init__(self):
        self.a = 1


def test_a_defaultdict_of_a_class_that_does_not_come_back(tmp_path, capsys):
    class Puts(small.Hook):
        def before_train(self, runner):
            runner.message_hub.update_info("odd", defaultdict(Unknown, a=1))

    runner = small.build(tmp_path, [SUITE, Puts()], iters=40, log_level="WARNING")
    runner.train()
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("cannot be read back") == 1
    assert "could not be written" not in said


def test_memory_that_runs_out_without_a_word(tmp_path):
    """Python's MemoryError is empty, and here it is none of ours."""

    class Greedy(small.Small):
        def losses(self, features, logits, y):
            if self.calls == 10:
                raise MemoryError
            return super().losses(features, logits, y)

    suite = dict(SUITE, head_clamp=dict(when="always"))
    runner = small.build(tmp_path, [suite], model=Greedy, iters=20)
    with pytest.raises(MemoryError):
        runner.train()
    assert not small.ledger(runner, "failure")
    assert [line["error"] for line in small.ledger(runner, "abort")] == ["MemoryError"]


def test_metrics_whose_names_are_no_strings(tmp_path):
    runner = small.build(tmp_path, [SUITE], iters=20)

    class Validates(small.Hook):
        def after_train_iter(self, runner, *args, **kwargs):
            if runner.iter == 10:
                for hook in runner.hooks:
                    if isinstance(hook, AmpHook):
                        hook.after_val_epoch(runner, metrics={1: 2, "mAP": 0.5})

    runner.register_hook(Validates())
    runner.train()
    assert not small.ledger(runner, "failure")


def test_a_complex_parameter_is_looked_at_before_training(tmp_path, capsys):
    class Complex(small.Small):
        def __init__(self):
            super().__init__()
            self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))

        def losses(self, features, logits, y):
            losses = super().losses(features, logits, y)
            losses["loss_phase"] = (self.phase.abs() ** 2).mean() * 1e-3
            return losses

    runner = small.build(tmp_path, [SUITE], model=Complex, iters=20, log_level="INFO")
    runner.train()
    assert "could not be looked at" not in capsys.readouterr().out
    assert not small.ledger(runner, "failure")


def test_an_exception_that_cannot_say_anything(tmp_path):
    class Wrong(small.Small):
        def losses(self, features, logits, y):
            if self.calls == 10:
                raise Mute
            return super().losses(features, logits, y)

    runner = small.build(tmp_path, [SUITE], model=Wrong, iters=20)
    with pytest.raises(Mute):
        runner.train()
    (abort,) = small.ledger(runner, "abort")
    assert abort["error"].startswith("Mute")
    assert not small.ledger(runner, "failure")


def test_a_file_of_that_name_is_no_nan(tmp_path):
    class Missing(small.Small):
        def losses(self, features, logits, y):
            if self.calls == 10:
                raise FileNotFoundError(2, "no such file", "/data/nan/img.jpg")
            return super().losses(features, logits, y)

    runner = small.build(tmp_path, [SUITE], model=Missing, iters=20)
    with pytest.raises(FileNotFoundError):
        runner.train()


def test_a_wrapper_that_replaces_the_first_steps_not_past_itself(tmp_path, capsys):
    class Replaces(small.Hook):
        priority = 1

        def before_train_iter(self, runner, *args, **kwargs):
            if runner.iter == 5:
                optimizer = runner.optim_wrapper.optimizer
                runner.optim_wrapper = OptimWrapper(optimizer)

    hooks = [SUITE, Replaces(), small.SpoilInputs(at=[25])]
    runner = small.build(tmp_path, hooks, iters=40, log_level="WARNING")
    runner.train()
    assert "past optim_wrapper.step" not in capsys.readouterr().out
    assert small.ledger(runner, "veto")


def test_runtimes_are_those_of_runners_that_live(tmp_path):
    runner = small.build(tmp_path, [], kind=OddRunner)
    assert Runtime.of(runner) is Runtime.of(runner)
