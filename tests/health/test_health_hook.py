"""Runs that are ruined and finite, and runs that are well."""

import ast
import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook

from amp_hooks.engine.runtime import Runtime
from amp_hooks.engine.safe_read import read_safely
from amp_hooks.panel.scalars import scalars_of
from amp_hooks.report.judge.incidents import find
from amp_hooks.report.judge.status import Status, judge
from amp_hooks.report.read.work_dir import read_run
from tests import helpers, processes, small

ROLLBACK = dict(interval=25, probation=5)
SUITE = [dict(type="amp_hooks.StabilityHook", rollback=ROLLBACK)]
ACTED = ("watch", "diverged", "well", "rollback", "abort", "veto", "clamp_on")


def mean(losses):
    return sum(losses) / len(losses)


@pytest.mark.parametrize("factor", [100, 1000, 10000])
@pytest.mark.parametrize("dtype", small.DTYPES)
def test_a_learning_rate_that_jumps(tmp_path, dtype, factor):
    """Every number stays finite, and stock ends at ten times the loss, or NaN."""
    seen = small.Seen()
    hooks = [*SUITE, small.RaiseLR(factor), seen]
    runner = small.build(tmp_path, hooks, dtype=dtype, iters=400)
    runner.train()
    healthy = small.Seen()
    small.build(tmp_path, [healthy], dtype=dtype, iters=400).train()
    assert mean(seen.losses[-40:]) <= 1.3 * mean(healthy.losses[-40:])
    first = small.ledger(runner, "rollback")[0]
    assert first["target_iter"] <= 60 < first["iter"] <= 90
    if first["verdict"] == "DIVERGED":
        assert f"the learning rate rose x{factor} there" in first["why"]
    else:  # at x1000 FP16 has no numbers for it
        assert dtype == "float16"
        assert factor > 100
    # No more than what it had risen by: then it is what it was.
    assert first["lr_factor"] == pytest.approx(1 / factor)


@pytest.mark.parametrize("loop", [dict(iters=256), dict(epochs=8)], ids=str)
def test_in_both_loops_and_the_report_tells(tmp_path, loop):
    stock = small.Seen()
    small.build(tmp_path, [small.RaiseLR(1000), stock], **loop).train()
    assert math.isfinite(mean(stock.losses))
    assert mean(stock.losses[-40:]) > 3

    seen = small.Seen()
    runner = small.build(tmp_path, [*SUITE, small.RaiseLR(1000), seen], **loop)
    runner.train()
    assert mean(seen.losses[-40:]) < 1
    run = read_run(Path(runner.work_dir))
    assert judge(run, find(run)).status is Status.RECOVERED


@pytest.mark.parametrize("dtype", small.DTYPES)
@pytest.mark.parametrize("loop", [dict(iters=300), dict(epochs=8)], ids=str)
def test_a_healthy_run_is_left_alone(tmp_path, dtype, loop):
    stock = small.build(tmp_path, dtype=dtype, **loop)
    stock.train()
    runner = small.build(tmp_path, SUITE, dtype=dtype, **loop)
    runner.train()
    assert small.same(small.state(stock), small.state(runner))
    acted = small.ledger(runner, "diverged", "rollback", "abort", "clamp_on")
    assert acted == []


def test_alone_it_tells(tmp_path):
    hooks = [dict(type="amp_hooks.HealthHook"), small.RaiseLR(1000)]
    stock = small.build(tmp_path, hooks[1:])
    stock.train()
    runner = small.build(tmp_path, hooks)
    runner.train()
    assert small.same(small.state(stock), small.state(runner))
    (line,) = small.ledger(runner, "diverged")
    assert 60 <= line["since"] <= 62
    assert line["loss_ratio"] > 5
    assert line["verdict"] == "DIVERGED"
    run = read_run(Path(runner.work_dir))
    judged = judge(run, find(run))
    assert judged.status is Status.LOST
    assert line["why"] in judged.reasons[0]


def test_it_can_be_switched_off(tmp_path):
    health = dict(type="amp_hooks.HealthHook", divergence=False)
    runner = small.build(tmp_path, [health, small.RaiseLR(1000)])
    runner.train()
    assert small.ledger(runner, *ACTED) == []


def test_what_was_saved_since_the_onset_is_withdrawn(tmp_path):
    """A slow ruin: the learning rate rises by a fifth in every iteration.

    Until the run goes back: who raises it further wants another run.
    """

    class Creep(small.RaiseLR):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if 60 <= runner.iter < 110 and not small.ledger(runner, "rollback"):
                for group in runner.optim_wrapper.param_groups:
                    group["lr"] *= 1.2

    suite = [
        dict(type="amp_hooks.StabilityHook", rollback=dict(interval=5, probation=2))
    ]
    runner = small.build(tmp_path, [*suite, Creep(1)], iters=400)
    runner.train()
    (first, *_) = small.ledger(runner, "rollback")
    assert first["target_iter"] < first["iter"]
    pointer = (Path(runner.work_dir) / "last_checkpoint").read_text()
    good = read_safely(pointer)
    model = small.Small()
    model.load_state_dict(good["state_dict"])
    model.eval()
    data = small.samples()
    x = torch.stack([s["x"] for s in data])
    y = torch.tensor([s["y"] for s in data])
    with torch.no_grad():
        loss = float(nn_loss(model(x, y, mode="tensor"), y))
    assert loss < 1


def nn_loss(logits, y):
    return torch.nn.functional.cross_entropy(logits, y)


def test_nothing_is_kept_while_it_is_watched(tmp_path):
    """Snapshots are due every five iterations; none is taken from the onset on."""
    hooks = [
        dict(type="amp_hooks.StepGuardHook"),
        dict(type="amp_hooks.HealthHook"),
        dict(type="amp_hooks.RollbackHook", interval=5, probation=0, max_rollbacks=0),
        small.RaiseLR(1000),
    ]
    runner = small.build(tmp_path, hooks)
    with pytest.raises(Exception, match="left its healthy range") as raised:
        runner.train()
    assert type(raised.value).__name__ == "TrainingDivergedError"
    (watch,) = small.ledger(runner, "watch")
    snapshots = [line["iter"] for line in small.ledger(runner, "snapshot")]
    assert max(snapshots) <= watch["iter"]
    (abort,) = small.ledger(runner, "abort")
    assert abort["verdict"] == "DIVERGED"


def test_a_single_batch_is_no_illness_and_blames_no_learning_rate(tmp_path):
    class Spike(small.Small):
        times = 1e4

        def losses(self, features, logits, y):
            more = self.times if self.calls == 61 else 1.0
            return dict(
                super().losses(features, logits, y),
                loss_aux=more * features.square().mean() * 1e-3,
            )

    class Ruin(Spike):
        times = 3e9

    harmless = small.build(tmp_path, SUITE, Spike, iters=200)
    harmless.train()
    assert small.ledger(harmless, "diverged", "rollback") == []

    seen = small.Seen()
    ruined = small.build(tmp_path, [*SUITE, seen], Ruin, iters=200)
    ruined.train()
    (line,) = small.ledger(ruined, "rollback")
    assert line["target_iter"] <= 60
    assert line["lr_factor"] == 1  # one iteration did it
    assert mean(seen.losses[-40:]) < 1


def test_state_survives_a_resume(tmp_path):
    """Killed at iteration 55, the run knows its level when the jump comes."""
    hooks = [
        dict(type="amp_hooks.StabilityHook", rollback=dict(interval=25, probation=5))
    ]

    class Stop(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 55:
                raise KeyboardInterrupt

    first = small.build(tmp_path, [*hooks, Stop()], iters=200)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    (abort,) = small.ledger(first, "abort")
    assert abort["error"] == "KeyboardInterrupt"
    again = dict(work_dir=first.work_dir, resume=True)
    second = small.build(tmp_path, [*hooks, small.RaiseLR(1000)], iters=200, **again)
    second.train()
    assert small.ledger(second, "rollback")[0]["iter"] <= 90


def test_a_metric_that_falls_to_nothing(tmp_path):
    """Losses say nothing of it: the evaluation does, twice."""

    class Falls(BaseMetric):
        values = [0.3, 0.4, 0.01, 0.0, 0.4, 0.5]

        def process(self, data_batch, data_samples):
            self.results.append(0)

        def compute_metrics(self, results):
            return dict(mAP=self.values.pop(0))

    metric = Falls()
    metric.values = list(Falls.values)
    runner = small.build(
        tmp_path,
        SUITE,
        epochs=6,
        val_dataloader=dict(
            dataset=small.samples(8),
            batch_size=8,
            collate_fn=dict(type="default_collate"),
            sampler=dict(type="DefaultSampler", shuffle=False),
        ),
        val_evaluator=Evaluator(metric),
        val_cfg=dict(),
    )
    runner.train()
    (line, *more) = small.ledger(runner, "diverged")
    assert not more
    assert "mAP" in line["why"]
    assert 96 <= line["iter"] <= 129
    assert small.ledger(runner, "rollback")[0]["target_iter"] < 96


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "kind"),
    [(1, "reduced"), (1000, "by_name"), (1, "parts"), (1, "written")],
)
def test_two_ranks_go_back_together(tmp_path, factor, kind):
    """Each judges its own loss; what one of them finds the other learns of.

    Where a collective of the model cannot be done by rank 0 alone, the loss decides.
    """
    program = helpers.ROOT / "tests/health/two_ranks.py"
    done = processes.two_ranks(
        program, tmp_path, factor, kind, timeout=300, cwd=helpers.ROOT
    )
    lines = sorted(x for x in done.stdout.splitlines() if x.startswith("rank"))
    (_, went, mean, weights, costs), (_, *other) = (x.split(" | ") for x in lines)
    assert [went, weights, costs] == [other[0], *other[2:]]
    known = r"weights of now cost 0\.\d+ and those of iteration 0 1\."
    alone = kind in ("reduced", "written")
    assert re.search(known if alone else "None", costs)
    assert (float(mean) < 1) is (kind != "written")
    if kind == "written":  # going back is of no use, which both know
        (back, recover) = ast.literal_eval(went)
        assert back[1] < 90 < back[0] < recover[0] <= back[0] + 10
        assert recover[1] == 1.0
    elif factor == 1:
        assert went == "[]"
    else:
        ((now, target),) = ast.literal_eval(went)
        assert target <= 60 < now <= 90


class Harder(small.Small):
    """From call 100 on a part of the loss that nothing can be done about."""

    more = 0.2

    def losses(self, features, logits, y):
        losses = super().losses(features, logits, y)
        if self.calls > 100:
            losses["loss_cls"] = losses["loss_cls"] + self.more
        return losses


class MuchHarder(Harder):
    more = 2.0


class VeryMuchHarder(Harder):
    more = 20.0


@pytest.mark.parametrize("model", [Harder, MuchHarder, VeryMuchHarder])
@pytest.mark.parametrize("loop", [dict(iters=500), dict(epochs=15)], ids=str)
def test_a_loss_that_is_the_data_s_is_no_illness(tmp_path, loop, model):
    """The weights of before cost as much on the same batch: nothing is taken back."""
    stock = small.build(tmp_path, model=model, **loop)
    stock.train()
    runner = small.build(tmp_path, SUITE, model, **loop)
    runner.train()
    assert small.same(small.state(stock), small.state(runner))
    assert small.ledger(runner, "diverged", "rollback", "abort") == []
    wells = [line for line in small.ledger(runner, "well") if "why" in line]
    assert (not wells) if model is Harder else 1 <= len(wells) <= 2
    for line in wells:
        assert "on this batch the weights of now cost" in line["why"]
    # What is kept is kept on.
    assert small.ledger(runner, "snapshot")[-1]["iter"] >= runner.iter - 60


def test_a_series_of_bad_batches_costs_no_rollback(tmp_path):
    """Twelve in a row, x1000; the gradient is clipped, and stock survives them."""

    class Bad(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            runner.model.factor = 1000.0 if 100 <= runner.iter < 112 else 1.0

    wrapper = dict(clip_grad=dict(max_norm=1.0))
    stock = small.build(tmp_path, [Bad()], small.Scaled, iters=200, wrapper=wrapper)
    stock.train()
    suite = [dict(SUITE[0], head_clamp=None), Bad()]
    runner = small.build(tmp_path, suite, small.Scaled, iters=200, wrapper=wrapper)
    runner.train()
    assert small.same(small.state(stock), small.state(runner))
    assert small.ledger(runner, "rollback", "abort") == []


def test_a_margin_has_all_its_points(tmp_path):
    """TensorBoard draws none if the steps of its three tags differ."""
    seen = []

    class Publish(small.Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            scalars = scalars_of(Runtime.of(runner).recorder.records[-1])
            seen.append([f"amp/loss_{n}" in scalars for n in ("now", "low", "high")])

    spoil = small.SpoilInputs([40, 41])
    hooks = [*SUITE, small.RaiseLR(1e30), spoil, Publish()]
    small.build(tmp_path, hooks, iters=120).train()
    assert {tuple(row) for row in seen} == {(True,) * 3, (False,) * 3}
    assert all(all(row) for row in seen[20:])
