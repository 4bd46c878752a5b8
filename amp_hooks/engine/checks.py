"""Checks of constructor arguments: an error names argument, value and remedy."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from ..errors import SetupError


def check_known_arguments(cls: type, kwargs: Iterable[str]) -> None:
    """Refuse keyword arguments that ``cls`` does not have.

    Raises:
        TypeError: Names the argument, the nearest one that exists, and all of them.
    """
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    known = [name for name in signature.parameters if name != "self"]
    for name in kwargs:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(
                f"{cls.__name__} has no argument {name!r}.{hint} "
                f"Its arguments are: {', '.join(known) or 'none'}."
            )


def check_int(owner: str, name: str, value: Any, minimum: int) -> int:
    """Return ``value`` if it is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{owner}: {name} must be an integer of at least {minimum}, "
            f"got {value!r} of type {type(value).__name__}."
        )
    if value < minimum:
        raise ValueError(
            f"{owner}: {name} must be at least {minimum}, got {value}. "
            f"Set {name}={minimum} or more, or take the hook out of custom_hooks."
        )
    return value


def check_optional_int(owner: str, name: str, value: Any, minimum: int) -> int | None:
    """The same, or ``None``."""
    return None if value is None else check_int(owner, name, value, minimum)


def check_number(
    owner: str, name: str, value: Any, above: float, at_most: float = math.inf
) -> float:
    """Return ``value`` as a float if it is a finite number in ``(above, at_most]``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"{owner}: {name} must be a number, "
            f"got {value!r} of type {type(value).__name__}."
        )
    if not above < value <= at_most or math.isinf(value):
        limits = f"greater than {above:g}"
        if math.isfinite(at_most):
            limits += f" and at most {at_most:g}"
        raise ValueError(f"{owner}: {name} must be {limits}, got {value!r}.")
    return float(value)


def check_choice(owner: str, name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{owner}: {name} must be one of {choices}, got {value!r}.")
    return str(value)


def check_bool(owner: str, name: str, value: Any) -> bool:
    """Return ``value`` if it is ``True`` or ``False``."""
    if not isinstance(value, bool):
        raise TypeError(f"{owner}: {name} must be True or False, got {value!r}.")
    return value


def check_regexes(owner: str, name: str, value: Any) -> list[str]:
    """Return ``value`` as a list of regular expressions; ``None`` is an empty list."""
    patterns = [value] if isinstance(value, str) else value or []
    if not isinstance(patterns, (list, tuple)) or not all(
        isinstance(p, str) and p for p in patterns
    ):
        raise TypeError(
            f"{owner}: {name} must be a regular expression or a list of them, such as "
            f"['contains NaN'], got {value!r}."
        )
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as e:
            raise ValueError(
                f"{owner}: {name} holds {pattern!r}, which is not a regular "
                f"expression: {e}."
            ) from None
    return list(patterns)


def check_iterations(owner: str, name: str, value: Any) -> list[int]:
    """Return ``value`` as a list of iterations, counted from 0; ``None`` is empty."""
    if value is None:
        return []
    if not isinstance(value, (list, tuple)) or not all(
        type(i) is int and i >= 0 for i in value
    ):
        raise TypeError(
            f"{owner}: {name} must be a list of iterations, counted from 0, such as "
            f"[0, 1000], got {value!r}."
        )
    return list(value)


def check_dict(owner: str, name: str, value: Any, example: str) -> None:
    """Refuse what is neither a dict nor ``None``."""
    if value is not None and not isinstance(value, dict):
        raise TypeError(
            f"{owner}: {name} must be a dict such as {example}, got {value!r}."
        )


def check_patterns(owner: str, name: str, value: Any) -> list[str]:
    """Return ``value`` as a list of fnmatch patterns; ``None`` stays an empty list."""
    if value is None:
        return []
    patterns = [value] if isinstance(value, str) else value
    if (
        not isinstance(patterns, (list, tuple))
        or not patterns
        or not all(isinstance(p, str) and p for p in patterns)
    ):
        raise TypeError(
            f"{owner}: {name} must be a module name pattern or a list of them, such as "
            f"['*.fc_cls', 'rpn_head.rpn_cls'], got {value!r}. "
            f"Leave it out to have the classifier layers found automatically."
        )
    return list(patterns)


def match_names(
    owner: str,
    argument: str,
    patterns: list[str],
    names: Iterable[str],
    kind: str = "module",
) -> list[str]:
    """Names that match any pattern, in their own order.

    Raises:
        SetupError: If a pattern matches nothing; lists the nearest names.
    """
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(n, pattern) for n in names):
            near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.4)
            last = pattern.strip("*").rsplit(".", 1)[-1].strip("*")
            if last:
                near += [n for n in names if last in n and n not in near][:5]
            hint = f"Nearest names: {', '.join(near)}. " if near else ""
            raise SetupError(
                f"{owner}: the pattern {pattern!r} in {argument} matches no {kind} "
                f"of the model. {hint}Patterns are fnmatch patterns over the names in "
                f"model.named_{kind}s()."
            )
    return [n for n in names if any(fnmatchcase(n, p) for p in patterns)]
