"""Each check, where all is well and where it is not."""

import pytest
import torch

from amp_hooks.doctor import (
    check_disk,
    check_operators,
    check_precisions,
    check_ranks,
    check_step_guard,
)
from amp_hooks.doctor.check_gpu import serves
from amp_hooks.doctor.plain_operators import plain_focal_loss
from amp_hooks.doctor.rows import BROKEN, FINDING, OK
from amp_hooks.errors import UnsupportedError
from tests import helpers, processes


def rows_of(module):
    return {row.what: row for row in module.check()}


VERSIONS = """
{}
from amp_hooks.doctor.check_versions import check
for row in check():
    print(row.what, row.result, row.found, row.remedy, sep='|')
"""


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (
            "import mmcv; mmcv.__version__ = '9.0.0'",  # which mmdet refuses
            ("mmdet|does not work|does not load: AssertionError", "Install the mmcv"),
        ),
        (
            "import sys; sys.modules['mmcv'] = None",
            ("mmcv|does not work|not installed", "Install the mmcv"),
        ),
        (
            "import torch; torch.__version__ = '1.13.1'",
            ("does not work|amp_hooks needs torch 2.0 or later, and this is", ""),
        ),
        (
            "import mmengine; mmengine.__version__ = '0.99.0'",
            ("mmengine|note|0.99.0, newer than", "these versions|note|not tested"),
        ),
    ],
)
def test_versions(before, expected):
    shown = processes.code(VERSIONS.format(before)).stdout
    assert all(words in shown for words in expected), shown


def test_operators_compute_what_plain_torch_does():
    found = rows_of(check_operators)
    assert list(found) == ["mmcv's operators", "nms, cpu", "roi_align, cpu"]
    assert {row.result for row in found.values()} == {OK}


def test_an_operator_that_computes_something_else(monkeypatch):
    """And one that raises stops no other."""
    import mmcv.ops

    def raising(boxes, scores, iou_threshold):
        raise RuntimeError("nms_impl: implementation for device cuda:0 not found")

    def half_a_pixel_off(x, rois, *more, align=mmcv.ops.roi_align):
        return align(x, rois + torch.tensor([0, 0.5, 0, 0.5, 0]).to(rois), *more)

    monkeypatch.setattr(mmcv.ops, "nms", raising)
    monkeypatch.setattr(mmcv.ops, "roi_align", half_a_pixel_off)
    found = rows_of(check_operators)
    assert "implementation for device" in found["nms, cpu"].found
    assert found["nms, cpu"].result == found["roi_align, cpu"].result == BROKEN
    assert "mmcv_build.py" in found["roi_align, cpu"].remedy


def test_the_focal_loss_is_that_of_mmdet():
    """mmcv's operator for it is for a GPU only."""
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    logits, labels = torch.randn(50, 20), torch.randint(0, 21, (50,))
    target = torch.nn.functional.one_hot(labels, 21)[:, :20]
    wanted = py_sigmoid_focal_loss(logits, target, reduction="none").sum() / 50
    assert plain_focal_loss(logits, labels, 2.0, 0.25) == pytest.approx(wanted)


@helpers.NEEDS_FP16
def test_precisions():
    found = rows_of(check_precisions)
    assert list(found) == ["FP32, cpu", "FP16, cpu", "BF16, cpu"]
    assert {row.result for row in found.values()} == {OK}
    assert "rehearsed" in found["FP16, cpu"].found


def test_a_precision_in_which_nothing_is_learned(monkeypatch):
    """FP32 is needed; of the others a run can do without."""
    config = check_precisions.optim_wrapper

    def still(device, precision):
        cfg = config(device, precision)
        cfg["optimizer"]["lr"] = 0.0
        return cfg

    monkeypatch.setattr(check_precisions, "optim_wrapper", still)
    found = rows_of(check_precisions)
    assert found["FP32, cpu"].result == BROKEN
    assert found["BF16, cpu"].result == FINDING
    assert "does not learn" in found["BF16, cpu"].found


def test_an_overflow_leaves_no_trace():
    (row,) = check_step_guard.check()
    assert row.result == OK
    assert "15 tensors, 0 changed" in row.found


def test_an_overflow_where_fp16_cannot_be_rehearsed(monkeypatch):
    config = check_step_guard.optim_wrapper

    def no_fp16(device, precision):
        if precision == "float16":
            raise UnsupportedError("torch 2.2")
        return config(device, precision)

    monkeypatch.setattr(check_step_guard, "optim_wrapper", no_fp16)
    (row,) = check_step_guard.check()
    assert row.result == OK
    assert row.found.startswith("BF16, cpu: iteration 3 of 6 overflowed")


@helpers.NEEDS_FP16
def test_an_overflow_that_leaves_one(monkeypatch):
    """GradScaler refuses the step; what BatchNorm saw stays."""
    hook = dict(type="amp_hooks.LossScaleMonitorHook")
    monkeypatch.setattr(check_step_guard, "_HOOK", hook)
    (row,) = check_step_guard.check()
    assert row.result == BROKEN
    assert "3 changed by it: backbone.1.running_mean" in row.found


def test_a_group_of_one():
    (row,) = check_ranks.check()
    assert (row.what, row.result) == ("gloo", OK)


def test_a_machine_without_a_usable_network(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no_such_interface")
    (row,) = check_ranks.check()
    assert row.result == FINDING
    assert "one GPU needs none" in row.remedy


def test_the_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (row,) = check_disk.check()
    assert row.result == OK
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(check_disk, "_LEAST", 1e9)
    (row,) = check_disk.check()
    assert row.result == FINDING


def test_a_folder_that_cannot_be_written(monkeypatch):
    monkeypatch.chdir("/proc")
    (row,) = check_disk.check()
    assert row.result == FINDING
    assert "cannot be written" in row.found


@pytest.mark.parametrize(
    ("arch", "capability", "good"),
    [
        ("sm_80", (8, 6), True),
        ("sm_86", (8, 0), False),
        ("sm_80", (9, 0), False),
        ("compute_80", (9, 0), True),
        ("compute_90", (8, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_120", (12, 0), True),
    ],
)
def test_which_kernels_a_gpu_runs(arch, capability, good):
    assert serves(arch, *capability) is good
