"""The ledger's lines for a person: what repeats is told once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ...engine.events import in_words
from ...engine.words import count, is_ordinary, one_a_line, places, reason
from ..read.history import Happening

# Lines that come again and again; of the rest each is told by itself.
_REPEATING = {
    "overflow": "overflow",
    "veto": "overflow",
    "bad_batch": "overflow",
    "snapshot": "snapshot",
    "replaced": "replaced",
    "boxes": "boxes",
}


@dataclass
class Group:
    """Lines in a row that are told as one.

    Attributes:
        happenings: At least one.
    """

    happenings: list[Happening] = field(default_factory=list)

    @property
    def lost(self) -> bool:
        """A kill took them back."""
        return self.happenings[0].lost

    @property
    def where(self) -> str:
        """``iterations 3 to 17`` in a row, else those, or how many between which."""
        iters = {h.iter for h in self.happenings}
        text = places(iters)
        scattered = text.startswith("between")
        return f"{len(iters)} iterations {text}" if scattered else text

    @property
    def text(self) -> str:
        """What happened, in one to a few sentences."""
        lost = " (lost: a later start went on from before it.)" if self.lost else ""
        return self._words() + lost

    def _words(self) -> str:
        of = {event: self._of(event) for event in _REPEATING}
        if len({h.iter for h in self.happenings}) == 1:
            return "\n".join(in_words(h.line) for h in self.happenings)
        if snapshots := of["snapshot"]:
            return (
                f"{count(len(snapshots), 'verified checkpoint')}, the last one:\n"
                f"{snapshots[-1].line.get('file')}"
            )
        if replaced := of["replaced"]:
            images = {str(h.line.get("image")) for h in replaced}
            return (
                f"{count(len(replaced), 'sample')} of {count(len(images), 'suspect')} "
                "left out."
            )
        if boxes := of["boxes"]:
            images = {name for h in boxes for name in h.names("images")}
            return (
                f"Invalid boxes in {count(len(boxes), 'batch', 'es')}. Images:\n"
                + one_a_line(sorted(images))
            )
        bad = of["overflow"] or of["veto"] or of["bad_batch"]
        times = len({h.iter for h in bad})
        text = f"{times} times {reason(_together(bad))}"
        scales = [h.number("scale", 0.0) for h in of["overflow"] if "scale" in h.line]
        if scales:
            text += f". Loss scale {scales[0]:g} to {scales[-1]:g}"
        if vetoed := len(of["veto"]):
            text += f". {count(vetoed, 'step')} refused and undone"
        return text + "."

    def _of(self, event: str) -> list[Happening]:
        return [h for h in self.happenings if h.event == event]


def _together(happenings: list[Happening]) -> dict[str, Any]:
    """One line with the names of all, the most frequent first."""
    merged: dict[str, Any] = dict(verdict=happenings[0].line.get("verdict"))
    if all(is_ordinary(h.line) for h in happenings):
        merged["skip"] = "ordinary"
    for key in ("losses", "layers", "heads", "buffers", "nonfinite_grads"):
        names = Counter(n for h in happenings for n in h.names(key))
        merged[key] = [name for name, _ in names.most_common()]
    return merged


def group(happenings: Iterable[Happening]) -> list[Group]:
    """Put lines of one kind, verdict and fate that follow each other together."""
    groups: list[Group] = []
    before: object = None
    for happening in happenings:
        kind = _REPEATING.get(happening.event)
        key = (kind, happening.line.get("verdict"), happening.lost) if kind else None
        if key is None or key != before:
            groups.append(Group())
        groups[-1].happenings.append(happening)
        before = key
    return groups
