"""A refused first step, and optimizers that refuse a step on the device."""

import pytest
import torch

from amp_hooks.engine import torch_api
from amp_hooks.engine.tensors import nonfinite_flag
from tests import helpers, small
from tests.count_reads import CountReads

GUARD = dict(type="amp_hooks.StepGuardHook")
FUSED = [
    pytest.param(dict(type="SGD", lr=0.1, momentum=0.9, fused=True), id="sgd"),
    pytest.param(dict(type="AdamW", lr=0.01, fused=True), id="adamw"),
]
pytestmark = pytest.mark.skipif(
    torch_api.TORCH < (2, 4), reason="no optimizer is fused on a CPU"
)


class States(small.Hook):
    """How many parameters have state after each iteration, and the reads of each."""

    priority = "LOWEST"

    def __init__(self, mode=None):
        self.sizes, self.reads, self.mode = [], [], mode

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self._before = self.mode.reads if self.mode else 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.sizes.append(len(runner.optim_wrapper.optimizer.state))
        if self.mode:
            self.reads.append(self.mode.reads - self._before)


def run(tmp_path, hooks, optimizer, dtype=None, iters=12, mode=None, **wrapper):
    states = States(mode)
    runner = small.build(
        *(tmp_path, [*hooks, states]),
        dtype=dtype,
        iters=iters,
        wrapper=dict(optimizer=optimizer, **wrapper),
    )
    runner.train()
    return runner, states


@pytest.mark.parametrize("loop", ["first", "later"])
@pytest.mark.parametrize("optimizer", FUSED)
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_a_refused_step_leaves_no_state_behind(tmp_path, dtype, optimizer, loop):
    """Stock's fused SGD takes memory that nobody has written for its momentum."""
    bad = [0, 1] if loop == "first" else [3]
    spoil = small.SpoilInputs(bad)
    runner, states = run(tmp_path, [spoil, GUARD], optimizer, dtype)
    parameters = len(list(runner.model.parameters()))
    expected = [0 if i in bad and i < 2 else parameters for i in range(12)]
    assert states.sizes == expected
    assert [e["iter"] for e in helpers.ledger(runner, "veto")] == bad
    assert all(t.isfinite().all() for t in small.state(runner).values())


class TwoSteps(small.Small):
    """Two steps an iteration; in the first iteration the second is refused."""

    def train_step(self, data, optim_wrapper):
        data = self.data_preprocessor(data, True)
        for step in (0, 1):
            with optim_wrapper.optim_context(self):
                losses = self(**data, mode="loss")
            loss, log = self.parse_losses(losses)
            bad = step == 1 and self.calls == 2
            optim_wrapper.update_params(loss * float("nan") if bad else loss)
        return log


@pytest.mark.parametrize("fused", [False, True])
def test_state_of_a_step_that_was_taken_stays(tmp_path, fused):
    optimizer = dict(type="SGD", lr=0.1, momentum=0.9, fused=fused)
    states = States()
    runner = small.build(
        *(tmp_path, [GUARD, states]),
        model=TwoSteps,
        iters=2,
        wrapper=dict(optimizer=optimizer),
    )
    runner.train()
    assert states.sizes[0] == len(list(runner.model.parameters()))


@pytest.mark.parametrize("optimizer", FUSED)
def test_told_on_the_device_or_by_the_host_it_is_the_same_run(
    tmp_path, monkeypatch, optimizer
):
    spoil = [0, 4, 5]
    runs = []
    for able in (True, False):
        if not able:
            monkeypatch.setattr(torch_api, "can_refuse", lambda optimizer: False)
        runner, _ = run(tmp_path, [small.SpoilInputs(spoil), GUARD], optimizer)
        runs.append(small.state(runner))
        assert [e["iter"] for e in helpers.ledger(runner, "veto")] == spoil
    assert small.same(*runs)


@pytest.mark.parametrize(
    ("fused", "waits"), [(True, 0), (False, 1)], ids=["fused", "plain"]
)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_fused_optimizer_needs_no_wait(tmp_path, dtype, fused, waits):
    optimizer = dict(type="SGD", lr=0.1, momentum=0.9, fused=fused)
    wrapper = dict(loss_scale=dict(enabled=False)) if dtype else {}
    counts = []
    for hooks in ([], [*helpers.MONITORS, GUARD]):
        with CountReads() as mode:
            _, states = run(tmp_path, hooks, optimizer, dtype, 8, mode, **wrapper)
        counts.append(states.reads)
    added = [b - a for a, b in zip(*counts)]
    assert added[2:] == [1 + waits] * 6


@pytest.mark.parametrize("optimizer", FUSED)
def test_a_healthy_run_is_bit_for_bit_that_without_hooks(tmp_path, optimizer):
    runs = [
        small.state(run(tmp_path, hooks, optimizer)[0])
        for hooks in ([], [dict(type="amp_hooks.StabilityHook")])
    ]
    assert small.same(*runs)


@pytest.mark.parametrize("value", [1.0, 0.0, -1e30, torch.inf, -torch.inf, torch.nan])
def test_the_flag(value):
    flag = nonfinite_flag(torch.tensor([1.0, value, 2.0]))
    assert flag.item() == float(not torch.tensor(value).isfinite())
    assert flag.dtype == torch.float32
