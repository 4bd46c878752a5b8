"""Lines of several pieces of advice that may all be pasted below each other.

A second line of a name takes back the first, and a second entry of a hook is a second
hook. So a later piece says again what an earlier one has said of the same name, a hook
that is there is changed in its place, and inside StabilityHook its member is named.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from ..members import MEMBERS
from .config_syntax import DELETE, in_pure_python, is_pure_python
from .config_values import items_of
from .finding import Finding, source
from .source import source_of

_SUITE = "StabilityHook"
_PREFIX, _SCOPE = "amp_hooks.", "_scope_"


def own_hooks(cfg: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arguments of this package's hooks in a config, by class."""
    hooks = [*_default_hooks(cfg).values(), *items_of(cfg.get("custom_hooks"))]
    own = (hook for hook in hooks if _own(hook))
    return {_own(h): {k: h[k] for k in h if k not in ("type", _SCOPE)} for h in own}


def hook_places(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Under which name of ``default_hooks`` those stand that are there, by class.

    A command line can add a hook there, and not to the list ``custom_hooks``.
    """
    return {_own(h): name for name, h in _default_hooks(cfg).items() if _own(h)}


def _default_hooks(cfg: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    hooks = dict(cfg.get("default_hooks") or {})
    return {name: hook for name, hook in hooks.items() if isinstance(hook, Mapping)}


def _own(hook: Mapping[str, Any]) -> str:
    """The class, if it is of this package."""
    name = str(hook.get("type"))
    # A pure Python config is dumped with the module that has the class.
    ours = name.startswith(_PREFIX) or f"{hook.get(_SCOPE)}." == _PREFIX
    return name.rsplit(".", 1)[-1] if ours else ""


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """``other`` over ``one``, however deep."""
    result = dict(one)
    for key, value in other.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = merged(before, value)
        result[key] = value
    return result


class Said:
    """Which pieces of advice have spoken of a name before."""

    def __init__(self) -> None:
        self._before: dict[str, list[int]] = {}

    def again(self, number: int, name: str) -> list[str]:
        """A comment, if there were any; from now on ``number`` is one of them."""
        before = self._before.setdefault(name, [])
        text = f"# with what {' and '.join(map(str, before))} said of it:"
        lines = [text] if before else []
        before.append(number)
        return lines


class Hooks:
    """Entries of ``custom_hooks``, or of ``default_hooks`` where they stand there.

    Args:
        present: Arguments of the hooks that are there, by class.
        said: Is told of each entry.
        places: As :func:`hook_places` gives them.
    """

    def __init__(
        self,
        present: Mapping[str, Mapping[str, Any]],
        said: Said,
        places: Mapping[str, str],
    ) -> None:
        self._present = frozenset(present)
        self._places = places
        self._now = {hook: dict(arguments) for hook, arguments in present.items()}
        self._said = said

    def lines(self, number: int, hooks: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """The entries that give these hooks these arguments."""
        touched: list[str] = []
        for hook, arguments in hooks.items():
            entry = self._take(hook, arguments)
            touched += [] if entry in touched else [entry]
        out: list[str] = []
        heads: list[str] = []
        for hook in touched:
            key = self._places.get(hook)
            head = f"# in {'default_hooks' if key else 'custom_hooks'}"
            if hook in self._present:
                head += f", in place of the present {key or hook}"
            head += ":"
            out += [] if heads[-1:] == [head] else [head]
            heads.append(head)
            out += self._said.again(number, hook)
            entry_of = dict(type=f"{_PREFIX}{hook}", **self._now[hook])
            out.append(f"{source(entry_of)},")
        return out

    def _take(self, hook: str, arguments: Mapping[str, Any]) -> str:
        """Change an entry; returns its class."""
        member = next((m for m, h in MEMBERS.items() if h == hook), None)
        beside = hook in self._present  # and StabilityHook has that member left out
        if member is None or beside or _SUITE not in self._now:
            self._now[hook] = merged(self._now.get(hook, {}), arguments)
            return hook
        suite = self._now[_SUITE]
        given = suite.get(member)
        suite[member] = merged(given if isinstance(given, Mapping) else {}, arguments)
        if not suite[member]:
            del suite[member]  # it is on without being named
        return _SUITE


class Paste:
    """The lines of findings, for one config.

    Args:
        cfg: Of the run.
        pure_python: It is such a config; by what it holds, if left out.
    """

    def __init__(self, cfg: Mapping[str, Any], pure_python: bool | None = None) -> None:
        self._names = frozenset(cfg)
        self._pure = is_pure_python(cfg) if pure_python is None else pure_python
        self._said = Said()
        self._hooks = Hooks(own_hooks(cfg), self._said, hook_places(cfg))
        self._dicts: dict[str, ast.Call] = {}

    def lines(self, number: int, finding: Finding) -> str:
        """What to paste of a finding, the pieces being asked for in their order."""
        text = finding.lines
        if not self._pure:  # where a dict is updated, and no line takes another back
            text = self._with_the_others(number, text)
        hooks = self._hooks.lines(number, finding.hooks)
        text = "\n".join([*([text] if text else []), *hooks])
        return in_pure_python(text, self._names) if self._pure else text

    def _with_the_others(self, number: int, text: str) -> str:
        try:
            statements = ast.parse(text).body
        except SyntaxError:
            return text
        source_lines, out, done = text.splitlines(), [], 0
        for statement in statements:
            out += source_lines[done : statement.lineno - 1]
            end = statement.end_lineno or statement.lineno
            own = source_lines[statement.lineno - 1 : end]
            done = end
            if isinstance(statement, ast.Assign) and _is_plain(statement.value):
                name = source_of(statement.targets[0])
                call: Any = statement.value
                again = self._said.again(number, name)
                if name in self._dicts:
                    call = _both(self._dicts[name], call)
                    own = [f"{name} = {source_of(call)}"]
                self._dicts[name] = call
                own = [*again, *own]
            out += own
        return "\n".join([*out, *source_lines[done:]])


def _is_plain(node: ast.expr) -> bool:
    """A ``dict(...)`` that can be merged: nothing is left open, nothing deleted."""
    if not (isinstance(node, ast.Call) and source_of(node.func) == "dict"):
        return False
    deleting = any(k.arg == DELETE for k in node.keywords)
    is_open = any(
        isinstance(n, ast.Constant) and n.value is Ellipsis for n in ast.walk(node)
    )
    return not (deleting or is_open or node.args)


def _both(one: ast.Call, other: ast.Call) -> ast.Call:
    values = {keyword.arg: keyword.value for keyword in one.keywords}
    for keyword in other.keywords:
        before, value = values.get(keyword.arg), keyword.value
        if before is not None and _is_plain(before) and _is_plain(value):
            assert isinstance(before, ast.Call)
            assert isinstance(value, ast.Call)
            value = _both(before, value)
        values[keyword.arg] = value
    keywords = [ast.keyword(arg=name, value=value) for name, value in values.items()]
    return ast.Call(func=one.func, args=[], keywords=keywords)
