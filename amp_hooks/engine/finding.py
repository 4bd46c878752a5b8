"""What a check made before training has found, in words a user can act on."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from keyword import iskeyword
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or will go wrong.

    Args:
        name: Stable key, as in ``no_clip_grad``; tests and the ledger use it.
        what: What was found, with the numbers or the config key it was found in.
        remedy: What to do about it.
        lines: Config lines to paste, if the remedy is one.
        fails: Training will fail, or learn nothing, as it stands. Otherwise it may.
        hooks: Arguments of hooks of this package that the remedy is, by class.
        remedies: The numbers that were advised, for the ledger: ``lr``, ``warmup``,
            ``clip``. The report gives the same.
    """

    name: str
    what: str
    remedy: str
    lines: str = ""
    fails: bool = False
    hooks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    remedies: Mapping[str, float] = field(default_factory=dict)


def numbered(findings: Sequence[Finding], lines: Callable[[int, Finding], str]) -> str:
    """A numbered list for the log: what fails comes first.

    Args:
        findings: In any order.
        lines: What to paste of a finding, by its number; of a ``Paste``.
    """
    text = []
    for number, f in enumerate(sorted(findings, key=lambda f: not f.fails), 1):
        head = f"{number}. "
        text += _wrapped(f"{'FAILS: ' if f.fails else ''}{f.what}", head)
        text += _wrapped(f.remedy, " " * len(head))
        text += [f"       {line}" for line in lines(number, f).splitlines()]
    return "\n".join(text)


def _wrapped(text: str, head: str) -> list[str]:
    # Paths, names and values stay whole, to be copied.
    return textwrap.wrap(
        text,
        88,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def source(value: Any) -> str:
    """Python source of a config value, in one line: ``dict(max_norm=35)``."""
    if isinstance(value, Mapping):
        if all(_is_name(key) for key in value):
            return f"dict({', '.join(f'{k}={source(v)}' for k, v in value.items())})"
        pairs = (f"{source(k)}: {source(v)}" for k, v in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(source, value))
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, type):
        return repr(f"{value.__module__}.{value.__qualname__}")
    return repr(value)


def short_source(value: Any, limit: int = 60) -> str:
    """The same for a sentence: cut where it is long."""
    text = source(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and key.isidentifier() and not iskeyword(key)
