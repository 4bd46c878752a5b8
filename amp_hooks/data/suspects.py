"""Which images are to blame for bad iterations, and what takes their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..engine.batches import BatchView, Sample


@dataclass
class Batch:
    """What one rank trained on in one iteration.

    Attributes:
        iter: 0-based iteration.
        images: Each image once: its path, or what else it is known by.
        ids: Their ids in the data set, where there are any, else ``None``.
        failed: This forward pass, of this rank, was not finite or raised.
        blamed: It has been blamed already.
    """

    iter: int
    images: list[str] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)
    failed: bool = False
    blamed: bool = False


def to_blame(
    batches_of: Sequence[Sequence[Batch]], ranks: Iterable[int]
) -> list[tuple[int, Batch]]:
    """The batches that a bad verdict is about, with their ranks.

    Args:
        batches_of: For each rank, the batches that feed the present optimizer step.
        ranks: Ranks whose forward pass failed; none if only gradients were bad.

    Returns:
        Of these ranks (of all, if there are none) the batches that failed (all, if
        none did), without those that were blamed before.
    """
    ranks = list(ranks) or range(len(batches_of))
    batches = [(rank, batch) for rank in ranks for batch in batches_of[rank]]
    failed = [(rank, batch) for rank, batch in batches if batch.failed]
    return [(rank, batch) for rank, batch in failed or batches if not batch.blamed]


class Suspects:
    """Counts for each image the bad iterations that are evidence against it.

    Not every bad iteration is. Of a streak, which only a healthy optimizer step ends,
    the first one is: weights that are broken make every batch bad, and without this
    rule a long streak would accuse the whole data set. A rollback does not end it
    either, since it may go back to a state that is broken already. And where an image
    is present that is a suspect by now, it explains the incident, so images beside it
    are not accused.

    Memory is bounded: of more than ``max_images`` images, those with the fewest counts
    are forgotten, the oldest of them first, but never a suspect. Calls in the same
    order give the same state, so that ranks which are told the same agree.

    Args:
        suspect_after: So many pieces of evidence make an image a suspect.
        max_images: Images that are remembered.

    Attributes:
        images: The suspects.
    """

    def __init__(self, suspect_after: int, max_images: int) -> None:
        self.suspect_after = suspect_after
        self.max_images = max_images
        self.images: set[str] = set()
        self._evidence: dict[str, list[int]] = {}
        self._streak = False

    def count(self, image: str) -> int:
        """Pieces of evidence against it, at most ``suspect_after``."""
        return len(self._evidence.get(image, ()))

    def iterations(self, image: str) -> list[int]:
        """The iterations that are evidence against it."""
        return list(self._evidence.get(image, ()))

    def bad(self, batches: Iterable[Batch]) -> list[str]:
        """Take in a bad iteration; returns the images that it made suspects."""
        first, self._streak = not self._streak, True
        seen: dict[str, int] = {}
        for batch in batches:
            for image in batch.images:
                seen.setdefault(image, batch.iter)
        if not first or not self.images.isdisjoint(seen):
            return []
        for image, iteration in seen.items():
            if image in self._evidence or self._make_room():
                self._evidence.setdefault(image, []).append(iteration)
        found = [image for image in seen if self.count(image) >= self.suspect_after]
        self.images.update(found)
        return found

    def healthy_step(self) -> None:
        """The optimizer has stepped in a healthy iteration: a streak is over."""
        self._streak = False

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as plain numbers and strings."""
        evidence = {image: list(iters) for image, iters in self._evidence.items()}
        return dict(evidence=evidence, streak=self._streak)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        evidence = {
            str(image): [int(i) for i in iters][: self.suspect_after]
            for image, iters in state["evidence"].items()
        }
        self._evidence, self._streak = {}, bool(state["streak"])
        # Most evidence first, so that none of it is lost to a smaller max_images.
        for image in sorted(evidence, key=lambda image: -len(evidence[image])):
            if len(self._evidence) < self.max_images:
                self._evidence[image] = evidence[image]
        self.images = {
            image for image in self._evidence if self.count(image) >= self.suspect_after
        }

    def _make_room(self) -> bool:
        if len(self._evidence) < self.max_images:
            return True
        weakest = min(self._evidence, key=self.count)
        if self.count(weakest) >= self.suspect_after:
            return False
        del self._evidence[weakest]
        return True


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
