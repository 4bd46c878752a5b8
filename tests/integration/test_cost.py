"""Promise 5: it costs almost nothing. What is exact is tested, what is timed is not."""

import pytest
from mmengine.hooks import Hook

from amp_hooks.engine.recorder import IterationRecord
from amp_hooks.engine.runtime import Runtime
from tests import helpers
from tests.count_reads import CountReads


class CountPerIteration(Hook):
    """Host reads by iteration; after ``jump`` iterations the run is at ``to``."""

    def __init__(self, mode, jump=None, to=10**6):
        self.mode, self.jump, self.to = mode, jump, to
        self.before, self.per_iter = 0, {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.jump:
            runner.train_loop._iter = self.to
            live_through_a_million_iterations(runner)
        self.before = self.mode.reads

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.per_iter[runner.iter] = self.mode.reads - self.before


def live_through_a_million_iterations(runner):
    """Fill every window and counter as a long run would."""
    hooks = {type(h).__name__: h for h in runner.hooks}
    if "LossScaleMonitorHook" in hooks:
        recorder = Runtime.of(runner).recorder
        for i in range(1000):
            recorder.records.append(IterationRecord(i))
        for counter in hooks["LossScaleMonitorHook"].counters.values():
            for i in range(10**6):
                counter.add(i % 2000 == 0)


def reads_per_iteration(build, hooks, precision, jump=None, **options):
    counts = []
    for attached in ([], hooks):
        runner = build("retinanet", precision=precision, hooks=attached, **options)
        with CountReads() as mode:
            count = CountPerIteration(mode, jump)
            runner.register_hook(count, priority="LOWEST")
            runner.train()
        counts.append(count.per_iter)
    plain, watched = counts
    return {i: watched[i] - plain[i] for i in plain}


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_one_copy_per_iteration_at_iteration_ten_and_a_million(build, precision):
    extra = reads_per_iteration(
        build,
        helpers.MONITORS,
        precision,
        jump=12,
        iters=10**6 + 3,
        # Low enough that no step is skipped: naming gradients would be a second copy.
        options={"optim_wrapper.loss_scale": 128.0} if precision == "float16" else {},
    )
    assert list(extra) == [*range(12), *range(10**6, 10**6 + 3)]
    assert set(extra.values()) == {1}


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("interval", [1, 1000], ids=["publishing", "idle"])
def test_panel_and_ledger_add_no_copy(build, precision, interval):
    """What they show is on the host already, for the monitors."""
    panel = dict(type="amp_hooks.StabilityPanelHook", interval=interval)
    extra = reads_per_iteration(
        build,
        [*helpers.MONITORS, panel],
        precision,
        iters=6,
        options={"optim_wrapper.loss_scale": 128.0} if precision == "float16" else {},
    )
    assert set(extra.values()) == {1}


def test_histograms_are_copied_where_they_are_due_and_nowhere_else(build):
    panel = dict(type="amp_hooks.StabilityPanelHook", histogram_interval=3)
    extra = reads_per_iteration(
        build,
        [*helpers.MONITORS, panel],
        "float16",
        iters=7,
        options={"optim_wrapper.loss_scale": 128.0},
    )
    # The logits of RetinaNet's one classifier layer, and the gradient norms; each is
    # counted twice, as .cpu().numpy().
    assert list(extra.values()) == [1, 1, 5, 1, 1, 5, 1]


@pytest.mark.parametrize(
    ("precision", "waits"), [("float16", 0), ("bfloat16", 0), ("float32", 1)]
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_guard_waits_only_where_no_scaler_decides(
    build, precision, waits, accumulate
):
    """On top of the one copy, and once per optimizer step."""
    extra = reads_per_iteration(
        build,
        [*helpers.MONITORS, dict(type="amp_hooks.StepGuardHook")],
        precision,
        iters=8,
        accumulate=accumulate,
        options={"optim_wrapper.loss_scale": 128.0} if precision != "float32" else {},
    )
    steps = [(i + 1) % accumulate == 0 for i in range(8)]
    # The first healthy step shows what is not finite by design; said once.
    first = steps.index(True)
    assert list(extra.values()) == [
        1 + waits * step + (i == first) for i, step in enumerate(steps)
    ]


@pytest.mark.parametrize("loop", [dict(iters=6), dict(epochs=1)], ids=str)
def test_one_copy_per_iteration_with_the_whole_suite(build, loop):
    """But where state is scanned: the first snapshot, and the final checkpoint."""
    suite = [dict(h, interval=1000) if "interval" in h else h for h in helpers.SUITE]
    extra = reads_per_iteration(
        build, suite, "float16", options={"optim_wrapper.loss_scale": 128.0}, **loop
    )
    assert set(list(extra.values())[1:-1]) == {1}


def test_the_ring_is_bounded(build):
    runner = build("retinanet", iters=2, hooks=helpers.MONITORS)
    runner.train()
    live_through_a_million_iterations(runner)
    assert len(Runtime.of(runner).recorder.records) == 200
