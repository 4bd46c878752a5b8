"""Faults to be injected: read from a config, and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..engine.checks import check_known_arguments
from .damage import Change
from .fault_table import KINDS, Kind


@dataclass(frozen=True)
class Fault:
    """One entry of ``FaultInjectionHook(faults=[...])``.

    Attributes:
        what: A key of :data:`.fault_table.KINDS`.
        at: Iterations in which it begins.
        iters: So many iterations in a row, each time.
        where: Patterns over the names that the kind speaks of.
        value: As in the config.
        count: Elements, or boxes, that are hit; ``None`` for all.
        rank: ``None`` for all.
    """

    what: str
    at: tuple[int, ...]
    iters: int = 1
    where: tuple[str, ...] = ()
    value: Any = None
    count: int | None = 1
    rank: int | None = None

    def is_due(self, iteration: int) -> bool:
        """Whether it belongs to the iteration."""
        return self.overlaps(iteration, iteration + 1)

    def overlaps(self, begin: int, end: int) -> bool:
        """Whether it belongs to an iteration from ``begin`` to before ``end``."""
        return any(at < end and begin < at + self.iters for at in self.at)

    @property
    def parsed(self) -> Any:
        """The value as the kind uses it."""
        return KINDS[self.what].parse(self.value)

    def __str__(self) -> str:
        where = f" in {', '.join(self.where)}" if self.where else ""
        value = f" ({self.value})" if self.what != "raise" else ""
        at = ", ".join(map(str, self.at[:5])) + (", ..." if len(self.at) > 5 else "")
        lasts = f", {self.iters} iterations each" if self.iters > 1 else ""
        return f"{self.what}{value}{where} at iteration {at}{lasts}"


def read_fault(owner: str, entry: dict[str, Any]) -> Fault:
    """Check one entry and fill in the defaults of its kind.

    Raises:
        TypeError, ValueError: Names ``owner``, argument, value and remedy.
    """
    try:
        check_known_arguments(Fault, entry)
    except TypeError as e:
        raise TypeError(f"{owner}: {e}") from None
    what = entry.get("what")
    if not isinstance(what, str) or what not in KINDS:
        raise ValueError(
            f"{owner}: what={what!r} is no kind of fault. Set `what` to one of: "
            f"{', '.join(KINDS)}."
        )
    kind = KINDS[what]
    value = entry.get("value")
    value = kind.value if value is None else value
    try:
        parsed = kind.parse(value)
    except ValueError:
        raise ValueError(
            f"{owner}: value={value!r} means nothing to a {what!r} fault. "
            f"Give {kind.grammar}."
        ) from None
    return Fault(
        what=what,
        at=_read_at(owner, entry.get("at")),
        iters=_read_int(owner, "iters", entry.get("iters", 1), 1),
        where=_read_where(owner, what, kind, entry.get("where")),
        value=value,
        count=_read_count(owner, what, kind, entry.get("count"), parsed),
        rank=None
        if entry.get("rank") is None
        else _read_int(owner, "rank", entry["rank"], 0),
    )


def _read_int(owner: str, name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"{owner}: {name} must be an integer of at least {least}, got {value!r}."
        )
    return value


def _read_at(owner: str, value: Any) -> tuple[int, ...]:
    at = value if isinstance(value, (list, tuple)) else [value]
    for i in at:
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise ValueError(
                f"{owner}: at={value!r} must be an iteration, counted from 0, or a "
                "list of them, such as at=100 or at=[100, 200]."
            )
    if not at:
        raise ValueError(
            f"{owner}: at={value!r} names no iteration; give at=100 or at=[100, 200]."
        )
    return tuple(at)


def _read_where(owner: str, what: str, kind: Kind, value: Any) -> tuple[str, ...]:
    if value is None:
        if kind.where is None:
            raise ValueError(
                f"{owner}: a {what!r} fault needs `where`: one or several fnmatch "
                f"patterns over the names in model.named_{kind.named}s()."
            )
        return kind.where
    if not kind.named:
        raise ValueError(
            f"{owner}: a {what!r} fault has no `where`, got {value!r}; leave it out."
        )
    patterns = [value] if isinstance(value, str) else value
    good = isinstance(patterns, (list, tuple)) and patterns
    if not good or not all(isinstance(p, str) and p for p in patterns):
        raise ValueError(
            f"{owner}: where={value!r} must be a {kind.named} name pattern or a list "
            "of them, such as where='*cls*'."
        )
    return tuple(patterns)


def _read_count(
    owner: str, what: str, kind: Kind, value: Any, parsed: Any
) -> int | None:
    if value is None:
        multiplies = isinstance(parsed, Change) and parsed.multiply
        return None if multiplies or not kind.counted else 1
    if not kind.counted:
        raise ValueError(
            f"{owner}: a {what!r} fault has no `count`, got {value!r}; leave it out."
        )
    if value == "all":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{owner}: count={value!r} must be an integer of at least 1, or 'all'."
        )
    return value
