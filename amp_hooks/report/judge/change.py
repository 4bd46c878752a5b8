"""A piece of advice, and the lines to paste of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...engine.config_syntax import in_pure_python
from ...engine.finding import source
from ...members import MEMBERS
from .recipe import Recipe

_SUITE = "StabilityHook"


@dataclass(frozen=True)
class Advice:
    """One change to a config.

    Attributes:
        title: What to do.
        evidence: Numbers with their iterations.
        remarks: What is worth knowing and proves nothing.
        settings: By the name of the config's variable.
        hooks: Arguments of hooks of this package, by class.
        entries: Of lists, each with the place where it belongs.
        notes: What no line can say.
        change: All of it as lines to paste; :func:`written` makes them.
    """

    title: str
    evidence: list[str]
    remarks: list[str] = field(default_factory=list)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    hooks: dict[str, dict[str, Any]] = field(default_factory=dict)
    entries: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    change: str = ""


def written(advice: list[Advice], recipe: Recipe) -> list[Advice]:
    """The same with their lines, which may all be pasted below each other.

    The second line of a name would take back the first, and two entries of a hook are
    two hooks. So a later piece says what an earlier one said of the same name again.
    """
    paste = _Paste(recipe)
    return [
        dataclasses.replace(a, change=paste.lines(i, a))
        for i, a in enumerate(advice, 1)
    ]


class _Paste:
    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._settings: dict[str, dict[str, Any]] = {}
        self._hooks = {h: dict(given) for h, given in recipe.own_hooks.items()}
        self._said: dict[str, list[int]] = {}

    def lines(self, number: int, advice: Advice) -> str:
        """What to paste of a piece of advice."""
        out = [f"# {note}" for note in advice.notes]
        for name, settings in advice.settings.items():
            known = self._settings.get(name, {})
            if settings.get("_delete_"):
                known = merged(settings, known)
            self._settings[name] = known = merged(known, settings)
            out += self._with(number, name)
            out.append(f"{name} = {source(known)}")
        for where, entry in advice.entries:
            out += [f"# in {where}:", f"{source(entry)},"]
        out += self._of_hooks(number, advice)
        text = "\n".join(out)
        if not self._recipe.pure_python:
            return text
        return in_pure_python(text, self._recipe.names)

    def _of_hooks(self, number: int, advice: Advice) -> list[str]:
        touched = []
        for hook, arguments in advice.hooks.items():
            member = next((m for m, h in MEMBERS.items() if h == hook), None)
            if member and _SUITE in self._hooks:
                suite = self._hooks[_SUITE]
                given = suite.get(member, {})
                if arguments or not (given or given == {}):
                    known = given if isinstance(given, Mapping) else {}
                    suite[member] = merged(known, arguments)
                if suite.get(member) == {}:
                    del suite[member]  # it is on without being named
                hook = _SUITE
            else:
                self._hooks[hook] = merged(self._hooks.get(hook, {}), arguments)
            touched += [] if hook in touched else [hook]
        out = []
        for hook in touched:
            present = hook in self._recipe.own_hooks
            place = f", in place of the present {hook}" if present else ""
            out += [f"# in custom_hooks{place}:", *self._with(number, hook)]
            entry = dict(type=f"amp_hooks.{hook}", **self._hooks[hook])
            out.append(f"{source(entry)},")
        return out

    def _with(self, number: int, name: str) -> list[str]:
        before = self._said.setdefault(name, [])
        text = f"# with what {' and '.join(map(str, before))} said of it:"
        lines = [text] if before else []
        before.append(number)
        return lines


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """``other`` over ``one``, however deep."""
    result = dict(one)
    for key, value in other.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = merged(before, value)
        result[key] = value
    return result
