"""Values as a config file writes them."""

from __future__ import annotations

from collections.abc import Mapping
from keyword import iskeyword
from typing import Any


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
