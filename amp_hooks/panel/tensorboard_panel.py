"""What only TensorBoard can show: charts, text, histograms, one run per resume."""

from __future__ import annotations

import html
import os.path as osp
import re
from collections.abc import Callable
from typing import Any

import mmengine.dist as dist
import numpy as np
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.visualization import TensorboardVisBackend

from ..engine import private
from ..engine.events import in_words
from ..engine.messages import warn
from ..engine.words import Line

_MOST_CARDS = 200  # of a start; the ledger has them all

# One Custom Scalars layout. Tags are regular expressions; titles are fixed, because
# TensorBoard merges the layouts of several runs by them. A title asks what its curves
# answer, and names their unit: each axis has one. The first four charts are what a
# collapse does and what was done about it.
LAYOUT = {
    # By itself: TensorBoard puts charts with a margin behind all others of a category.
    "amp_hooks: the loss": {
        # A loss that explodes leaves nothing of its band on a linear axis.
        "Is the loss within its healthy band? (log2)": [
            "Margin",
            ["amp/loss_now_log2", "amp/loss_low_log2", "amp/loss_high_log2"],
        ],
    },
    "amp_hooks: loss scale, logits, learning rate": {
        "Does the loss scale hold? (log2)": ["Multiline", [r"^amp/scale_log2"]],
        # Magnitudes from 1 to 65504, on a linear axis, would show nothing.
        "Is |cls_score| below its limits? (log2)": [
            "Multiline",
            [
                r"^amp/cls_score_log2/",
                r"^amp/fp16_limit_log2$",
                r"^amp/clamp_limit_log2$",
            ],
        ],
        # Not in one chart with the learning rate itself, a hundred times smaller.
        "Was the learning rate lowered? (factor)": ["Multiline", [r"^amp/lr_factor$"]],
    },
    "amp_hooks: more": {
        "Is the run well? (0 healthy, 1 watched, 2 ill)": [
            "Multiline",
            [r"^amp/health$"],
        ],
        "Are steps skipped? (in a row)": ["Multiline", [r"^amp/skipped_streak$"]],
        "How many iterations were bad, and undone?": [
            "Multiline",
            [r"^amp/nonfinite_total$", r"^amp/vetoes_total$"],
        ],
        "How often did it roll back?": ["Multiline", [r"^amp/rollbacks_total$"]],
        "When bad, clamped, in fallback? (0 or 1)": [
            "Multiline",
            [r"^amp/nonfinite$", r"^amp/clamp_active$", r"^amp/fallback_active$"],
        ],
        "How far is FP16's limit? (bits)": ["Multiline", [r"^amp/headroom_bits$"]],
        "Are gradients below the clip line? (L2 norm)": [
            "Multiline",
            [r"^amp/gradnorm(/|$)", r"^amp/clip_max_norm(/|$)"],
        ],
        "What is the training loss?": ["Multiline", [r"^loss$"]],
        "What is the learning rate?": ["Multiline", [r"^(.*\.)?(base_)?lr$"]],
    },
}
# Events that are shown as text.
CARDS = frozenset(
    "rollback clamp_on clamp_off fallback recover abort early_warning forensics resume "
    "diverged well nan_term".split()
)


class TensorBoardPanel:
    """Writes through the ``SummaryWriter`` of MMEngine's own backend, on rank 0.

    There may be none, or several: whatever is called here reaches all. A writer that
    fails costs what it should have written, with one warning, and not the run.
    """

    def __init__(self, runner: Runner) -> None:
        # By type, since users may give a backend any name.
        self._backends = [
            backend
            for backend in private.vis_backends(runner.visualizer).values()
            if dist.is_main_process() and isinstance(backend, TensorboardVisBackend)
        ]
        self._cards = 0
        self._warned = False

    def __bool__(self) -> bool:
        return bool(self._backends)

    def begin(self, runner: Runner) -> None:
        """Put up the layout; of a resumed run, drop what it is going to repeat."""
        if private.resumes(runner) and runner.iter > 0:
            self._write(lambda writer: _restart(writer, runner.iter + 1))
        self._write(lambda writer: writer.add_custom_scalars(LAYOUT))
        for backend in self._backends:
            # A folder of the user's own may lie outside the work dir.
            folder, work_dir = map(
                osp.abspath, (private.save_dir(backend), runner.work_dir)
            )
            inside = folder.startswith(osp.join(work_dir, ""))
            # TensorBoard smooths by default, which bends steps and spikes.
            print_log(
                "[amp_hooks] stability panels: tensorboard --logdir "
                f"{work_dir if inside else folder}, tab 'Custom Scalars': "
                "http://localhost:6006/#custom_scalars&_smoothingWeight=0",
                logger="current",
            )

    def card(self, line: Line) -> None:
        """Show a ledger line as text, at once, if it is of a kind that is shown."""
        if line["event"] not in CARDS or self._cards >= _MOST_CARDS:
            return
        self._cards += 1
        tag, step = f"amp_hooks/{line['event']}", line["iter"] + 1
        self._write(lambda writer: writer.add_text(tag, card_text(line), step))
        self.flush()

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """Draw values; those that are not finite are left out."""
        finite = values[np.isfinite(values)]
        if len(finite):
            self._write(lambda writer: writer.add_histogram(tag, finite, step))

    def flush(self) -> None:
        """Bring everything written so far to the disk."""
        self._write(lambda writer: writer.flush())

    def _write(self, action: Callable[[Any], object]) -> None:
        for backend in self._backends:
            try:
                action(backend.experiment)
            except Exception as e:  # whatever it is, the run matters more
                if not self._warned:
                    warn(f"could not write to TensorBoard: {e!r}. Training goes on.")
                self._warned = True


def _restart(writer: Any, step: int) -> None:
    """Tell TensorBoard that points of ``step`` and later are going to be written anew.

    It is what ``SummaryWriter(purge_step=step)`` writes. Where the starts of a run
    share a folder, the curves would otherwise go back and forth over the iterations
    between the last checkpoint and the kill.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    file_writer = private.event_writer(writer)
    file_writer.add_event(Event(step=step, file_version="brain.Event:2"))
    # Two, since TensorBoard takes the first it sees in a folder for the run's start.
    for _ in range(2):
        start = SessionLog(status=SessionLog.START)
        file_writer.add_event(Event(step=step, session_log=start))


def card_text(line: Line) -> str:
    """A ledger line in plain words, as Markdown that shows them letter by letter."""
    text = " ".join(in_words(line).split())
    text = re.sub(r"([\\`*_{}\[\]()#+\-.!])", r"\\\1", html.escape(text, quote=False))
    return f"**iteration {line['iter']}** {text}"
