"""Read a config that MMEngine dumped, without executing it."""

from __future__ import annotations

import ast
from typing import Any

_NAMES = {"inf": float("inf"), "nan": float("nan")}


def parse_config(text: str) -> dict[str, Any]:
    """The settings in ``name = value`` lines.

    A dump holds nothing but literals and ``dict(...)``; anything else, which only
    another program can have put there, is left out and not run.

    Raises:
        SyntaxError: It is not Python at all.
    """
    settings = {}
    for statement in ast.parse(text).body:
        if not isinstance(statement, ast.Assign):
            continue
        (target, *others) = statement.targets
        if isinstance(target, ast.Name) and not others:
            try:
                settings[target.id] = _value(statement.value)
            except (ValueError, TypeError, SyntaxError):
                continue
    return settings


def _value(node: ast.expr) -> Any:
    """Raises ValueError or TypeError of what is no plain value."""
    if isinstance(node, ast.Call):
        if not (isinstance(node.func, ast.Name) and node.func.id == "dict"):
            raise ValueError(ast.dump(node.func))
        if node.args:
            raise ValueError("dict() with positional arguments")
        made: dict[Any, Any] = {}
        for keyword in node.keywords:
            value = _value(keyword.value)
            made.update(value if keyword.arg is None else {keyword.arg: value})
        return made
    if isinstance(node, ast.Dict):
        return {
            _value(key): _value(value)
            for key, value in zip(node.keys, node.values)
            if key is not None
        }
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    if isinstance(node, ast.Name):
        if node.id not in _NAMES:
            raise ValueError(node.id)
        return _NAMES[node.id]
    return ast.literal_eval(node)
