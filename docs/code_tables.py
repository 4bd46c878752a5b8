"""The directive ``code-table``: a table made from the code while the site is built."""

from typing import Any, Callable, Dict, List, Sequence

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from amp_hooks.config_check.check import RULES
from amp_hooks.data.coco_records import KINDS
from amp_hooks.engine.command_line import markdown_table
from amp_hooks.engine.events import EVENTS
from amp_hooks.engine.verdict import Verdict
from amp_hooks.panel.scalars import SCALARS

Rows = List[Sequence[str]]


def scalars() -> Rows:
    """Of the panel."""
    head = ("scalar", "unit", "meaning")
    return [head, *((f"`{n}`", s.unit, s.meaning) for n, s in SCALARS.items())]


def events() -> Rows:
    """Of the ledger."""
    rows: Rows = [("event", "when", "fields")]
    for name, event in EVENTS.items():
        fields = "; ".join(f"`{f}`: {meaning}" for f, meaning in event.fields.items())
        rows.append((f"`{name}`", event.meaning, fields))
    return rows


def verdicts() -> Rows:
    """What counts towards a rollback, and what may be the batch's doing."""
    said = {True: "yes", False: "no"}
    head = ("verdict", "counts towards a rollback", "may be the batch's doing")
    rows = [(f"`{v.value}`", said[v.is_bad], said[v.is_of_the_batch]) for v in Verdict]
    return [head, *rows]


def config_rules() -> Rows:
    """Of ``check-config``: the first sentence of each rule."""
    rows: Rows = [("rule", "what it looks for")]
    for rule in RULES:
        first = (rule.__doc__ or "").strip().splitlines()[0]
        rows.append((f"`{rule.__name__}`", first))
    return rows


def annotations() -> Rows:
    """What ``check-annotations`` looks for; notes are no findings."""
    rows: Rows = [("finding", "of", "what", "training", "only a note")]
    for name, kind in KINDS.items():
        what = kind.meaning.replace("{min_size:g}", "1")
        note = "yes" if kind.note else ""
        rows.append((f"`{name}`", kind.of, what, kind.effect, note))
    return rows


TABLES: Dict[str, Callable[[], Rows]] = {
    "scalars": scalars,
    "events": events,
    "verdicts": verdicts,
    "config-rules": config_rules,
    "annotations": annotations,
}


def markdown(rows: Rows) -> str:
    """A table of these cells; the first row is its head."""
    return markdown_table([[c.replace("|", "\\|") for c in row] for row in rows])


class CodeTable(SphinxDirective):
    """``{code-table} scalars``."""

    required_arguments = 1

    def run(self) -> List[nodes.Node]:
        """The table; a name that there is not is an error of the build."""
        if self.arguments[0] not in TABLES:
            raise self.error(f"no table {self.arguments[0]!r} of {', '.join(TABLES)}")
        return self.parse_text_to_nodes(markdown(TABLES[self.arguments[0]]()))


def setup(app: Any) -> Dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("code-table", CodeTable)
    return {"parallel_read_safe": True}
