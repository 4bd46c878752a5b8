"""What bench_overhead.py compares: our hooks, and what a user could take instead."""

from __future__ import annotations

import importlib.util

import torch
from mmengine.hooks import Hook
from torch import nn

MONITORS = [
    dict(type="amp_hooks.LossScaleMonitorHook"),
    dict(type="amp_hooks.ClsScoreMonitorHook"),
    dict(type="amp_hooks.GradNormMonitorHook"),
]
GUARD = [dict(type="amp_hooks.StepGuardHook")]
FORENSICS = [dict(type="amp_hooks.ForensicsHook")]
BOXES = [dict(type="amp_hooks.BoxSanityHook")]
# RollbackHook takes its first snapshot before the first iteration; the later ones,
# which cost what writing a checkpoint costs, are left out.
ROLLBACK = dict(interval=10**9)


def suite(**members):
    """StabilityHook with all that acts in an iteration."""
    kind = dict(type="amp_hooks.StabilityHook", preflight=None, rollback=ROLLBACK)
    return [dict(kind, **members)]


PANEL = "amp_hooks.StabilityPanelHook"


class NormItemsHook(Hook):
    """``.item()`` of every parameter's gradient norm, before each optimizer step."""

    def before_train(self, runner):
        """Wrap the step: no hook event sees a gradient."""
        parameters = [p for p in runner.model.parameters() if p.requires_grad]
        original = runner.optim_wrapper.step

        def step(**kwargs):
            self.norms = [
                p.grad.norm().item() for p in parameters if p.grad is not None
            ]
            original(**kwargs)

        runner.optim_wrapper.step = step


class DetectAnomalyHook(Hook):
    """``torch.autograd.detect_anomaly(check_nan=True)`` around each iteration."""

    priority = "VERY_HIGH"

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Switch it on."""
        torch.autograd.set_detect_anomaly(True, check_nan=True)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Switch it off: the other rows of the table run in the same process."""
        torch.autograd.set_detect_anomaly(False)


class UnderflowOverflowHook(Hook):
    """Attaches transformers' DebugUnderflowOverflow, or the stand-in below."""

    def before_train(self, runner):
        """Attach to every module."""
        if has_transformers():
            from transformers.debug_utils import DebugUnderflowOverflow
        else:
            DebugUnderflowOverflow = UnderflowOverflow
        self.watch = DebugUnderflowOverflow(runner.model)


class UnderflowOverflow:
    """Does per tensor what transformers' DebugUnderflowOverflow does.

    After each module's forward: the smallest and the largest magnitude, and whether
    there is a NaN or an infinity, of its own weights, its inputs and its outputs, each
    read on its own. It keeps the last 21 modules. Unlike the original it does not
    raise.
    """

    def __init__(self, model: nn.Module, frames: int = 21) -> None:
        self.frames: list[list[str]] = []
        self.size = frames
        self.found = False
        for module in model.modules():
            module.register_forward_hook(self._after_forward)

    def _after_forward(self, module, inputs, output):
        own = [p for _, p in module.named_parameters(recurse=False)]
        outputs = output if isinstance(output, tuple) else (output,)
        flat = [
            x
            for item in (*own, *inputs, *outputs)
            for x in (item if isinstance(item, tuple) else (item,))
        ]
        frame = [self._describe(x) for x in flat if isinstance(x, torch.Tensor)]
        self.frames = [*self.frames, frame][-self.size :]

    def _describe(self, x):
        magnitude = x.abs()
        text = f"{magnitude.min().item():8.2e} {magnitude.max().item():8.2e}"
        has_nan = torch.isnan(x).any().item()
        self.found |= has_nan or torch.isinf(x).any().item()
        return text


def has_transformers() -> bool:
    """Whether the original can be had: it is no dependency of this project."""
    return importlib.util.find_spec("transformers") is not None


def rows() -> dict[str, tuple[str, list]]:
    """Key on the command line to (label in the tables, custom_hooks)."""
    underflow = "DebugUnderflowOverflow"
    if not has_transformers():
        underflow += " (re-implemented)"
    return {
        "nothing": ("nothing, again (noise)", []),
        "loss_scale": ("LossScaleMonitorHook", MONITORS[:1]),
        "cls_score": ("ClsScoreMonitorHook", MONITORS[1:2]),
        "grad_norm": ("GradNormMonitorHook", MONITORS[2:]),
        "monitors": ("all monitors", MONITORS),
        "guard": ("StepGuardHook", GUARD),
        "health": ("HealthHook", [dict(type="amp_hooks.HealthHook")]),
        "clamp": ("HeadClampHook, off", [dict(type="amp_hooks.HeadClampHook")]),
        "clamping": (
            "HeadClampHook, on",
            [dict(type="amp_hooks.HeadClampHook", when="always")],
        ),
        "forensics": ("ForensicsHook", FORENSICS),
        "boxes": ("BoxSanityHook", BOXES),
        "batches": ("BadBatchHook", [dict(type="amp_hooks.BadBatchHook")]),
        "rollback": (
            "RollbackHook, between snapshots",
            [dict(type="amp_hooks.RollbackHook", **ROLLBACK)],
        ),
        "panel_idle": (
            "monitors, idle panel",
            [*MONITORS, dict(type=PANEL, interval=10**9)],
        ),
        "panel": (
            "monitors, panel publishing in every iteration",
            [*MONITORS, dict(type=PANEL, interval=1)],
        ),
        "histograms": (
            "the same with histograms in every iteration",
            [*MONITORS, dict(type=PANEL, interval=1, histogram_interval=1)],
        ),
        "suite": ("StabilityHook, between snapshots", suite(panel=dict(interval=10))),
        "check_loss": (
            "CheckInvalidLossHook(interval=1)",
            [dict(type="mmdet.CheckInvalidLossHook", interval=1)],
        ),
        "norm_items": (".item() per parameter norm", [NormItemsHook()]),
        "anomaly": ("torch.autograd.detect_anomaly", [DetectAnomalyHook()]),
        "underflow": (underflow, [UnderflowOverflowHook()]),
    }
