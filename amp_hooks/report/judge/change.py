"""A piece of advice, and the lines to paste of several."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ...engine.config_syntax import DELETE, in_pure_python
from ...engine.finding import source
from ...engine.paste import Hooks, Said, merged
from .recipe import Recipe


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
        self._said = Said()
        self._hooks = Hooks(recipe.own_hooks, self._said, recipe.places)

    def lines(self, number: int, advice: Advice) -> str:
        """What to paste of a piece of advice."""
        out = [f"# {note}" for note in advice.notes]
        for name, settings in advice.settings.items():
            known = self._settings.get(name, {})
            # What replaces the present one has to take in what was said before.
            anew = settings.get(DELETE)
            known = merged(settings, known) if anew else merged(known, settings)
            self._settings[name] = known
            out += self._said.again(number, name)
            out.append(f"{name} = {source(known)}")
        for where, entry in advice.entries:
            out += [f"# in {where}:", f"{source(entry)},"]
        out += self._hooks.lines(number, advice.hooks)
        text = "\n".join(out)
        if not self._recipe.pure_python:
            return text
        return in_pure_python(text, self._recipe.names)
