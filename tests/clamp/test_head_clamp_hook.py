import json
from pathlib import Path

import pytest
import torch

from amp_hooks.engine.runtime import Runtime
from amp_hooks.engine.torch_api import is_autocast_enabled
from amp_hooks.registry import HOOKS
from tests import helpers

CLS = "roi_head.bbox_head.fc_cls"


def clamp(**kwargs):
    return dict(type="amp_hooks.HeadClampHook", **kwargs)


def big_weight(at, factor):
    return helpers.fault("parameter", at, where=f"{CLS}.weight", value=f"x{factor}")


class SpyLoss:
    """What the classification loss is given."""

    def __init__(self, runner):
        self.runner, self.seen = runner, {}
        loss = runner.model.roi_head.bbox_head.loss_cls
        loss.register_forward_pre_hook(self)

    def __call__(self, module, args):
        autocast = is_autocast_enabled("cpu")
        self.seen[self.runner.iter] = (args[0].detach().abs().max().item(), autocast)


@pytest.mark.parametrize("loop", [dict(iters=9), dict(epochs=1)])
def test_on_by_need_off_after_a_clean_stretch(build, loop):
    """The classifier's weights jump by 1e5 and come back: logits far beyond FP16."""
    fault, mend = big_weight(2, 1e5), big_weight(4, 1e-5)
    hooks = [fault, mend, clamp(release_after=3), helpers.SUITE[-1]]
    options = {"optim_wrapper.optimizer.lr": 1e-6, "log_level": "INFO"}
    runner = build("faster_rcnn", **loop, hooks=hooks, ema=False, options=options)
    spy = SpyLoss(runner)
    runner.train()
    (on,), (off,) = (helpers.ledger(runner, e) for e in ("clamp_on", "clamp_off"))
    assert (on["iter"], off["iter"]) == (2, 6)
    assert on["limit"] == off["limit"] == 100.0
    assert on["reason"] == "large logits"
    assert (off["since"], off["clean_iterations"]) == (2, 3)
    text = helpers.log(runner)
    assert "iteration 2: large logits" in text
    assert "the clamp that was on since iteration 2 is off" in text
    assert spy.seen[2][0] > 1000.0
    # From the next iteration: bounded, and FP32 in the layer and in the loss.
    assert spy.seen[3] == (100.0, False)
    assert spy.seen[5][1] is False
    assert spy.seen[7][1] is True
    records = Runtime.of(runner).recorder.records
    assert [r.get("clamp_active") for r in records][:8] == [0, 0, 1, 1, 1, 1, 0, 0]
    # The monitor sees what the layer wanted to say, not what was let through.
    assert records[3].get("logit_absmax", CLS) > 1000.0
    assert 0.0 < records[3].get("clamped", CLS) <= 1.0
    assert records[5].get("clamped", CLS) == 0.0


def test_named_targets_are_clamped_from_the_first_iteration(build):
    hooks = [
        big_weight(0, 1e4),
        clamp(when="always", limit=7.0, targets=CLS),
    ]
    runner = build("faster_rcnn", iters=2, hooks=hooks, ema=False)
    spy = SpyLoss(runner)
    runner.train()
    assert spy.seen[0][0] == 7.0


def test_inside_the_limit_nothing_changes_in_fp32(build):
    runs = []
    for hooks in ([], [clamp(when="always")]):
        runner = build("faster_rcnn", iters=4, precision="float32", hooks=hooks)
        runner.train()
        runs.append((helpers.losses(runner), helpers.state(runner)))
    assert runs[0][0] == runs[1][0]
    assert [k for k, v in runs[0][1].items() if not torch.equal(v, runs[1][1][k])] == []


def test_evaluation_is_not_clamped(build):
    hook = clamp(when="always", limit=1e-6, targets=CLS)
    runner = build("faster_rcnn", iters=1, hooks=[hook])
    layer = runner.model.roi_head.bbox_head.fc_cls
    seen = []

    def look(runner, batch_idx, data_batch=None, outputs=None):
        x = torch.ones(1, layer.in_features)
        seen.append(layer(x).abs().max().item())
        runner.model.eval()
        with torch.no_grad():
            seen.append(layer(x).abs().max().item())
        runner.model.train()

    helpers.hook_of(runner, "HeadClampHook").after_train_iter = look
    runner.train()
    assert seen[0] <= 1e-6 < seen[1]


def test_at_the_end_the_model_is_as_it_was(build):
    runner = build("retinanet", iters=3, hooks=[clamp(when="always")])
    head = runner.model.bbox_head
    runner.train()
    assert helpers.records(runner)[-1].get("clamped", "bbox_head.retina_cls") == 0.0
    assert "loss_by_feat" not in vars(head)
    assert not head.retina_cls._forward_hooks
    assert not head.retina_cls._forward_pre_hooks


@pytest.mark.parametrize("loop", [dict(iters=20), dict(epochs=2)])
@pytest.mark.parametrize("heeded", [True, False])
def test_an_early_warning_switches_it_on(build, loop, heeded):
    """Logits of 200 after a tenth of that: inside the trigger, but on their way up."""
    hooks = [
        big_weight(11, 600.0),
        big_weight(13, 1 / 600.0),
        helpers.MONITORS[1],
        clamp(release_after=3, early_warning=heeded),
        dict(type="amp_hooks.StabilityPanelHook", interval=1),
    ]
    options = {"optim_wrapper.optimizer.lr": 1e-6}
    runner = build("faster_rcnn", **loop, hooks=hooks, ema=False, options=options)
    runner.train()
    (warning,) = helpers.ledger(runner, "early_warning")
    assert (warning["iter"], warning["layer"]) == (11, CLS)
    assert 100 < warning["absmax"] < 1000
    events = helpers.ledger(runner, "clamp_on") + helpers.ledger(runner, "clamp_off")
    active = scalars(runner, "amp/clamp_active")
    if not heeded:
        assert (events, set(active.values())) == ([], {0.0})
        return
    on, off = events
    assert (on["iter"], on["reason"]) == (11, "early warning")
    assert (off["iter"], off["since"]) == (15, 11)
    assert [s for s, value in active.items() if value] == [12, 13, 14, 15]
    assert scalars(runner, "amp/clamped_fraction")[13] > 0


def scalars(runner, name):
    """Step to value, as LocalVisBackend wrote them."""
    path = Path(runner.log_dir) / "vis_data" / "scalars.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


@pytest.mark.parametrize(
    ("precision", "factor", "on"),
    [("float16", 2e4, True), ("float16", 1.5e3, False), ("float32", 2e4, False)],
)
def test_headroom_is_that_of_the_layers_precision(build, precision, factor, on):
    hook = clamp(trigger=dict(headroom_bits=6.0))
    runner = build(
        "faster_rcnn",
        iters=3,
        precision=precision,
        hooks=[big_weight(1, factor), hook],
        ema=False,
        options={"optim_wrapper.optimizer.lr": 1e-6},
    )
    runner.train()
    (absmax,) = [r.get("logit_absmax", CLS) for r in helpers.records(runner)][1:2]
    assert (absmax > 65504 / 2**6) is (factor == 2e4)
    events = helpers.ledger(runner, "clamp_on")
    assert [(e["iter"], e["reason"]) for e in events] == on * [(1, "large logits")]


def test_between_limit_and_trigger_it_does_not_flap(build):
    """Once on, logits go to and fro about the limit, and above it about the trigger."""
    swings = [big_weight(i, 10.0 if i % 2 else 0.1) for i in range(4, 14)]
    runner = build(
        "faster_rcnn",
        iters=14,
        hooks=[
            big_weight(2, 1e5),
            big_weight(3, 1e-2),
            *swings,
            clamp(release_after=2),
        ],
        ema=False,
        options={"optim_wrapper.optimizer.lr": 1e-6},
    )
    runner.train()
    sizes = [r.get("logit_absmax", CLS) for r in helpers.records(runner)][4:]
    assert all(100 < size < 1000 for size in sizes[1::2])
    assert all(size < 100 for size in sizes[::2])
    assert [e["iter"] for e in helpers.ledger(runner, "clamp_on")] == [2]
    assert helpers.ledger(runner, "clamp_off") == []


def test_only_its_own_layers_count(build):
    where = "bbox_head.retina_cls.weight"
    fault = helpers.fault("parameter", 1, where=where, value="x1e5")
    hooks = [fault, helpers.MONITORS[1], clamp(targets="bbox_head.retina_reg")]
    runner = build("retinanet", iters=3, hooks=hooks, precision="float32")
    runner.train()
    sizes = helpers.records(runner)[1].values["logit_absmax"]
    assert sizes["bbox_head.retina_cls"] > 1000 > 100 > sizes["bbox_head.retina_reg"]
    assert helpers.ledger(runner, "clamp_on") == []


def test_it_stays_on_while_infinities_come_whatever_the_finite_logits(build):
    runner = build(
        "faster_rcnn",
        iters=8,
        hooks=[clamp(release_after=2)],
        ema=False,
        options={
            "optim_wrapper.optimizer.lr": 1e-6,
            "optim_wrapper.optimizer.weight_decay": 0.0,
        },
    )
    with torch.no_grad():
        runner.model.roi_head.bbox_head.fc_cls.bias[0] = float("inf")
    runner.model.init_weights = lambda: None
    runner.train()
    (on,) = helpers.ledger(runner, "clamp_on")
    assert (on["iter"], on["reason"]) == (0, "non-finite forward")
    assert torch.isfinite(torch.tensor(helpers.losses(runner))[1:]).all()
    assert all(r.get("logit_absmax", CLS) < 100 for r in helpers.records(runner))
    assert helpers.ledger(runner, "clamp_off") == []


def test_one_layer_on_many_levels_and_under_two_names(build):
    runner = build(
        "retinanet",
        iters=1,
        hooks=[clamp(when="always", limit=1e-3, targets="*retina_*")],
    )
    head = runner.model.bbox_head
    head.another_retina_name = head.retina_cls
    seen = []
    head.loss_cls.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach().abs().max().item())
    )
    runner.train()
    assert len(seen) > 3  # levels
    assert all(size <= 1.001e-3 for size in seen)
    (record,) = helpers.records(runner)
    layers = ["bbox_head.retina_cls", "bbox_head.retina_reg"]
    assert sorted(record.values["clamped"]) == layers


def test_state_survives_a_resume(build, tmp_path):
    hooks = [big_weight(1, 1e5), clamp()]
    work = dict(work_dir=tmp_path / "w", ema=False)
    build("faster_rcnn", iters=3, hooks=hooks, **work).train()
    hooks = [big_weight(4, 1e-5), clamp(release_after=2)]
    runner = build("faster_rcnn", iters=7, hooks=hooks, **work)
    runner._resume = True
    spy = SpyLoss(runner)
    runner.train()
    assert spy.seen[3][0] == 100.0  # the first iteration already
    assert helpers.ledger(runner, "clamp_on") == []
    (off,) = helpers.ledger(runner, "clamp_off")
    assert (off["iter"], off["since"]) == (5, 1)


@pytest.mark.parametrize(
    ("before", "after", "active", "since"),
    [
        (dict(), dict(), False, None),
        (dict(when="always"), dict(when="always"), True, 0),
        (dict(when="always"), dict(), True, 0),  # until it is calm
        (dict(), dict(when="always"), True, 2),
    ],
)
def test_off_stays_off_and_the_config_may_change(
    build, tmp_path, before, after, active, since
):
    work = dict(work_dir=tmp_path / "w", ema=False)
    build("retinanet", iters=2, hooks=[clamp(**before)], **work).train()
    runner = build("retinanet", iters=3, hooks=[clamp(**after)], **work)
    runner._resume = True
    runner.train()
    hook = helpers.hook_of(runner, "HeadClampHook")
    assert (hook.active, hook.since) == (active, since)
    assert helpers.records(runner)[-1].get("clamp_active") == active
    assert ("clamped" in helpers.records(runner)[-1].values) == active


def test_two_clamps_in_one_config_keep_their_own_state(build, tmp_path):
    """One for the classifier, one at the edge of FP16 for something else."""
    body = clamp(
        when="always", limit=60000.0, targets="roi_head.bbox_head.shared_fcs.*"
    )
    work = dict(work_dir=tmp_path / "w", ema=False)
    hooks = [big_weight(1, 1e5), body, clamp()]
    build("faster_rcnn", iters=3, hooks=hooks, **work).train()
    hooks = [big_weight(4, 1e-5), body, clamp(release_after=2)]
    runner = build("faster_rcnn", iters=7, hooks=hooks, **work)
    runner._resume = True
    runner.train()
    body, head = (h for h in runner.hooks if type(h).__name__ == "HeadClampHook")
    assert (head.active, body.active, body.since) == (False, True, 0)
    assert set(head._layers) == {CLS, "rpn_head.rpn_cls"}
    assert [e["since"] for e in helpers.ledger(runner, "clamp_off")] == [1]
    clamped = [set(r.values["clamped"]) for r in helpers.records(runner)]
    fcs = {f"roi_head.bbox_head.shared_fcs.{i}" for i in (0, 1)}
    assert clamped[0] == clamped[2] == {CLS, "rpn_head.rpn_cls"} | fcs
    assert clamped[3] == fcs
    # One of them is on: so the panel says. Infinities in its layers are no faults.
    assert Runtime.of(runner).forward.clamped == fcs
    assert {r.get("clamp_active") for r in helpers.records(runner)} == {1.0}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (dict(limit=0), ValueError, "limit must be greater than 0"),
        (dict(mode="medium"), ValueError, r"mode must be one of \('hard', 'soft'\)"),
        (dict(when="never"), ValueError, r"when must be one of \('always', 'trig"),
        (dict(trigger=50.0), ValueError, "trigger=50.0 must not be below limit=100.0"),
        (
            dict(limit=60000.0),
            ValueError,
            "trigger=None, which is 1000.0 in FP16, must not be below limit=6000",
        ),
        (dict(trigger=dict(bits=3)), ValueError, "headroom_bits=6.0.*'bits': 3"),
        (dict(trigger=dict(headroom_bits=None)), TypeError, "headroom_bits.*number"),
        (dict(when="always", trigger="x"), TypeError, "trigger must be a number"),
        (dict(early_warning=1), TypeError, "early_warning must be"),
        (dict(release_after=0), ValueError, "release_after must be at least 1"),
        (dict(release=3), TypeError, "Did you mean 'release_after'"),
    ],
)
def test_a_mistake_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        HOOKS.build(clamp(**options))


def test_a_pattern_that_matches_nothing_names_the_nearest(build):
    runner = build("faster_rcnn", iters=1, hooks=[clamp(targets="*.box.fc_cls")])
    with pytest.raises(ValueError, match=f"'\\*.box.fc_cls' in targets.*{CLS}"):
        runner.train()


def test_always_needs_no_trigger():
    hook = HOOKS.build(clamp(when="always", limit=60000.0, targets="*.ffn"))
    assert (hook.limit, hook.trigger) == (60000.0, None)
