"""Healthy samples in the place of suspect ones."""

from __future__ import annotations

from collections.abc import Iterator

from ..engine.batches import BatchView, Sample
from .suspects import Suspects


class StandIns:
    """Leaves suspects out of a batch without changing its size.

    Args:
        suspects: Who is left out.
    """

    def __init__(self, suspects: Suspects) -> None:
        self._suspects = suspects
        # By the branches that a sample is in: of this iteration, of healthy ones.
        self._new: dict[tuple[str, ...], Sample] = {}
        self._healthy: dict[tuple[str, ...], Sample] = {}

    def apply(self, view: BatchView) -> Iterator[tuple[str, str | None]]:
        """Replace every suspect.

        Yields:
            Its name, and that of the image in its place (``''``: of an earlier batch);
            ``None`` if there was nothing that fits.
        """
        healthy = [name for name in view.images() if name not in self._suspects.images]
        for name in view.images():
            if name in healthy:
                continue
            branches = view.branches(name)
            mates = [mate for mate in healthy if view.branches(mate) == branches]
            # Of one bad batch the guilty image was often not known from its mates.
            mate = min(mates, key=self._suspects.count, default="")
            sample = view.copy(mate) if mate else self._healthy.get(branches)
            done = sample is not None and view.replace(name, sample)
            yield name, mate if done else None

    def remember(self, view: BatchView) -> None:
        """Copy a sample, before the model can change it, for when there is no other."""
        self._new = {}
        for name in view.images():
            branches = view.branches(name)
            if name not in self._suspects.images and branches not in self._new:
                self._new[branches] = view.copy(name)

    def healthy(self) -> None:
        """What was remembered last has done no harm."""
        self._healthy.update(self._new)
