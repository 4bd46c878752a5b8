import builtins
import errno
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

import amp_hooks
from amp_hooks.engine.hook import AmpHook
from amp_hooks.engine.rng import capture_rng
from amp_hooks.forensics.dump import load_call, load_weights, save_dump
from amp_hooks.forensics.replay import Call, Replay
from amp_hooks.forensics.report import report
from tests import helpers
from tests.integration.test_optim_wrapper_dict import options as two_optimizers

GUARD = dict(type="amp_hooks.StepGuardHook")


def forensics(**arguments):
    return dict(type="amp_hooks.ForensicsHook", **arguments)


def nan_at(*iterations, where="backbone.layer1.0.conv1"):
    faults = [dict(what="forward", at=i, where=where, value="nan") for i in iterations]
    return dict(type="amp_hooks.FaultInjectionHook", faults=faults)


def train(build, *hooks, detector="retinanet", iters=5, **options):
    options.setdefault("precision", "float32")
    if "epochs" not in options:
        options["iters"] = iters
    runner = build(detector, hooks=[*helpers.MONITORS, *hooks], **options)
    runner.train()
    return runner


@pytest.mark.parametrize("loop", [dict(iters=5), dict(epochs=1)])
def test_report_batch_and_weights_of_the_fault(build, loop):
    images = helpers.fault("boxes", 2, value="zero")
    # The gradient of an L1 loss would be finite all the same, and the step be taken.
    options = {"model.bbox_head.loss_bbox": dict(type="MSELoss")}
    runner = train(build, images, GUARD, forensics(), options=options, **loop)
    folder = Path(runner.log_dir) / "faults" / "iter_2"
    assert sorted(p.name for p in folder.iterdir()) == [
        "batch.pth",
        "report.json",
        "report.txt",
        "weights.pth",
    ]
    (line,) = helpers.ledger(runner, "forensics")
    assert (line["iter"], line["folder"]) == (2, str(folder))
    assert (line["kind"], line["module"]) == ("code", "bbox_head")
    report = helpers.dumps(runner)[2]
    assert report["consumer"] == "bbox_head.loss_bbox"
    assert report["operation"]["code"] == "dw = torch.log(gw / pw)"
    assert "delta_xywh_bbox_coder.py" in report["operation"]["where"]
    assert len(report["images"]) == 2
    assert "zero width or height" in report["images"][0]["flaws"].values()
    assert len(report["frames"]) == 21
    text = (folder / "report.txt").read_text()
    for image in report["images"]:
        assert Path(image["path"]).is_file()
        assert image["path"] in text
    assert "zero width" in text
    assert "bbox_head.loss_bbox" in text
    (warning,) = [
        event for event in [line["finding"]] if "zero width or height" in event
    ]
    assert "log" in warning
    # What is needed to run it again is there, and is what the model had.
    call = load_call(str(folder))
    assert call.kwargs["inputs"].shape == (2, 3, 64, 64)
    assert call.kwargs["mode"] == "loss"


def test_gradients_and_frames_with_magnitudes(build):
    runner = train(build, nan_at(2), GUARD, forensics(frames=3))
    report = helpers.dumps(runner)[2]
    assert report["module"] == "backbone.layer1.0.conv1"
    # All are NaN behind it, and by StepGuardHook's doing: their names say nothing.
    assert (report["nonfinite_grads_total"], report["nonfinite_grads"]) == (0, [])
    folder = Path(helpers.ledger(runner, "forensics")[0]["folder"])
    assert "Gradients tell nothing here" in (folder / "report.txt").read_text()
    assert math.isnan(float(report["losses"]["loss"]))
    frames = report["frames"]
    assert [frame["module"] for frame in frames][-1] == "backbone.layer1.0.conv1"
    assert len(frames) == 3
    names = [row["name"] for row in frames[-1]["rows"]]
    assert names == ["weight", "input[0]", "output"]
    assert frames[-1]["rows"][-1]["nan"] == 1
    weight = dict(runner.model.named_parameters())["backbone.layer1.0.conv1.weight"]
    assert frames[-1]["rows"][0]["shape"] == list(weight.shape)


def test_a_folder_for_each_incident_up_to_the_limit(build):
    """A streak is one incident; a healthy step ends it."""
    runner = train(build, nan_at(1, 2, 4, 6), GUARD, forensics(max_dumps=2), iters=8)
    assert sorted(helpers.dumps(runner)) == [1, 4]


def test_the_limit_holds_after_a_resume(build, tmp_path):
    options = {"default_hooks.checkpoint.interval": 3, "resume": True}
    hooks = (nan_at(1, 4), GUARD, forensics(max_dumps=1))
    work_dir = tmp_path / "w"
    first = train(build, *hooks, iters=3, work_dir=work_dir, options=options)
    second = train(build, *hooks, iters=6, work_dir=work_dir, options=options)
    assert second.iter == 6
    assert sorted(helpers.dumps(first)) == [1]
    assert sorted(helpers.dumps(second)) == []


def test_on_request_a_healthy_iteration(build):
    runner = train(build, forensics(at=[3]), detector="faster_rcnn")
    report = helpers.dumps(runner)[3]
    assert (report["verdict"], report["kind"]) == ("HEALTHY", "unknown")
    assert report["frames"][-1]["module"] == ""
    # It is the very forward pass of the iteration, random sampling included.
    assert report["losses"]["loss"] == helpers.losses(runner)[3]


def test_the_second_run_is_the_first(build):
    """Same random numbers: the loss of a fault that is in the gradients only."""
    fault = helpers.fault("gradient", 3, where="backbone.conv1.weight")
    runner = train(build, fault, GUARD, forensics(), detector="faster_rcnn")
    report = helpers.dumps(runner)[3]
    assert report["kind"] == "gradient"
    assert report["nonfinite_grads"] == ["backbone.conv1.weight"]
    assert report["losses"]["loss"] == helpers.losses(runner)[3]


def test_an_exception_that_ends_the_run_is_looked_into_before(build):
    fault = helpers.fault("raise", 2, where="bbox_head.retina_cls")
    with pytest.raises(ValueError, match="invalid numeric entries"):
        train(build, fault, forensics())
    (runner,) = [r for r in build.made if r.iter == 2]
    report = helpers.dumps(runner)[2]
    assert (report["verdict"], report["kind"]) == ("RAISED", "raised")
    assert "retina_head.py" in report["error"]


def test_an_exception_that_the_guard_bears_is_looked_into_once(build):
    fault = helpers.fault("raise", 2)
    runner = train(build, fault, GUARD, forensics())
    assert sorted(helpers.dumps(runner)) == [2]
    assert len(helpers.ledger(runner, "forensics")) == 1
    assert runner.iter == 5


def test_any_other_exception_is_not_looked_into(build):
    fault = helpers.fault("raise", 2, value="out of memory")
    with pytest.raises(ValueError, match="out of memory"):
        train(build, fault, forensics())
    assert not list(Path(build.made[-1].log_dir).glob("faults/*"))


def test_without_a_guard_it_says_that_the_weights_are_spoiled(build):
    runner = train(build, nan_at(2), forensics(), iters=3)
    report = helpers.dumps(runner)[2]
    assert any("StepGuardHook" in note for note in report["notes"])
    assert any("Weights that are not finite" in note for note in report["notes"])


def test_fp16_without_a_guard_finds_the_weights_as_they_were(build):
    """GradScaler has skipped the step."""
    runner = train(build, nan_at(2), forensics(), iters=3, precision="float16")
    report = helpers.dumps(runner)[2]
    assert report["module"] == "backbone.layer1.0.conv1"
    (note,) = report["notes"]
    assert "buffers are as the fault has left them" in note
    assert report["dtype"] == "float16"


def test_two_optimizers(build):
    runner = train(
        build, nan_at(2), GUARD, forensics(), iters=4, options=two_optimizers()
    )
    assert helpers.dumps(runner)[2]["module"] == "backbone.layer1.0.conv1"


def test_what_does_not_fit_is_left_out_and_said(build):
    runner = train(build, nan_at(2), GUARD, forensics(max_mib=0.5))
    folder = Path(runner.log_dir) / "faults" / "iter_2"
    assert not (folder / "weights.pth").exists()
    assert (folder / "batch.pth").exists()
    assert "weights.pth was left out" in (folder / "report.txt").read_text()


def test_the_limit_is_over_all_folders(build):
    hook = forensics(max_mib=0.3, save_weights=False)  # a batch has 0.1 MiB
    runner = train(build, nan_at(1, 3, 5, 7), GUARD, dict(hook, max_dumps=9), iters=9)
    folders = sorted(Path(runner.log_dir).glob("faults/*"))
    assert len(folders) == 4
    kept = [p for p in folders if (p / "batch.pth").exists()]
    assert 1 <= len(kept) < 4
    size = sum(f.stat().st_size for p in folders for f in p.glob("*.pth"))
    assert size <= 0.35 * 2**20


def test_a_full_disk_costs_the_report_not_the_run(build, monkeypatch):
    save = torch.save

    def full(obj, f, *args, **kwargs):
        if "faults" in str(f):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f)
        save(obj, f, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    options = {"log_level": "WARNING"}
    runner = train(build, nan_at(2), GUARD, forensics(), options=options)
    assert runner.iter == 5
    assert "No space left" in helpers.log(runner)
    assert not list(Path(runner.log_dir).glob("faults/*"))
    assert helpers.ledger(runner, "forensics") == []


def no_room(runner):
    """Every forward pass but the first of an iteration raises, as CUDA does."""
    extract = runner.model.extract_feat
    seen = []

    def once(*args):
        seen.append(runner.iter)
        if seen.count(runner.iter) > 1:
            raise torch.cuda.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 1 GiB"
            )
        return extract(*args)

    runner.model.extract_feat = once
    return seen


def test_no_memory_for_a_second_run_costs_the_report_not_the_run(build):
    options = {"log_level": "WARNING"}
    hooks = [*helpers.MONITORS, nan_at(2), GUARD, forensics()]
    runner = build(
        "retinanet", iters=5, hooks=hooks, precision="float32", options=options
    )
    seen = no_room(runner)
    runner.train()
    assert seen == [0, 1, 2, 2, 3, 4]
    assert helpers.dumps(runner) == {}
    assert "could not look into iteration 2: OutOfMemoryError" in helpers.log(runner)


def test_what_fails_is_not_tried_for_ever(build):
    hooks = [*helpers.MONITORS, nan_at(1, 3, 5, 7), GUARD, forensics(max_dumps=2)]
    runner = build("retinanet", iters=9, hooks=hooks, precision="float32")
    seen = no_room(runner)
    runner.train()
    assert [i for i in seen if seen.count(i) > 1] == [1, 1, 3, 3]


def test_a_failure_while_writing_costs_no_run(build, monkeypatch):
    """Also where the run is about to go on after an exception."""

    def fail(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("no room for a norm")

    monkeypatch.setattr("amp_hooks.forensics.circumstances.nonfinite_names", fail)
    fault = helpers.fault("raise", 2)
    options = {"log_level": "WARNING"}
    runner = train(build, fault, GUARD, forensics(), options=options)
    assert runner.iter == 5
    assert "no room for a norm" in helpers.log(runner)


class Foreign:
    """Cannot be pickled."""

    def __reduce__(self):
        raise TypeError("cannot pickle it")

    def __deepcopy__(self, memo):
        return self


def test_a_batch_that_cannot_be_kept_still_has_a_report(build):
    runner = build(
        "retinanet",
        iters=4,
        hooks=[*helpers.MONITORS, nan_at(2), GUARD, forensics()],
        precision="float32",
    )
    preprocess = runner.model.data_preprocessor.forward

    def odd(data, training=False):
        data = preprocess(data, training)
        for sample in data["data_samples"]:
            sample.set_metainfo(dict(odd=Foreign(), img_shape=np.array([64, 64])))
        return data

    runner.model.data_preprocessor.forward = odd
    runner.train()
    folder = Path(runner.log_dir) / "faults" / "iter_2"
    assert not (folder / "batch.pth").exists()
    report = helpers.dumps(runner)[2]
    assert any("batch.pth was left out: TypeError" in n for n in report["notes"])
    assert report["images"][0]["size"] == [64, 64]


def test_masks_count_towards_the_size(tmp_path):
    """They are numpy arrays in objects of mmdet's."""
    sample = InstanceData(
        masks=BitmapMasks(np.zeros((40, 400, 400), np.uint8), 400, 400)
    )
    # And a view does not bring the whole along.
    sample.boxes = torch.zeros(100_000, 4)[:40]
    call = Call((), dict(data_samples=[sample]), capture_rng())
    told = report(Replay(call), ABOUT)
    data = save_dump(str(tmp_path / "small"), told, call, None, 2**20)
    assert "it needs 6.1 MiB, and max_mib leaves 1.0" in data["notes"][0]
    assert not (tmp_path / "small" / "batch.pth").exists()
    data = save_dump(
        str(tmp_path / "large"), report(Replay(call), ABOUT), call, None, 2**23
    )
    size = (tmp_path / "large" / "batch.pth").stat().st_size
    assert 6.4e6 < size == data["bytes"] < 6.5e6


ABOUT = dict(
    iter=0,
    verdict="HEALTHY",
    rank=0,
    notes=[],
    optimizers=[],
    dtype="float32",
    layers=[],
    clamped=[],
    clamp_limit=None,
)


def test_gradients_under_accumulation_and_a_large_scale(build):
    """The wrapper divides the loss before it scales it."""
    runner = train(
        build,
        forensics(at=[1]),
        iters=4,
        precision="float16",
        accumulate=4,
        options={"optim_wrapper.loss_scale": 2.0**14},
    )
    replay = helpers.dumps(runner)[1]
    assert (replay["kind"], replay["dtype"]) == ("unknown", "float16")


def test_the_precision_is_that_of_the_forward_pass(build):
    """Not what the wrapper was made with: a fallback may have changed it."""
    fallback = dict(
        type="amp_hooks.PrecisionFallbackHook",
        to="float32",
        on_verdict="FORWARD_NONFINITE",
        patience=1,
        after_rollbacks=1000,
    )
    rollback = dict(type="amp_hooks.RollbackHook", interval=4, probation=0)
    hooks = (nan_at(1), GUARD, rollback, fallback, forensics(at=[4]))
    runner = train(build, *hooks, iters=6, precision="float16")
    found = helpers.dumps(runner)
    assert (found[1]["dtype"], found[4]["dtype"]) == ("float16", "float32")


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_backward_pass_that_cannot_be_run_again_is_not_called_finite(build):
    options = {"model.backbone.with_cp": True}  # re-entrant checkpointing
    runner = train(build, forensics(at=[2]), options=options)
    report = helpers.dumps(runner)[2]
    assert "could not be run once more" in report["finding"]
    assert report["backward_skipped"]


def test_nothing_is_held_or_attached_after_training(build):
    runner = train(build, nan_at(2), GUARD, forensics())
    hook = helpers.hook_of(runner, "ForensicsHook")
    assert (hook._calls, hook._failed, hook._asked) == ([], [], None)
    assert not runner.model._forward_pre_hooks


def test_validation_is_not_recorded(build):
    """And the batch of an iteration is let go at its end."""
    held = []

    class Look(AmpHook):
        priority = "LOWEST"

        def before_val_iter(self, runner, batch_idx, data_batch=None):
            held.append(list(helpers.hook_of(runner, "ForensicsHook")._calls))

        def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            held.append(list(helpers.hook_of(runner, "ForensicsHook")._calls))

    runner = build(
        "retinanet",
        iters=2,
        hooks=[forensics()],
        precision="float32",
        validate=True,
        options={"train_cfg.val_interval": 1},
    )
    runner.register_hook(Look())
    runner.train()
    assert held
    assert not any(held)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(at=3), r"at must be a list of iterations.*\[0, 1000\].*got 3"),
        (dict(at=[-1]), "at must be a list of iterations"),
        (dict(max_dumps=0), "max_dumps must be at least 1"),
        (dict(max_mib=0), "max_mib must be greater than 0"),
        (dict(save_weights="yes"), "save_weights must be True or False"),
        (dict(frames=0), "frames must be at least 1"),
        (dict(frame=1), "no argument 'frame'. Did you mean 'frames'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        amp_hooks.ForensicsHook(**arguments)


def test_a_batch_with_foreign_code_is_refused(build, tmp_path):
    runner = train(build, nan_at(2), GUARD, forensics())
    folder = Path(runner.log_dir) / "faults" / "iter_2"

    class Running:
        def __reduce__(self):
            return builtins.exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save(dict(args=(), kwargs=Running(), rng=None), folder / "batch.pth")
    with pytest.raises(pickle.UnpicklingError):
        load_call(str(folder))
    assert not (tmp_path / "ran").exists()


def test_the_weights_are_those_of_the_fault(build):
    runner = train(build, nan_at(4), GUARD, forensics(), iters=5)
    folder = Path(runner.log_dir) / "faults" / "iter_4"
    # The step of iteration 4 was refused, and it was the last.
    learned = {n: p.clone() for n, p in runner.model.named_parameters()}
    with torch.no_grad():
        for p in runner.model.parameters():
            p.zero_()
    load_weights(runner.model, str(folder))
    for name, p in runner.model.named_parameters():
        assert torch.equal(p, learned[name]), name


def test_report_json_is_strict(build):
    runner = train(build, nan_at(2), GUARD, forensics())

    def refuse(name):
        raise AssertionError(name)

    path = Path(runner.log_dir) / "faults" / "iter_2" / "report.json"
    json.loads(path.read_text(), parse_constant=refuse)
