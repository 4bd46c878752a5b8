"""Config lines in the syntax of MMEngine's pure Python configs.

Rules write lines as they stand in a text config, where ``optim_wrapper = dict(...)`` is
merged with what is inherited. In a pure Python config (``with read_base():``) the same
line replaces it, and classes stand in the place of their names.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from .source import source_of

_SCHEDULERS = "Constant CosineAnnealing Exponential Linear MultiStep OneCycle Poly Step"
# Where to import from what our lines name.
_HOMES = {f"{name}LR": "mmengine.optim" for name in _SCHEDULERS.split()}
_HOMES.update(dict.fromkeys(("OptimWrapper", "AmpOptimWrapper"), "mmengine.optim"))
_HOMES.update(dict.fromkeys(("EMAHook", "CheckpointHook"), "mmengine.hooks"))
_HOMES["FilterAnnotations"] = "mmdet.datasets.transforms"
_OURS = "amp_hooks"
DELETE = "_delete_"  # MMEngine: replace what is inherited


def is_pure_python(cfg: Mapping[str, Any]) -> bool:
    """Whether a config was written with classes, by what it holds as plain data.

    Classes are dumped with their module: ``mmengine.optim.optimizer.OptimWrapper``. A
    name with a scope, as text configs have it, has one dot.
    """
    types = list(_types(cfg))
    return 2 * sum(name.count(".") > 1 for name in types) > len(types)


def in_pure_python(lines: str, inherited: Collection[str]) -> str:
    """The same lines for a pure Python config.

    Args:
        lines: Assignments, entries of lists and comments, as for a text config. What
            is no Python is given back as it is.
        inherited: Names that the config has: they are updated, not replaced.
    """
    try:
        statements = ast.parse(lines).body
    except SyntaxError:
        return lines
    source, done = lines.splitlines(), 0
    homes: dict[str, set[str]] = {}
    out: list[str] = []
    for statement in statements:
        out += source[done : statement.lineno - 1]  # comments
        done = statement.end_lineno or statement.lineno
        own = source[statement.lineno - 1 : done]
        if _has_types(statement) or _is_dict(statement):
            statement = _Classes(homes).visit(statement)
            own = _rewritten(statement, inherited)
        out += own
    out += source[done:]
    imports = [
        f"from {module} import {', '.join(sorted(names))}"
        for module, names in sorted(homes.items())
    ]
    return "\n".join([*(["# at the top:"] if imports else []), *imports, *out])


def _types(tree: Any) -> Iterator[str]:
    if isinstance(tree, Mapping):
        if isinstance(name := tree.get("type"), (str, type)):
            yield name if isinstance(name, str) else f"{name.__module__}.{name}"
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _types(item)


def _has_types(node: ast.AST) -> bool:
    return any(isinstance(n, ast.keyword) and n.arg == "type" for n in ast.walk(node))


def _is_dict(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and _is_call(statement.value)


def _is_call(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "dict"
    )


class _Classes(ast.NodeTransformer):
    """Puts classes where their names are, and notes their modules."""

    def __init__(self, homes: dict[str, set[str]]) -> None:
        self._homes = homes

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        self.generic_visit(node)
        value = node.value.value if isinstance(node.value, ast.Constant) else None
        if node.arg == "type" and isinstance(value, str):
            scope, _, name = value.rpartition(".")
            module = _OURS if scope == _OURS else _HOMES.get(name)
            if module is not None and scope.count(".") == 0:
                self._homes.setdefault(module, set()).add(name)
                node.value = ast.Name(name)
        return node


def _rewritten(statement: ast.stmt, inherited: Collection[str]) -> list[str]:
    if not _is_dict(statement):
        # A list's entry keeps the comma that makes it one.
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Tuple):
            return [f"{source_of(entry)}," for entry in statement.value.elts]
        return source_of(statement).splitlines()
    assert isinstance(statement, ast.Assign)
    name, call = source_of(statement.targets[0]), statement.value
    assert isinstance(call, ast.Call)
    replaced: list[str] = []
    if _without_delete(call, name, replaced) or name not in inherited:
        return [f"{name} = {source_of(call)}", *replaced]
    changed = [f"{name}.update({source_of(call)})"] if call.keywords else []
    return [*changed, *replaced]


def _without_delete(call: ast.Call, path: str, replaced: list[str]) -> bool:
    """Whether this dict was to replace another; those within are put into a line."""
    kept, deletes = [], False
    for keyword in call.keywords:
        value = keyword.value
        if keyword.arg == DELETE:
            deletes = True
            continue
        if isinstance(value, ast.Call) and _is_call(value):
            inner = f"{path}.{keyword.arg}"
            if _without_delete(value, inner, replaced):
                replaced.append(f"{inner} = {source_of(value)}")
                continue
            if not value.keywords:
                continue
        kept.append(keyword)
    call.keywords = kept
    return deletes
