"""The first module with non-finite output is named, in real detectors."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from amp_hooks.engine.rng import restore_rng
from amp_hooks.forensics.dump import load_call, load_weights
from amp_hooks.precision.half_rehearsal import half_rehearsal
from tests import helpers
from tests.forensics.first_bad import FirstBad
from tests.integration.test_ddp import fault_on_rank_1, train_on_two_ranks

SCRIPTS = helpers.ROOT / "scripts"
FORENSICS = dict(type="amp_hooks.ForensicsHook", max_dumps=4, save_weights=False)
UNDO = [
    dict(type="amp_hooks.StepGuardHook"),
    dict(type="amp_hooks.RollbackHook", interval=1, probation=0, warmup_iters=0),
]


def forward(where, value="nan"):
    # All values: of one, a head's loss may take no notice.
    return dict(what="forward", where=where, value=value, count="all")


def weight(where, value="nan"):
    return dict(what="parameter", where=f"{where}.weight", value=value)


# What is broken, and the kind and module that must be named: four in each detector.
FAULTS = {
    "faster_rcnn": [
        (forward("backbone.layer2.0.conv1"), "nan", "backbone.layer2.0.conv1"),
        (forward("neck.fpn_convs.1.conv", "inf"), "overflow", "neck.fpn_convs.1.conv"),
        (weight("rpn_head.rpn_cls"), "weights", "rpn_head.rpn_cls"),
        (
            forward("roi_head.bbox_head.shared_fcs.1", "inf"),
            "overflow",
            "roi_head.bbox_head.shared_fcs.1",
        ),
    ],
    "cascade_rcnn": [
        (
            forward("roi_head.bbox_head.1.shared_fcs.1"),
            "nan",
            "roi_head.bbox_head.1.shared_fcs.1",
        ),
        (
            forward("roi_head.bbox_head.2.shared_fcs.0", "inf"),
            "overflow",
            "roi_head.bbox_head.2.shared_fcs.0",
        ),
        (dict(what="images", value="inf"), "input", ""),
        (forward("rpn_head.rpn_conv"), "nan", "rpn_head.rpn_conv"),
    ],
    "retinanet": [
        (
            forward("bbox_head.reg_convs.0.conv"),
            "nan",
            "bbox_head.reg_convs.0.conv",
        ),
        (
            forward("neck.fpn_convs.0.conv", "inf"),
            "overflow",
            "neck.fpn_convs.0.conv",
        ),
        (weight("backbone.conv1", "inf"), "weights", "backbone.conv1"),
        (dict(what="loss", value="nan"), "loss", ""),
    ],
    "detr": [
        (
            forward("encoder.layers.1.self_attn"),
            "nan",
            "encoder.layers.1.self_attn",
        ),
        (weight("decoder.layers.2.ffn.layers.1"), "weights", "decoder.layers.2.ffn.*"),
        # This one reaches the Hungarian assigner, which raises.
        (forward("bbox_head.fc_cls"), "nan", "bbox_head.fc_cls"),
        (forward("bbox_head.fc_reg"), "nan", "bbox_head.fc_reg"),
    ],
    "mask_rcnn": [
        (
            forward("roi_head.mask_head.convs.2.conv"),
            "nan",
            "roi_head.mask_head.convs.2.conv",
        ),
        (
            forward("roi_head.mask_head.convs.3.conv", "inf"),
            "overflow",
            "roi_head.mask_head.convs.3.conv",
        ),
        (weight("roi_head.mask_head.upsample"), "weights", "roi_head.mask_head.ups*"),
        (
            dict(what="gradient", where="roi_head.mask_head.convs.0.conv.weight"),
            "gradient",
            None,
        ),
    ],
}


NARROW = {
    "model.backbone.base_channels": 8,
    "model.neck.in_channels": [8, 16, 32, 64],
    "model.roi_head.bbox_head.fc_out_channels": 64,
}


@pytest.fixture
def detector(monkeypatch, digits, tmp_path):
    """``detector(name, iters, hooks)``: mmdet's own, made small."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import fault_matrix
    import sweep_detectors

    def make(name, iters, hooks, precision="float32"):
        if name != "mask_rcnn":
            return fault_matrix.make_runner(
                name, precision, "iter", iters, hooks, str(digits)
            )
        family = dataclasses.replace(sweep_detectors.FAMILIES[name], options=NARROW)
        return sweep_detectors.build_runner(family, str(tmp_path), hooks, iters)

    return make


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # of mmdet, told by torch
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("name", FAULTS)
def test_twenty_injected_faults_are_named(detector, name):
    faults = [dict(f, at=1 + 2 * i) for i, (f, _, _) in enumerate(FAULTS[name])]
    injection = dict(type="amp_hooks.FaultInjectionHook", faults=faults)
    runner = detector(name, 9, [injection, *UNDO, FORENSICS])
    runner.train()
    found = helpers.dumps(runner)
    for i, (fault, kind, module) in enumerate(FAULTS[name]):
        report = found[1 + 2 * i]
        assert report["kind"] == kind, (fault, report["finding"])
        if module and module.endswith("*"):  # mmcv wraps it once more
            assert report["module"].startswith(module[:-1]), fault
        else:
            assert report["module"] == module, (fault, report["finding"])
    lines = helpers.ledger(runner, "forensics")
    assert [line["iter"] for line in lines] == [1, 3, 5, 7]


# Too high a learning rate, from the beginning.
NATURAL = [
    ("faster_rcnn", "float16", 3.0),
    ("cascade_rcnn", "float16", 3.0),
    ("retinanet", "float16", 3.0),
    ("fcos", "float32", 1e6),
    ("retinanet", "float32", 1e12),
]


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize(("name", "precision", "lr"), NATURAL)
def test_natural_divergence(detector, name, precision, lr):
    """An independent search, operation by operation, finds the same module."""
    hooks = [dict(type="amp_hooks.StepGuardHook"), dict(FORENSICS, save_weights=True)]
    runner = detector(name, 60, hooks, precision)
    runner.optim_wrapper["optimizer"]["lr"] = lr
    stop_at_the_first(runner)
    runner.train()
    ((iteration, report),) = helpers.dumps(runner).items()
    folder = Path(runner.log_dir) / "faults" / f"iter_{iteration}"
    model = MODELS.build(runner.cfg.model).train()
    load_weights(model, str(folder))
    call = load_call(str(folder))
    restore_rng(call.rng)
    search = FirstBad(model)
    with half_rehearsal() if precision == "float16" else nullcontext(), search:
        losses = model(*call.args, **call.kwargs)
        model.parse_losses(losses)
    assert report["kind"] in ("overflow", "nan", "code", "loss")
    assert search.found[0] == report["module"], (search.found, report["finding"])


def stop_at_the_first(runner):
    hook = next(h for h in runner.hooks if type(h).__name__ == "ForensicsHook")
    after_record = hook.after_record

    def stopping(runner, runtime, record):
        after_record(runner, runtime, record)
        runner.train_loop._max_iters = runner.iter + 1 if hook.dumps else 60

    hook.after_record = stopping


WITHOUT = [h for h in helpers.SUITE if h["type"] != "amp_hooks.ForensicsHook"]


def outcome(runner):
    """Everything that a second run could have changed."""
    runner.train()
    records = [(r.verdict, r.values) for r in helpers.records(runner)]
    learned = helpers.losses(runner), helpers.state(runner)
    return *learned, str(records), torch.get_rng_state()


def check_equal(without, with_forensics):
    (losses, state, records, rng), (losses2, state2, records2, rng2) = (
        without,
        with_forensics,
    )
    assert str(losses) == str(losses2)  # NaN among them
    assert records == records2
    assert [n for n in state if not torch.equal(state[n], state2[n])] == []
    assert torch.equal(rng, rng2)


@pytest.mark.parametrize(
    ("loop", "options"),
    [
        (dict(iters=9), dict(precision="float32")),
        (dict(epochs=1), dict(precision="float16")),
        (dict(iters=9), dict(precision="bfloat16", accumulate=2)),
    ],
)
def test_training_goes_on_bit_for_bit_as_without(build, loop, options):
    name = "retinanet" if options["precision"] == "bfloat16" else "faster_rcnn"
    scale = {"optim_wrapper.loss_scale": 128.0}
    options["options"] = None if options["precision"] == "float32" else scale
    outcomes = []
    for forensics in ([], [dict(FORENSICS, at=[1])]):
        hooks = [helpers.infinite_images(4), *WITHOUT, *forensics]
        runner = build(name, **loop, **options, hooks=hooks)
        outcomes.append(outcome(runner))
        assert set(helpers.dumps(runner)) == ({1, 4} if forensics else set())
    check_equal(*outcomes)


DYNAMIC = {
    "model.train_cfg.rcnn.dynamic_rcnn.update_iter_interval": 2,
    "model.train_cfg.rcnn.dynamic_rcnn.initial_iou": 0,
}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dynamic_rcnn", DYNAMIC),  # changes its assigner by what it has seen
        ("rtmdet_ins", {}),  # exchanges the masks of its data samples
    ],
)
def test_detectors_that_keep_books_in_the_forward_pass(
    monkeypatch, tmp_path, name, options
):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import sweep_detectors

    family = sweep_detectors.FAMILIES[name]
    family = dataclasses.replace(family, options={**family.options, **options})
    outcomes = []
    for forensics in ([], [dict(FORENSICS, at=[0, 4])]):
        hooks = [helpers.fault("loss", 2, where="*cls*"), *WITHOUT[:5], *forensics]
        runner = sweep_detectors.build_runner(family, str(tmp_path), hooks, 6)
        torch.manual_seed(0)
        outcomes.append(outcome(runner))
    assert sorted(helpers.dumps(runner)) == [0, 2, 4]
    assert {r["kind"] for r in helpers.dumps(runner).values()} == {"unknown", "loss"}
    check_equal(*outcomes)


def told(work_dir):
    """The one line that the ranks have written of a fault."""
    (path,) = work_dir.glob("*/stability.jsonl")
    (line,) = [e for e in helpers.read_ledger(path) if e["event"] == "forensics"]
    return line


def test_gradients_of_one_rank(digits, tmp_path):
    """Nobody knows whose they were: each rank looks, and the right one tells."""
    fault = helpers.fault("gradient", 3, where="backbone.conv1.weight", rank=1)
    hooks = [fault, *helpers.MONITORS, UNDO[0], FORENSICS]
    train_on_two_ranks(
        digits, tmp_path / "w", iters=5, hooks=hooks, precision="float32"
    )
    line = told(tmp_path / "w")
    assert (line["iter"], line["rank"], line["kind"]) == (3, 1, "gradient")


def test_the_fault_of_one_rank_of_two(digits, tmp_path):
    """Rank 1 looks into it alone, while the model's own collective has no partner."""
    hooks = [fault_on_rank_1(3), *helpers.MONITORS, UNDO[0], FORENSICS]
    train_on_two_ranks(
        digits,
        tmp_path / "w",
        iters=5,
        hooks=hooks,
        options={
            "model.type": "ReducingRetinaNet",
            "optim_wrapper.loss_scale": 128.0,
        },
    )
    line = told(tmp_path / "w")
    assert (line["iter"], line["rank"], line["kind"]) == (3, 1, "input")
    text = Path(line["folder"], "report.txt").read_text()
    assert "rank 1" in text
    assert "inputs" in line["finding"]


def test_the_batch_of_an_accumulation_is_the_one_that_failed(digits, tmp_path):
    """Ranks agree at the step only; the batch that failed was the one before."""
    hooks = [fault_on_rank_1(4), *helpers.MONITORS, UNDO[0], FORENSICS]
    train_on_two_ranks(
        digits,
        tmp_path / "w",
        iters=7,
        hooks=hooks,
        accumulate=3,
        options={"optim_wrapper.loss_scale": 128.0},
    )
    line = told(tmp_path / "w")
    assert (line["iter"], line["rank"], line["kind"]) == (5, 1, "input")
