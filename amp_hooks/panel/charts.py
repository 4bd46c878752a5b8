"""What TensorBoard shows: the charts, and ledger lines as cards of text."""

from __future__ import annotations

import html
import re

from ..engine.event_words import Line
from ..engine.events import in_words

# One Custom Scalars layout. Tags are regular expressions; titles are fixed, because
# TensorBoard merges the layouts of several runs by them. The order tells a collapse:
# what happened to the loss, the scale, the gradients, the logits; what was done; what
# it cost in learning rate.
LAYOUT = {
    "amp_hooks stability": {
        "Loss (train)": ["Multiline", [r"^loss$"]],
        # In a collapse the one falls while the other rises.
        "Loss scale (log2), steps skipped in a row": [
            "Multiline",
            [r"^amp/scale_log2", r"^amp/skipped_streak$"],
        ],
        "Unscaled gradient norm, clip line": [
            "Multiline",
            [r"^amp/gradnorm(/|$)", r"^amp/clip_max_norm(/|$)"],
        ],
        # Magnitudes from 1 to 65504 on a linear axis would show nothing.
        "|cls_score| per head (log2), FP16 limit, clamp limit": [
            "Multiline",
            [
                r"^amp/cls_score_log2/",
                r"^amp/fp16_limit_log2$",
                r"^amp/clamp_limit_log2$",
            ],
        ],
        "Headroom to the FP16 limit (bits)": ["Multiline", [r"^amp/headroom_bits$"]],
        "Non-finite iterations, vetoes, rollbacks (total)": [
            "Multiline",
            [r"^amp/nonfinite_total$", r"^amp/vetoes_total$", r"^amp/rollbacks_total$"],
        ],
        "Non-finite, clamp, fallback (0 or 1)": [
            "Multiline",
            [r"^amp/nonfinite$", r"^amp/clamp_active$", r"^amp/fallback_active$"],
        ],
        # Not in one chart with the learning rate itself, a hundred times smaller.
        "LR factor": ["Multiline", [r"^amp/lr_factor$"]],
        "Learning rate": ["Multiline", [r"^(.*\.)?(base_)?lr$"]],
    }
}

# Events that are shown as text.
CARDS = frozenset(
    "rollback clamp_on clamp_off fallback recover abort early_warning forensics resume"
    "".split()
)


def card_text(line: Line) -> str:
    """A ledger line in plain words, as Markdown that shows them letter by letter."""
    text = " ".join(in_words(line).split())
    text = re.sub(r"([\\`*_{}\[\]()#+\-.!])", r"\\\1", html.escape(text, quote=False))
    return f"**iteration {line['iter']}** {text}"
