"""Who is to blame: images, layers, learning rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ...engine.headroom import FP16_MAX
from ...engine.verdict import Verdict
from ...engine.words import count, first_names
from ..read.history import Happening, RunHistory
from .incidents import Incidents, any_within, diverged
from .rates import LearningRates, OnsetRate, bad_rates, onset_rate
from .recipe import precision

_SHOWN = 5
# A line names the first five gradients in the order of the model, so of more of them
# the names say nothing.
_FEW_GRADIENTS = 5


@dataclass
class Causes:
    """Everything that points at a cause.

    Attributes:
        images: Image to the iterations that speak against it; more than one each.
        all_by_images: Each streak of bad iterations began with one of them.
        images_seen: How many images were in a bad iteration at all.
        images_back: How many of them began several streaks of those.
        layers: Lines on layers, the most telling first.
        rates: Of the learning rate, if it is known.
        onset: The same, of the divergence before which it rose most.
    """

    images: dict[str, list[int]] = field(default_factory=dict)
    all_by_images: bool = False
    images_seen: int = 0
    images_back: int = 0
    layers: list[str] = field(default_factory=list)
    rates: LearningRates | None = None
    onset: OnsetRate | None = None

    def lines(self) -> list[tuple[str, str]]:
        """``(label, text)`` for a page."""
        rows = [("images", text) for text in self._image_lines()]
        rows += [("layers", text) for text in self.layers or ["nothing points at one"]]
        rates = self.rates
        if self.onset is not None:
            rows += [("learning rate", self.onset.words)]
            if rates is None:
                return rows
        if rates is None:
            return [*rows, ("learning rate", "no bad iteration at a known one")]
        where = "schedule" if rates.changed else "run"
        if not rates.below:
            text = (
                f"{rates.first:.3g} at the first bad iteration; bad ones down to "
                f"{rates.lowest:.3g}, the lowest of the {where}"
            )
            return [*rows, ("learning rate", text)]
        text = (
            f"{count(rates.bad, 'bad iteration')} had a {rates.name} of at least "
            f"{rates.lowest:.3g} (the first one {rates.first:.3g}), as had "
            f"{rates.at_or_above} iterations in all; below it there were "
            f"{rates.below}, none of them bad"
        )
        if rates.telling:
            text += f". By chance alone the probability of that is {rates.chance:.2g}"
        return [*rows, ("learning rate", text)]

    def _image_lines(self) -> list[str]:
        if not self.images and self.images_seen:
            text = f"none stands out among {count(self.images_seen, 'image')} in bad "
            if self.images_back:
                return [f"{text}iterations: {self.images_back} of them came back"]
            return [f"{text}iterations: none began two streaks of them"]
        if not self.images:
            return ["no bad iteration with known images"]
        shown = list(self.images.items())[:_SHOWN]
        lines = [
            f"{image}: in bad iterations {first_names(list(map(str, iters)), _SHOWN)}"
            for image, iters in shown
        ]
        more = len(self.images) - len(shown)
        return [*lines, f"and {more} more"] if more else lines


def find_causes(run: RunHistory, found: Incidents) -> Causes:
    """Find what the bad iterations have in common."""
    batches = [h for h in run.having("bad_batch") if not diverged(h)]
    images, back = _images(run, batches)
    return Causes(
        images=images,
        all_by_images=explained(found, (i for iters in images.values() for i in iters)),
        images_back=back,
        images_seen=len({i for h in batches for i in h.names("images")}),
        layers=list(_layers(run)),
        rates=bad_rates(run, found),
        onset=onset_rate(run, found),
    )


def _images(
    run: RunHistory, batches: list[Happening]
) -> tuple[dict[str, list[int]], int]:
    """BadBatchHook's suspects; and by its rule those with less evidence than it asks.

    Of a streak only the first iteration is evidence: broken weights make every batch
    bad.

    Returns:
        The suspects with their iterations, and how many images began several streaks.
    """
    of_iteration: dict[int, dict[str, None]] = {}
    for h in batches:
        images_here = of_iteration.setdefault(h.iter, {})
        images_here.update(dict.fromkeys(h.names("images")))
    evidence: dict[str, list[int]] = {}
    for iteration in sorted(of_iteration):
        if iteration - 1 not in of_iteration:
            for image in of_iteration[iteration]:
                evidence.setdefault(image, []).append(iteration)
    named = {
        str(h.line.get("image")): [int(i) for i in h.names("iters") if i.isdigit()]
        for h in run.having("suspect")
    }
    back = {image: iters for image, iters in evidence.items() if len(iters) > 1}
    # If most came back, then because so many iterations were bad, and none stands out;
    # unless it is one batch that came back.
    batch = max(map(len, of_iteration.values()), default=0)
    few = 2 * len(back) <= len(evidence) or len(evidence) <= batch
    stand_out = back if few else {}
    # Where BadBatchHook named some, others were only beside them.
    images = named or stand_out
    return dict(sorted(images.items(), key=lambda item: -len(item[1]))), len(back)


def explained(found: Incidents, iterations: Iterable[int]) -> bool:
    """Whether one of these iterations lies in each streak of bad ones."""
    accused = np.unique([*iterations])
    streaks = np.array(found.streaks).reshape(-1, 2)
    if not len(accused) or not len(streaks):
        return False
    return bool(any_within(accused, streaks[:, 0], streaks[:, 1]).all())


def _layers(run: RunHistory) -> Iterable[str]:
    for h in run.having("forensics")[:_SHOWN]:
        yield f"{h.line.get('module') or 'outside the model'}: {h.line.get('finding')}"
    lines = run.having("overflow")
    for kind, what in (
        ("heads", "what it hands to its losses was not finite"),
        ("buffers", "it became infinite or NaN"),
    ):
        places = Counter(x for h in lines for x in h.names(kind))
        for place, n in places.most_common(_SHOWN):
            yield f"{place}: {what} in {count(n, 'iteration')}"
    logits = Counter(x for h in lines for x in h.names("layers"))
    for layer, n in logits.most_common(_SHOWN):
        yield f"{layer}: its logits were not finite in {count(n, 'iteration')}"
    # Behind a forward pass that was not finite all gradients are NaN, by it or by us.
    of_all = (Verdict.FORWARD_NONFINITE.value, Verdict.DIVERGED.value)
    own = [h for h in lines if h.line.get("verdict") not in of_all]
    few = [h for h in own if h.number("nonfinite_grads_total", 0) <= _FEW_GRADIENTS]
    gradients = Counter(x for h in few for x in h.names("nonfinite_grads"))
    scaled = precision(run.start_line, run.config) == "float16"
    what = (
        f"its {'scaled gradient overflowed' if scaled else 'gradient was not finite'}"
    )
    for parameter, n in gradients.most_common(_SHOWN):
        if n > 1:  # once is what calibration does to any of them
            yield f"{parameter}: {what} in {n} iterations"
    peaks = {
        layer: curve.finite
        for layer, curve in run.layers("amp/cls_score_absmax").items()
        if len(curve.finite)
    }
    headroom = run.layers("amp/headroom_bits")
    order = sorted(peaks, key=lambda layer: -float(peaks[layer].values.max()))
    for layer in order[:_SHOWN]:
        curve = peaks[layer]
        top = int(curve.values.argmax())
        bits = headroom[layer].finite.values if layer in headroom else np.array([])
        room = f"; headroom {bits.min():.1f} bits or more" if len(bits) else ""
        beyond = " (beyond FP16)" if curve.values[top] > FP16_MAX else ""
        yield (
            f"{layer}: largest |cls_score| {curve.values[top]:.4g}{beyond}, by "
            f"iteration {curve.iters[top]}{room} in the precision it ran in"
        )
