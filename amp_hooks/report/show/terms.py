"""Loss terms whose course is another than that of their sum."""

from __future__ import annotations

import numpy as np

from ..read.curves import EMPTY, Array, Curve
from ..read.history import RunHistory

_FACTOR = 3.0  # away from its usual share of the loss
_OFTEN = 0.05  # of the points
_FEW = 8  # points, from which no shape can be told
MOST_TERMS = 4  # lines that can be told apart, and named in one row


def differing_terms(run: RunHistory) -> dict[str, Curve]:
    """The terms worth a plot, by name; the most different first.

    A term that goes as the loss goes tells nothing that the loss does not. One is
    different if its share of the loss is three times its median, or a third of it, in
    one point of twenty, or if the two are not finite at the same points. Where some
    terms are not finite, all are shown: those that are and those that are not.
    """
    # As logged, which is the same mean; a checkpoint has the loss of each iteration.
    total = EMPTY
    for start in run.starts:
        total = total.then(start.curves.get("loss", EMPTY))
    terms = {
        name: curve
        for name, curve in run.curves.items()
        if "loss" in name.rsplit(".", 1)[-1]
        and name != "loss"
        and not name.startswith("amp/")
    }
    shared = {name: _shared(curve, total) for name, curve in terms.items()}
    broken = [~np.isfinite(term) for term, _ in shared.values()]
    if any(b.any() for b in broken) and len({b.tobytes() for b in broken}) > 1:
        return dict(list(terms.items())[:MOST_TERMS])
    away = {name: _away(*pair) for name, pair in shared.items()}
    order = sorted((n for n in away if away[n] > _OFTEN), key=lambda n: -away[n])
    return {name: terms[name] for name in order[:MOST_TERMS]}


def _shared(term: Curve, total: Curve) -> tuple[Array, Array]:
    """The values of both at the iterations that both have."""
    _, of_term, of_total = np.intersect1d(term.iters, total.iters, return_indices=True)
    return term.values[of_term], total.values[of_total]


def _away(term: Array, total: Array) -> float:
    """How often the term's share of the loss is far from its median."""
    known = np.isfinite(term) & np.isfinite(total) & (total > 0)
    if known.sum() < _FEW:
        return 0.0
    share = term[known] / total[known]
    usual = np.median(share)
    return float(np.mean((share > _FACTOR * usual) | (share < usual / _FACTOR)))
