import builtins
import errno
import json
import math
import os
import pickle
from pathlib import Path

import pytest
import torch

import amp_hooks
from amp_hooks.fault_dump import load_call, load_weights
from tests import helpers
from tests.hooks.test_optim_wrapper_dict import options as two_optimizers

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
    runner = train(build, images, GUARD, forensics(), **loop)
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
    assert report["nonfinite_grads_total"] > 80
    assert len(report["nonfinite_grads"]) == 50
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
    assert report["notes"] == []
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


def test_no_memory_for_a_second_run_costs_the_report_not_the_run(build):
    """The model has no room for it: every forward pass but the first of an iteration
    raises, as CUDA does."""
    options = {"log_level": "WARNING"}
    runner = build(
        "retinanet",
        iters=5,
        hooks=[*helpers.MONITORS, nan_at(2), GUARD, forensics()],
        precision="float32",
        options=options,
    )
    extract = runner.model.extract_feat
    seen = []

    def once(*args):
        seen.append(runner.iter)
        if seen.count(runner.iter) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return extract(*args)

    runner.model.extract_feat = once
    runner.train()
    assert seen == [0, 1, 2, 2, 3, 4]
    assert runner.iter == 5
    assert "CUDA out of memory" in helpers.dumps(runner)[2]["error"]


def test_nothing_is_held_or_attached_after_training(build):
    runner = train(build, nan_at(2), GUARD, forensics())
    hook = helpers.hook_of(runner, "ForensicsHook")
    assert (hook._calls, hook._failed, hook._asked) == ([], [], None)
    assert not runner.model._forward_pre_hooks


def test_validation_is_not_recorded(build):
    """And the batch of an iteration is let go at its end."""
    held = []

    class Look(amp_hooks.hooks.base.AmpHook):
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

    class Foreign:
        def __reduce__(self):
            return builtins.exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save(dict(args=(), kwargs=Foreign(), rng=None), folder / "batch.pth")
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
