"""Whatever of ours breaks, the run ends with the weights of stock."""

import contextlib
import functools
import gc
import weakref
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper

from amp_hooks import hooks as all_hooks
from amp_hooks.engine.error_tap import ErrorTap
from amp_hooks.engine.events import in_words
from amp_hooks.engine.failures import Failures
from amp_hooks.engine.forward_judge import ForwardJudge
from amp_hooks.engine.hook import SAVING, AmpHook
from amp_hooks.engine.ledger import Ledger
from amp_hooks.engine.peaks import Peaks
from amp_hooks.engine.recorder import FlightRecorder
from amp_hooks.engine.runtime import Runtime
from amp_hooks.engine.step_tap import StepTap
from amp_hooks.errors import SetupError, TrainingDivergedError
from amp_hooks.guard.buffer_watch import BufferWatch
from amp_hooks.guard.head_inputs import HeadInputs
from amp_hooks.guard.step_gate import StepGate
from amp_hooks.rollback.checkpoint_guard import CheckpointGuard
from amp_hooks.rollback.snapshot_store import SnapshotStore
from tests import helpers, processes, small

# With what makes all of them do something in so short a run.
SUITE = dict(
    type="amp_hooks.StabilityHook",
    head_clamp=dict(when="always", limit=1e4),
    rollback=dict(interval=2, probation=1),
    panel=dict(interval=2, histogram_interval=2),
)
ITERS = 6
HOOKS = sorted(
    name
    for name, cls in vars(all_hooks).items()
    if isinstance(cls, type) and issubclass(cls, AmpHook) and cls.borne
)
# Not in a run that only trains: called on the runner once it is over.
ELSEWHERE = {
    "before_val": {},
    "before_test": {},
    "after_val_epoch": dict(metrics={"coco/bbox_mAP": 0.5}),
}


def events(name):
    cls = getattr(all_hooks, name)
    return [
        event
        for event in sorted(dir(cls))
        if event.startswith(("before_", "after_"))
        and getattr(cls, event) is not getattr(small.Hook, event, None)
    ]


def runner_of(folder, hooks, dtype=None):
    runner = small.build(folder, hooks, dtype=dtype, iters=ITERS)
    next(h for h in runner.hooks if type(h).__name__ == "CheckpointHook").interval = 3
    return runner


@pytest.fixture(scope="module")
def stock_in(tmp_path_factory):
    """What is learned without hooks, by precision."""

    @functools.lru_cache(maxsize=None)
    def train(dtype):
        runner = runner_of(tmp_path_factory.mktemp("stock"), [], dtype)
        runner.train()
        return small.state(runner)

    return train


@pytest.fixture
def stock(stock_in):
    return stock_in(None)


class Broken(Exception):
    """No kind of exception that anybody expects."""


def breaks(calls):
    def broken(*args, **kwargs):
        calls.append(args)
        raise Broken("on purpose")

    return broken


def failures(runner):
    return small.ledger(runner, "failure")


@pytest.mark.parametrize(
    ("name", "event"), [(name, event) for name in HOOKS for event in events(name)]
)
def test_a_hook_broken_in_an_event(tmp_path, monkeypatch, stock_in, name, event):
    # In FP32 there is nothing to fall back to; in BF16 a clamp that is on computes so.
    dtype = "bfloat16" if name == "PrecisionFallbackHook" else None
    suite = dict(SUITE, head_clamp=True) if dtype else SUITE
    runner, calls = runner_of(tmp_path, [suite], dtype), []
    monkeypatch.setattr(getattr(all_hooks, name), event, breaks(calls), raising=False)
    if event in ELSEWHERE:
        runner.register_hook(LastCall(event, ELSEWHERE[event]))
    runner.train()
    assert small.same(small.state(runner), stock_in(dtype))
    # Events of a resume do not come; the others come once, and never again.
    resumes = event == "after_load_checkpoint"
    assert len(calls) == (0 if resumes else 1)
    lines = failures(runner)
    # The ledger begins with the first hook that attaches.
    if event not in ("before_run", "before_train", "after_load_checkpoint"):
        part = f"{name}.{event}" if event == SAVING else name
        assert [line["part"] for line in lines] == [part]
        assert lines[0]["error"] == "Broken: on purpose"
        called = "after_train_iter" if event == "after_record" else event
        assert lines[0]["where"].startswith(f"{called} (")


def test_a_state_that_cannot_be_saved_leaves_its_hook_on(tmp_path, monkeypatch):
    """A checkpoint is written on rank 0 alone, and on the others all goes on."""
    hooks = [dict(type="amp_hooks.StepGuardHook"), small.SpoilInputs(at=[4])]
    runner, calls = runner_of(tmp_path, hooks), []
    monkeypatch.setattr(all_hooks.StepGuardHook, SAVING, breaks(calls))
    runner.train()
    assert len(calls) == 1
    assert [line["iter"] for line in small.ledger(runner, "veto")] == [4]
    (last,) = runner_checkpoints(runner, "iter_6.pth")
    assert "state_dict" in torch.load(last, weights_only=False)


def runner_checkpoints(runner, pattern):
    return sorted(Path(runner.work_dir).glob(pattern))


class LastCall(small.Hook):
    """An event that training does not have, after its last iteration."""

    priority = "LOWEST"

    def __init__(self, event, arguments):
        self.event, self.arguments = event, arguments

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == ITERS - 1:
            for hook in runner.hooks:
                if isinstance(hook, AmpHook) and hasattr(hook, self.event):
                    getattr(hook, self.event)(runner, **self.arguments)


INSIDE = [
    (StepTap, "_note_loss", "amp_hooks"),
    (StepTap, "_before", "amp_hooks"),
    (StepTap, "_after", "amp_hooks"),
    (ErrorTap, "_begin", "amp_hooks"),
    (FlightRecorder, "close", "amp_hooks"),
    (ForwardJudge, "judge", "amp_hooks"),
    (ForwardJudge, "learn", "amp_hooks"),
    (BufferWatch, "finite", "amp_hooks"),
    (BufferWatch, "take", "BufferWatch"),
    (Peaks, "tell", "amp_hooks"),
    (StepGate, "before_backward", "StepGuardHook"),
    (StepGate, "opens", "StepGuardHook"),
    (StepGate, "before_step", "StepGuardHook"),
    (CheckpointGuard, "_transact", "CheckpointGuard"),
    (SnapshotStore, "collect", "RollbackHook"),
    (SnapshotStore, "healthy", "RollbackHook"),
]


@pytest.mark.parametrize(("owner", "method", "part"), INSIDE)
def test_what_the_optimizer_calls_is_broken(
    tmp_path, monkeypatch, stock, owner, method, part
):
    runner, calls = runner_of(tmp_path, [SUITE]), []
    monkeypatch.setattr(owner, method, breaks(calls))
    runner.train()
    assert calls
    assert small.same(small.state(runner), stock)
    assert [line["part"] for line in failures(runner)] == [part]


@pytest.mark.parametrize("length", [dict(iters=20), dict(epochs=1)])
def test_the_suite_broken_at_its_start(tmp_path, monkeypatch, length):
    """Its members are there; only what they might be without is not looked at."""
    plain = small.build(tmp_path, **length)
    plain.train()
    runner, calls = small.build(tmp_path, [SUITE], **length), []
    monkeypatch.setattr(all_hooks.StabilityHook, "_why_no_fallback", breaks(calls))
    runner.train()
    assert len(calls) == 1
    assert small.same(small.state(runner), small.state(plain))
    assert small.ledger(runner, "end")


def test_a_refused_step_that_cannot_be_counted(tmp_path, monkeypatch):
    """Schedulers warn that there was none, and training goes on."""
    runner, calls = runner_of(tmp_path, [SUITE, small.SpoilInputs([5])]), []
    monkeypatch.setattr("amp_hooks.engine.private.count_step", breaks(calls))
    runner.train()
    assert len(calls) == 1
    assert [line["part"] for line in failures(runner)] == ["amp_hooks"]


FUNCTIONS = [
    ("amp_hooks.monitor.logit_watch.logit_stats", "LogitWatch"),
    ("amp_hooks.monitor.classifiers.is_classification_loss", None),
    ("amp_hooks.clamp.head_guard.clamp_logits", "HeadClampHook"),
    ("amp_hooks.clamp.head_guard._as_float", "HeadClampHook"),
    ("amp_hooks.monitor.grad_norm_monitor_hook.group_norms", "GradNormMonitorHook"),
    ("amp_hooks.forensics.forensics_hook.capture_rng", "ForensicsHook"),
    ("amp_hooks.engine.step_tap.norms_of", "amp_hooks"),
]


@pytest.mark.parametrize(("function", "part"), FUNCTIONS)
def test_what_the_model_calls_is_broken(tmp_path, monkeypatch, stock, function, part):
    runner, calls = runner_of(tmp_path, [SUITE]), []
    monkeypatch.setattr(function, breaks(calls))
    runner.train()
    assert calls
    assert small.same(small.state(runner), stock)
    if part:
        assert [line["part"] for line in failures(runner)] == [part]


def test_predictions_that_cannot_be_looked_at(tmp_path, monkeypatch):
    """A detector whose head asks for it."""
    calls = []

    class WithHead(small.Small):
        def __init__(self):
            super().__init__()
            self.bbox_head.loss_by_feat = self.bbox_head_loss

        def bbox_head_loss(self, logits, y):
            return self.bbox_head.loss_cls(logits.float(), y)

        def losses(self, features, logits, y):
            return dict(loss_cls=self.bbox_head.loss_by_feat(logits, y))

    runs = []
    for hooks in ([], [SUITE]):
        runner = small.build(tmp_path, hooks, model=WithHead, iters=ITERS)
        if hooks:
            monkeypatch.setattr(HeadInputs, "_look", breaks(calls))
        runner.train()
        runs.append(small.state(runner))
    assert calls
    assert small.same(*runs)
    assert [line["part"] for line in failures(runner)] == ["HeadInputs"]


def test_it_is_told_once_with_the_line_and_the_traceback(tmp_path, monkeypatch):
    runner = runner_of(tmp_path, [SUITE])
    monkeypatch.setattr(all_hooks.HealthHook, "_add", breaks([]))
    told = []
    monkeypatch.setattr("amp_hooks.engine.failures.warn", told.append)
    runner.train()
    (text,) = told
    assert (
        "HealthHook failed in after_train_iter (amp_hooks/health/health_hook.py:"
        in (text)
    )
    assert "goes on without HealthHook" in text
    assert "Broken: on purpose" in text.splitlines()[-1]


def test_what_had_been_put_into_the_run_is_taken_away(tmp_path, monkeypatch):
    """And the others go on: a NaN is still seen."""
    spoil = small.SpoilInputs(at=[4])
    runner = runner_of(tmp_path, [SUITE, spoil])
    monkeypatch.setattr(all_hooks.RollbackHook, "before_train_iter", breaks([]))
    runner.train()
    runtime = Runtime.of(runner)
    assert not runtime.goes_back
    assert runtime.second_opinion is None
    assert [line["iter"] for line in small.ledger(runner, "veto")] == [4]
    assert small.ledger(runner, "end")


def test_a_failure_in_an_ill_run_leaves_it_to_stock(tmp_path, monkeypatch):
    """The guard is off before the first bad batch: then nothing holds the NaN back."""
    states = []
    for hooks in ([], [SUITE]):
        spoil = small.SpoilInputs(at=[4])
        runner = small.build(tmp_path, [*hooks, spoil], iters=ITERS)
        if hooks:
            monkeypatch.setattr(FlightRecorder, "close", breaks([]))
        runner.train()
        states.append(small.state(runner))
    assert torch.isnan(states[0]["backbone.0.weight"]).any()
    assert small.same(*states)


def test_what_is_raised_on_purpose_ends_the_run(tmp_path):
    runner = small.build(
        tmp_path, [dict(type="amp_hooks.HeadClampHook", targets="*.nowhere")]
    )
    with pytest.raises(SetupError, match=r"'\*\.nowhere' in targets matches no"):
        runner.train()
    hook = dict(type="amp_hooks.RollbackHook", max_rollbacks=0, interval=2, probation=0)
    runner = small.build(tmp_path, [hook, Ruin(at=3)], iters=ITERS)
    with pytest.raises(TrainingDivergedError):
        runner.train()


class Ruin(small.Hook):
    priority = "HIGHEST"

    def __init__(self, at):
        self.at = at

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter >= self.at:
            runner.model.backbone[0].weight.data.fill_(float("nan"))


def test_an_exception_of_the_users_is_left_alone(tmp_path):
    class Raises(small.Small):
        def losses(self, features, logits, y):
            raise KeyError("theirs")

    runner = small.build(tmp_path, [SUITE], model=Raises, iters=ITERS)
    with pytest.raises(KeyError, match="theirs"):
        runner.train()
    assert not failures(runner)
    (abort,) = small.ledger(runner, "abort")
    assert abort["error"] == "KeyError: 'theirs'"


def test_an_exception_after_the_end_is_told_too(tmp_path):
    """Of a hook whose turn is after ours."""

    class Late(small.Hook):
        priority = "LOWEST"

        def after_train(self, runner):
            raise KeyError("theirs")

    runner = small.build(tmp_path, [SUITE, Late()], iters=ITERS)
    with pytest.raises(KeyError, match="theirs"):
        runner.train()
    *_, end, abort = small.ledger(runner)
    assert (end["event"], abort["event"]) == ("end", "abort")
    assert abort["error"] == "KeyError: 'theirs'"


@pytest.mark.parametrize("ends", ["well", "with an exception", "with a failure"])
def test_a_run_that_is_over_can_be_freed(tmp_path, monkeypatch, ends):
    class Ends(small.Small):
        def losses(self, features, logits, y):
            if self.calls == 4 and ends == "with an exception":
                raise KeyError("theirs")
            return super().losses(features, logits, y)

    runner = small.build(tmp_path, [SUITE], model=Ends, iters=ITERS)
    if ends == "with a failure":
        monkeypatch.setattr(ForwardJudge, "judge", breaks([]))
    with contextlib.suppress(KeyError):
        runner.train()
    gone = weakref.ref(runner.model)
    del runner
    gc.collect()
    assert gone() is None


def test_a_kernel_that_failed_is_not_taken_for_ours():
    borne = Failures()

    def wait():
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side"):
        borne.call(borne, wait, otherwise=None)
    assert not list(borne.off)


def test_a_kernel_that_failed_names_the_checkpoint_to_resume_from(tmp_path):
    class Asserts(small.Small):
        def losses(self, features, logits, y):
            if self.calls == 6:
                raise RuntimeError("CUDA error: device-side assert triggered")
            return super().losses(features, logits, y)

    runner = small.build(tmp_path, [SUITE], model=Asserts, iters=8)
    with pytest.raises(RuntimeError, match="device-side"):
        runner.train()
    (abort,) = small.ledger(runner, "abort")
    assert abort["error"] == "RuntimeError: CUDA error: device-side assert triggered"
    assert Path(abort["checkpoint"]).exists()
    assert in_words(abort).endswith(f"in a new process, from\n{abort['checkpoint']}")


@pytest.mark.parametrize(
    ("hook", "borne"),
    [("RollbackHook", False), ("StepGuardHook", False), ("StabilityPanelHook", True)],
)
def test_of_several_ranks_none_is_left_waiting(monkeypatch, hook, borne):
    """What they do together cannot go on without one of them."""
    monkeypatch.setattr("amp_hooks.engine.failures.dist.get_world_size", lambda: 2)
    owner, failures_of_ours = getattr(all_hooks, hook)(), Failures()
    broken = breaks([])
    if borne:
        assert failures_of_ours.call(owner, broken, otherwise=7) == 7
    else:
        with pytest.raises(Broken):
            failures_of_ours.call(owner, broken, otherwise=7)
    assert (owner in failures_of_ours.off) == borne


def on_two_ranks(tmp_path, mode, status):
    program = helpers.ROOT / "tests/engine/failing_ranks.py"
    return processes.two_ranks(program, tmp_path, mode, status=status, cwd=helpers.ROOT)


@pytest.mark.long
@pytest.mark.slow
def test_what_fails_on_all_ranks_alike_costs_none_of_them(tmp_path):
    """They ask each other in the store, outside all collectives."""
    done = on_two_ranks(tmp_path, "all", 0)
    lines = [x.split(" | ") for x in done.stdout.splitlines() if x.startswith("rank")]
    cases = [f"{name}.{event}" for name in HOOKS for event in events(name)]
    cases += [f"{owner.__name__}.{method}" for owner, method, _ in INSIDE]
    for rank in ("rank 0", "rank 1"):
        assert [name for who, name, *_ in lines if who == rank] == cases
    assert not [line for line in lines if line[2] != "True"]
    told = {name: parts for who, name, _, parts in lines if who == "rank 0"}
    inside = {f"{owner.__name__}.{method}": part for owner, method, part in INSIDE}
    assert {name: told[name] for name in inside} == inside
    assert told["StepGuardHook.after_record"] == "StepGuardHook"


@pytest.mark.slow
def test_what_fails_on_one_rank_ends_the_run_and_says_so(tmp_path):
    done = on_two_ranks(tmp_path, "one", None)
    assert done.returncode
    assert done.stdout.count(" failed in ") == 1  # not that the other rank is gone
    assert "RollbackHook failed in after_train_iter (" in done.stdout
    assert "on this rank, and not on all of them" in done.stdout
    assert "Broken: on purpose" in done.stderr


@pytest.mark.parametrize("part", ["let_go", "emit", "abandon"])
def test_an_exception_of_the_users_own_stays_it_on_several_ranks(
    tmp_path, monkeypatch, part
):
    """Whatever of ours fails when training has ended with it."""

    class Wrong(small.Small):
        def losses(self, features, logits, y):
            if self.calls == 3:
                world_size = "amp_hooks.engine.failures.dist.get_world_size"
                monkeypatch.setattr(world_size, lambda: 2)
                owner = all_hooks.StepGuardHook if part == "let_go" else Runtime
                monkeypatch.setattr(owner, part, breaks([]))
                raise KeyError("of the user's own")
            return super().losses(features, logits, y)

    runner = small.build(tmp_path, [SUITE], model=Wrong, iters=8)
    with pytest.raises(KeyError, match="of the user's own"):
        runner.train()


class Rate(small.Hook):
    """Learning rates as training has them at the end of iterations."""

    priority = "LOWEST"

    def __init__(self):
        self.rates = {}

    def after_train_iter(self, runner, *args, **kwargs):
        self.rates[runner.iter] = runner.optim_wrapper.param_groups[0]["lr"]


def test_a_failure_within_a_rewarmup_gives_the_learning_rate_back(
    tmp_path, monkeypatch
):
    rollback = dict(interval=5, probation=0, warmup_iters=50, lr_factor=0.1)
    suite = dict(SUITE, rollback=rollback, head_clamp=None)
    rate, ruin = Rate(), small.SpoilInputs(at=[20, 21, 22])
    runner = small.build(tmp_path, [suite, ruin, rate], iters=40)
    close, calls = FlightRecorder.close, []

    def fails_later(self, iteration):
        return breaks(calls)() if iteration >= 30 else close(self, iteration)

    monkeypatch.setattr(FlightRecorder, "close", fails_later)
    runner.train()
    assert small.ledger(runner, "rollback")
    assert calls
    assert rate.rates[39] == pytest.approx(0.01)  # cut, and no warm-up any more


def test_a_failed_rollback_hook_is_no_good_end(tmp_path, monkeypatch):
    """Snapshots that were proven stay, and so does the pointer to them."""
    hooks = [dict(type="amp_hooks.RollbackHook", interval=4, probation=2)]
    runner = small.build(tmp_path, [*hooks, small.SpoilInputs(at=[18])], iters=24)
    module = "amp_hooks.rollback.rollback_hook.nonfinite_state"
    monkeypatch.setattr(module, breaks([]))
    runner.train()
    (line,) = failures(runner)
    assert line["part"] == "RollbackHook"
    work_dir = Path(runner.work_dir)
    named = Path((work_dir / "last_checkpoint").read_text())
    assert named.parent.name == "rollback"
    assert named.exists()


def test_a_choice_of_checkpoint_that_failed_leaves_it_to_stock(tmp_path, monkeypatch):
    """MMEngine resumes from what last_checkpoint names."""
    first = runner_of(tmp_path, [SUITE])
    first.train()
    monkeypatch.setattr("amp_hooks.rollback.resume._find", breaks([]))
    told = []
    monkeypatch.setattr("amp_hooks.engine.failures.warn", told.append)
    again = small.build(
        tmp_path, [SUITE], iters=ITERS + 2, work_dir=first.work_dir, resume=True
    )
    again.train()
    assert again.iter == ITERS + 2
    assert small.ledger(again, "start")[-1]["iter"] == ITERS
    (text,) = told
    assert "RollbackHook failed in before_run" in text
    assert "Broken('on purpose') on rank 0" in text


def test_a_clamp_that_failed_excuses_no_infinity(tmp_path, monkeypatch):
    runner, calls = runner_of(tmp_path, [SUITE]), []
    decided = []

    class Look(small.Hook):
        priority = "LOWEST"

        def after_train_iter(self, runner, *args, **kwargs):
            decided.append(set(Runtime.of(runner).forward.clamped))

    runner.register_hook(Look())
    after = all_hooks.HeadClampHook.after_record

    def fails_later(self, runner, *args):
        return breaks(calls)() if runner.iter == 3 else after(self, runner, *args)

    monkeypatch.setattr(all_hooks.HeadClampHook, "after_record", fails_later)
    runner.train()
    assert decided[2] == {"bbox_head.fc_cls"}
    assert decided[3:] == [set()] * 3


def test_nothing_is_left_after_an_exception(tmp_path):
    """Or a later run of the same model would have its exceptions swallowed."""

    class Ends(small.Hook):
        def before_train_iter(self, runner, *args, **kwargs):
            if runner.iter == 4:
                raise ZeroDivisionError("theirs")

    class Raises(small.Small):
        angry = False

        def losses(self, features, logits, y):
            if self.angry:
                raise ValueError("cost matrix is infeasible")
            return super().losses(features, logits, y)

    model = Raises()
    before = {name: set(vars(m)) for name, m in model.named_modules()}
    runner = small.build(tmp_path, [SUITE, Ends()], model=model, iters=ITERS)
    with pytest.raises(ZeroDivisionError):
        runner.train()
    assert {name: set(vars(m)) for name, m in model.named_modules()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.angry = True
    again = small.build(tmp_path, [], model=model, iters=ITERS)
    with pytest.raises(ValueError, match="infeasible"):
        again.train()


def test_training_twice_leaves_the_hooks_once(tmp_path):
    class Ends(small.Hook):
        at = 4

        def before_train_iter(self, runner, *args, **kwargs):
            if runner.iter == self.at:
                raise KeyboardInterrupt

    ends = Ends()
    runner = small.build(tmp_path, [SUITE, ends], iters=ITERS)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    ends.at = None
    runner.train()
    assert runner.iter == ITERS
    model = runner.model
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert [line["event"] for line in small.ledger(runner)].count("end") == 1


def test_wrappers_pass_on_what_they_are_given_and_return(tmp_path):
    class Own(OptimWrapper):
        def step(self, closure=None):
            super().step()
            return 42

    runner = small.build(tmp_path, [dict(type="amp_hooks.LossScaleMonitorHook")])
    returned = []

    class Looks(small.Hook):
        priority = "LOWEST"

        def after_train_iter(self, runner, *args, **kwargs):
            returned.append(runner.optim_wrapper.step(None))

    optimizer = torch.optim.SGD(runner.model.parameters(), lr=0.0)
    runner.optim_wrapper = Own(optimizer)
    runner.register_hook(Looks())
    runner.train()
    assert set(returned) == {42}


def test_a_failure_while_torch_walks_the_hooks_of_an_optimizer(tmp_path, monkeypatch):
    """The loop steps by itself, and somebody else has such a hook as well."""

    class ByHand(small.Small):
        def train_step(self, data, optim_wrapper):
            loss = self(**data)["loss_cls"]
            optimizer = optim_wrapper.optimizer
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return dict(loss=loss.detach())

    states = []
    for hooks in ([], [SUITE]):
        runner = small.build(tmp_path, hooks, model=ByHand, iters=ITERS)
        seen = []

        class Theirs(small.Hook):
            priority = "LOWEST"

            def before_train(self, runner, seen=seen):
                hook = lambda *args: seen.append(1)  # noqa: E731
                runner.optim_wrapper.optimizer.register_step_pre_hook(hook)

        runner.register_hook(Theirs())
        if hooks:
            norms = "amp_hooks.engine.step_tap.norms_of"
            monkeypatch.setattr(norms, breaks([]))
        runner.train()
        assert len(seen) == ITERS
        states.append(small.state(runner))
    assert [line["part"] for line in failures(runner)] == ["amp_hooks"]
    assert small.same(*states)


def test_a_line_of_the_ledger_that_cannot_be_written(tmp_path, monkeypatch):
    """Only the line is lost: rank 0 alone writes it, and a NaN is still refused."""
    runner, calls = runner_of(tmp_path, [SUITE, small.SpoilInputs(at=[4])]), []
    monkeypatch.setattr(Ledger, "write", breaks(calls))
    told = []
    monkeypatch.setattr("amp_hooks.engine.runtime.warn", told.append)
    runner.train()
    assert len(told) == len(calls) > 2
    assert "stability.jsonl: on purpose. Training goes on." in told[0]
    assert not Runtime.of(runner).failures.off
    assert all(torch.isfinite(v).all() for v in small.state(runner).values())


def test_a_run_after_it_in_the_same_process_is_whole(tmp_path, monkeypatch, stock):
    broken = runner_of(tmp_path, [SUITE])
    with monkeypatch.context() as patch:
        patch.setattr(FlightRecorder, "close", breaks([]))
        broken.train()
    runner = runner_of(tmp_path, [SUITE])
    runner.train()
    assert not failures(runner)
    assert small.ledger(runner, "snapshot")
    assert small.same(small.state(runner), stock)
