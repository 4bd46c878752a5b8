"""Publish the run's stability to every visualization backend."""

from __future__ import annotations

from functools import partial
from typing import Any

import mmengine.dist as dist
from mmengine import visualization
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..engine import private
from ..engine.checks import check_int
from ..engine.hook import AmpHook
from ..engine.messages import warn
from ..engine.recorder import IterationRecord
from ..engine.runtime import Runtime
from ..engine.verdict import Verdict
from ..registry import HOOKS
from .histograms import HistogramProbe
from .scalars import as_files, legal_name, merge_worst, scalars_of
from .tensorboard_panel import TensorBoardPanel

_QUIET = ("start", "snapshot", "resume", "end")  # events that are no news of health

# Where a name cannot also be a folder of names.
_LIKE_FILES = tuple(
    getattr(visualization, name)
    for name in ("MLflowVisBackend", "NeptuneVisBackend")
    if hasattr(visualization, name)  # Neptune came with MMEngine 0.9
)


@HOOKS.register_module()
class StabilityPanelHook(AmpHook):
    """Publishes the ``amp/*`` scalars and lays out TensorBoard's Custom Scalars tab.

    What is published depends on the other hooks that are attached; the table of
    scalars is in docs/en/scalars.md. Each publication holds the worst value since the
    last, so no spike falls between two points; an overflow, a clamp or a rollback is
    published at once. Values are finite and ``step`` is ``runner.iter + 1``, as in
    MMEngine's own curves. All scalars of a publication go to each backend in one call;
    one that fails costs its own points. What MLflow would refuse in the name of a group
    or an optimizer is replaced. In MLflow and Neptune, where ``amp/gradnorm`` cannot
    stand beside ``amp/gradnorm/backbone``, the second is ``amp/gradnorm.backbone``.

    **Charts** are titled with what they answer, and an axis has one unit. First: the
    loss in its healthy band; loss scale; ``|cls_score|`` per head, with the FP16 limit
    and the clamp limit, all in log2; the learning rate's factor. Below: health; steps
    skipped in a row; bad iterations and vetoes; rollbacks; bad, clamp and fallback as
    flags; headroom; unscaled gradient norm, total and per group, with the clip line;
    the loss; the learning rate.

    **Text.** Rollbacks, clamps, fallbacks and other events that decide on the run are
    cards in TensorBoard's Text tab, with the reason in plain words.

    **Resume.** MMEngine writes each start to a folder of its own, which TensorBoard
    shows as a run of its own. With ``save_dir`` in the backend's config all starts are
    one run, and what a resumed one repeats replaces what was there.

    Args:
        interval (int): Iterations between publications. Defaults to 10.
        histogram_interval (int, optional): Iterations between histograms, in
            TensorBoard, of the monitored logits (at most 100,000 of a layer) and of
            the unscaled gradient norms of all parameters (log2). Nothing is done for
            them in the other iterations. Defaults to None, which means never.

    Examples:
        >>> vis_backends = [
        ...     dict(type='LocalVisBackend'),
        ...     dict(type='TensorboardVisBackend', save_dir='work_dirs/my_run/tb')]
        >>> visualizer = dict(
        ...     type='DetLocalVisualizer', vis_backends=vis_backends)
        >>> custom_hooks = [
        ...     dict(type='amp_hooks.StabilityPanelHook', histogram_interval=1000)]
    """

    priority = 80  # after the hooks that decide, before CheckpointHook
    together = False

    def __init__(
        self, interval: int = 10, histogram_interval: int | None = None
    ) -> None:
        owner = "StabilityPanelHook"
        self.interval = check_int(owner, "interval", interval, 1)
        self.histogram_interval = histogram_interval
        if histogram_interval is not None:
            check_int(owner, "histogram_interval", histogram_interval, 1)
        self.nonfinite_total = 0
        self._worst: dict[str, float] = {}
        self._event = False
        self._publishes = True
        self._failed: set[str] = set()  # backends of which it has been told
        self._tensorboard: TensorBoardPanel | None = None
        self._probe: HistogramProbe | None = None

    def attach(self, runner: Runner, runtime: Runtime) -> None:
        """Put up the layout, or say what a layout needs."""
        self._tensorboard = TensorBoardPanel(runner)
        self._tensorboard.begin(runner)
        for line in runtime.early_lines:
            self._tensorboard.card(line)
        on_event = partial(self._on_event, runner, runtime)
        runtime.listeners.append(self.guarded(on_event))
        self._publishes = dist.is_main_process()
        if not self._publishes:
            return
        if self.histogram_interval and self._tensorboard:
            self._probe = HistogramProbe(runtime, self.guarded)
        if not private.vis_backends(runner.visualizer):
            warn(
                "StabilityPanelHook has nowhere to publish: add "
                "vis_backends=[dict(type='TensorboardVisBackend')] to visualizer."
            )
        elif not self._tensorboard:
            print_log(
                "[amp_hooks] scalars are published; for panels add "
                "dict(type='TensorboardVisBackend') to visualizer.vis_backends.",
                logger="current",
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Look at logits and gradients where a histogram is due."""
        every = self.histogram_interval
        if self._probe is not None and every and (runner.iter + 1) % every == 0:
            self._probe.listen()

    def after_record(
        self, runner: Runner, runtime: Runtime, record: IterationRecord
    ) -> None:
        """Publish at the interval and after an event."""
        self._add(record)
        due = (record.iter + 1) % self.interval == 0
        if due or self._event:
            self._publish(runner, record.iter + 1)
        if self._tensorboard is not None:
            if self._probe is not None:
                for tag, values in self._probe.collect():
                    self._tensorboard.histogram(tag, values, record.iter + 1)
            if self._event:
                self._tensorboard.flush()
        self._event = False

    def after_train(self, runner: Runner) -> None:
        """Publish the rest while the visualizer is still open."""
        super().after_train(runner)
        self._publish(runner, runner.iter)

    def state(self) -> dict[str, Any]:
        """The count, and what a checkpoint between two publications would lose."""
        return dict(nonfinite_total=self.nonfinite_total, pending=dict(self._worst))

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.nonfinite_total = int(state["nonfinite_total"])
        self._worst = {str(k): float(v) for k, v in state["pending"].items()}

    def _on_event(self, runner: Runner, runtime: Runtime, line: dict[str, Any]) -> None:
        self._event |= line["event"] not in _QUIET
        if line["event"] == "abort":  # an exception follows; there is no later
            records = runtime.recorder.records
            if records and records[-1].iter == line["iter"]:
                self._add(records[-1])
            self._publish(runner, line["iter"] + 1)
        if self._tensorboard is not None:
            self._tensorboard.card(line)

    def _add(self, record: IterationRecord) -> None:
        finite = record.verdict in (Verdict.HEALTHY, Verdict.DIVERGED)
        self.nonfinite_total += not finite
        record.put("nonfinite_total", self.nonfinite_total)
        if self._publishes:
            merge_worst(self._worst, scalars_of(record))

    def _publish(self, runner: Runner, step: int) -> None:
        scalars = {legal_name(name): value for name, value in self._worst.items()}
        self._worst = {}
        if not scalars or not dist.is_main_process():
            return
        # Not through the visualizer, where a backend that fails takes the points of
        # those after it.
        for name, backend in private.vis_backends(runner.visualizer).items():
            files = isinstance(backend, _LIKE_FILES)
            try:
                backend.add_scalars(as_files(scalars) if files else scalars, step)
            except Exception as e:  # it must not cost the run
                if name not in self._failed:
                    warn(f"could not publish to {name}: {e!r}. Training goes on.")
                self._failed.add(name)
