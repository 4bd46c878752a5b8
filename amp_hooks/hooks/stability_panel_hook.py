"""Publish the run's stability to every visualization backend."""

from __future__ import annotations

from functools import partial
from typing import Any

import mmengine.dist as dist
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.visualization import TensorboardVisBackend

from ..core.checks import check_int
from ..core.recorder import IterationRecord
from ..core.scalars import merge_worst, scalars_of
from ..registry import HOOKS
from ..runtime import Runtime, warn
from .base import AmpHook

# One Custom Scalars layout. Tags are regular expressions; titles are fixed, because
# TensorBoard merges the layouts of several runs by them.
LAYOUT = {
    "amp_hooks stability": {
        "Loss (train)": ["Multiline", [r"^loss$"]],
        "Loss scale (log2)": ["Multiline", [r"^amp/scale_log2"]],
        "Largest |cls_score| (FP16 limit is 65504)": [
            "Multiline",
            [r"^amp/cls_score_absmax"],
        ],
        "Headroom to the FP16 limit (bits)": ["Multiline", [r"^amp/headroom_bits$"]],
        "Unscaled gradient norm": ["Multiline", [r"^amp/gradnorm"]],
        "Non-finite iterations, clamp (0 or 1)": [
            "Multiline",
            [r"^amp/nonfinite$", r"^amp/clamp_active$"],
        ],
        "Skipped steps, rollbacks (total)": [
            "Multiline",
            [r"^amp/skipped_total$", r"^amp/rollbacks_total$"],
        ],
        "Learning-rate factor": ["Multiline", [r"^amp/lr_factor$"]],
    }
}


_QUIET = ("start", "snapshot", "resume", "end")  # events that are no news of health


@HOOKS.register_module()
class StabilityPanelHook(AmpHook):
    """Publishes the ``amp/*`` scalars and lays out TensorBoard's Custom Scalars tab.

    What is published depends on the other hooks that are attached; the table of
    scalars is in the README. Each publication holds the worst value since the last, so
    no spike falls between two points; an overflow, a clamp or a rollback is published
    at once. Values are finite and ``step`` is ``runner.iter + 1``, as in MMEngine's own
    curves. All scalars of a publication go to each backend in one call.

    Args:
        interval (int): Iterations between publications. Defaults to 10.

    Examples:
        >>> vis_backends = [
        ...     dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
        >>> visualizer = dict(
        ...     type='DetLocalVisualizer', vis_backends=vis_backends)
        >>> custom_hooks = [dict(type='amp_hooks.StabilityPanelHook')]
    """

    priority = 80  # after the hooks that decide, before CheckpointHook

    def __init__(self, interval: int = 10) -> None:
        self.interval = check_int("StabilityPanelHook", "interval", interval, 1)
        self._worst: dict[str, float] = {}
        self._event = False

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Put up the layout and listen to events."""
        runtime.listeners.append(partial(self._on_event, runner))
        if not dist.is_main_process():
            return
        if not runner.visualizer._vis_backends:
            warn(
                "StabilityPanelHook has nowhere to publish: add "
                "vis_backends=[dict(type='TensorboardVisBackend')] to visualizer."
            )
        for backend in self._tensorboards(runner):
            backend.experiment.add_custom_scalars(LAYOUT)
            print_log(
                "[amp_hooks] stability panels: tensorboard --logdir "
                f"{runner.work_dir}, tab 'Custom Scalars'",
                logger="current",
            )

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Publish at the interval and after an event."""
        self._worst = merge_worst(self._worst, scalars_of(record))
        due = (record.iter + 1) % self.interval == 0
        if due or self._event:
            self._publish(runner, record.iter + 1)
        if self._event:
            self._flush(runner)
            self._event = False

    def after_train(self, runner: Runner) -> None:
        """Publish the rest while the visualizer is still open."""
        super().after_train(runner)
        self._publish(runner, runner.iter)

    def _on_event(self, runner: Runner, line: dict[str, Any]) -> None:
        self._event |= line["event"] not in _QUIET
        if line["event"] == "abort":  # an exception follows; there is no later
            self._publish(runner, line["iter"] + 1)
            self._flush(runner)

    def _publish(self, runner: Runner, step: int) -> None:
        if self._worst and dist.is_main_process():
            try:
                runner.visualizer.add_scalars(self._worst, step=step)
            except Exception as e:  # a backend's failure must not cost the run
                warn(f"could not publish scalars: {e!r}. Training goes on.")
        self._worst = {}

    def _flush(self, runner: Runner) -> None:
        for backend in self._tensorboards(runner):
            backend.experiment.flush()

    @staticmethod
    def _tensorboards(runner: Runner) -> list[Any]:
        # By type, since users may give a backend any name.
        backends = runner.visualizer._vis_backends.values()
        return [
            b
            for b in backends
            if dist.is_main_process() and isinstance(b, TensorboardVisBackend)
        ]
