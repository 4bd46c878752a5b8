"""The report as one HTML file that needs nothing else, and no network."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from pprint import pformat
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ...engine.events import in_words
from ...engine.words import count
from ..judge.status import Status
from . import axes, page, plots
from .clock import Clock, lasting
from .groups import Group
from .marks import STYLES, Mark, marks
from .timeline import Timeline
from .zoom import Window, windows

# An event is one row, with its lines folded into it. What a run of days writes must
# still open in a browser; stability.jsonl has the rest.
_MOST_GROUPS, _MOST_LINES = 2000, 100
_WHOLE, _BESIDE = 510.0, 340.0  # points: the widths of two plots side by side
_ALONE = 850.0
# Of the config, what the report reasons with: the rest may hold what is private.
_SETTINGS = (
    "optim_wrapper",
    "param_scheduler",
    "train_cfg",
    "default_hooks",
    "custom_hooks",
    "log_processor",
    "auto_scale_lr",
    "randomness",
    "resume",
    "load_from",
)
_CSS_LINES = {"-": "solid", "--": "dashed", "-.": "dashed", ":": "dotted"}
_SYMBOLS = {Status.HEALTHY: "✓", Status.RECOVERED: "↺", Status.LOST: "✕"}


def render(content: page.Page, beside: Path | None = None) -> str:
    """The whole file.

    Args:
        content: What it says.
        beside: The folder that the file will be in, for links to incidents' folders.
    """
    env = Environment(
        loader=PackageLoader("amp_hooks.report.show"),
        autoescape=True,  # everything in the run's files may be hostile
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = env.get_template("report.js").render()
    digest = hashlib.sha256(script.encode()).digest()
    text = env.get_template("report.html").render(
        page=content,
        script=Markup(script),
        script_hash=base64.b64encode(digest).decode(),
        word=content.sentence.split(":", 1)[0],
        rest=_capitalized(content.sentence.split(":", 1)[1].strip()),
        symbol=_SYMBOLS[content.judged.status],
        status=content.judged.status.name.lower(),
        table=content.table(),
        bad_cells=content.bad_cells(),
        of_the_table=page.OF_THE_TABLE,
        no_ledger=page.NO_LEDGER,
        settings=_settings(content.run.config),
        **_story(content, beside),
        **_events(content.groups),
    )
    return text.encode("utf-8", "replace").decode("utf-8")


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _story(content: page.Page, beside: Path | None) -> dict[str, Any]:
    """Figures, timeline and plots."""
    run, found = content.run, content.found
    clock = Clock(run)
    timeline = Timeline(run, found, content.groups, clock, beside)
    shown = marks(run, found)
    whole = Window(found.first, max(found.last, found.first), whole=True)
    zoomed = [
        w for w in windows(found) if (w.first, w.last) != (whole.first, whole.last)
    ]
    # The first row of an iteration is the one that a plot leads to.
    anchors = {row.iter: i for i, row in reversed([*enumerate(timeline.rows)])}
    sizes = [(whole, _WHOLE if zoomed else _ALONE)]
    sizes += [
        (window, _BESIDE if i == 0 else _ALONE) for i, window in enumerate(zoomed)
    ]
    drawn = plots.draw(content, shown, sizes, set(anchors))
    return dict(
        clock=clock,
        timeline=timeline,
        anchored=set(anchors.values()),
        figures=_figures(content, clock),
        whole=Markup(drawn[0]),
        zoomed=list(zip(zoomed, map(Markup, drawn[1:]))),
        legend=_legend(content, shown),
    )


def _figures(content: page.Page, clock: Clock) -> list[tuple[str, str, bool]]:
    """``(label, number, bad)`` of what one wants to know first."""
    found = content.found
    total = found.last - found.first + 1
    bad = len(found.bad) + len(found.poisoned)
    out = [
        ("iterations", f"{total:,}", False),
        ("not finite", f"{bad:,}", bad > 0),
        ("rollbacks", str(len(found.rollbacks)), False),
        (
            "healthy at the end",
            f"{max(found.healthy_since, 0):,}",
            not found.healthy_since,
        ),
    ]
    if content.metric is not None and len(content.metric.curve):
        value = float(content.metric.curve.values[-1])
        out.append((f"last {content.metric.title}", f"{value:.3f}", not value > 0))
    if seconds := clock.trained(found.last):
        out.append(("trained for", lasting(seconds), False))
    return out


def _legend(content: page.Page, shown: list[Mark]) -> list[tuple[str, str, str, str]]:
    """``(kind of swatch, colour, line, label)`` of what the plots have."""
    out = [("line", axes.CURVE, "-", "the run")]
    if any(q.band is not None for q in content.shown):
        out.append(("box", axes.HEALTHY, "-", "healthy range of the loss"))
    curves = [q.curve for q in content.shown] + list(content.terms.values())
    beyond = any(len(c.finite) < len(c) for c in curves)
    if beyond or any(q.log and (q.curve.values <= 0).any() for q in content.shown):
        out.append(("edge", axes.NOT_FINITE, "-", "beyond the axis: NaN, inf, or 0"))
    if len(content.found.bad) or len(content.found.poisoned):
        out.append(("box", axes.NOT_FINITE, "-", "iterations not finite"))
    if len(content.found.overflows):
        label = "gradient overflow, normal for a dynamic loss scale"
        out.append(("box", axes.OVERFLOW, "-", label))
    for event in STYLES:
        if any(m.event == event for m in shown):
            label, colour, line = STYLES[event]
            out.append(("mark", colour, line, label))
    return [(k, plots.variable(c), _CSS_LINES[line], x) for k, c, line, x in out]


def _settings(config: dict[str, Any]) -> str:
    known = [name for name in _SETTINGS if name in config]
    return "\n".join(
        f"{name} = {pformat(config[name], width=88, sort_dicts=False)}"
        for name in known
    )


def _events(groups: list[Group]) -> dict[str, Any]:
    """All events, each a row with its lines."""
    half = _MOST_GROUPS // 2
    cut = len(groups) > _MOST_GROUPS
    shown = groups[:half] + groups[-half:] if cut else groups
    rows = [
        dict(
            where=g.where,
            text=g.text,
            lost=g.lost,
            lines=[
                f"iteration {h.iter}: {in_words(h.line)}"
                for h in g.happenings[:_MOST_LINES]
            ]
            if len(g.happenings) > 1
            else [],
            more=max(len(g.happenings) - _MOST_LINES, 0),
        )
        for g in shown
    ]
    return dict(
        events=rows,
        cut_at=half if cut else -1,
        cut=count(len(groups) - len(shown), "more event"),
    )
