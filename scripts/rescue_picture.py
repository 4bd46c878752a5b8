"""The results of rescue_benchmark.py as one picture: docs/rescue.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Tuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from rescue_cells import CLEAN, FAULTS, OURS, POLICIES, PRECISIONS
from rescue_tables import FINITE, SAVED, Result, Table, by_row, rounded_down

Row = Tuple[Any, ...]  # length, precision, fault

# Of the clean runs' mAP, the least of each. Not one smooth scale, on which 0.90 and
# 0.97, another outcome, would be next to the same.
STEPS = (0.0, 0.25, 0.5, 0.75, SAVED)
# Cividis: the same to the colour-blind, and from dark to bright in grey as well.
COLORS = [matplotlib.colormaps["cividis"](x) for x in (0.0, 0.3, 0.5, 0.7, 1.0)]
NOT_RUN = dict(facecolor="white", edgecolor="silver", hatch="////", linewidth=0)
APART = 0.1  # of a column, between ours and the others


def plot(results: list[Result], path: Path) -> None:
    """Write the picture."""
    figure = draw(results)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw(results: list[Result]) -> Figure:
    """A square for each fault and detector, the mean of its seeds; ours apart."""
    results = [r for r in results if not r["long"]]
    table = Table(results)
    policies = [p for p in POLICIES if any(r["policy"] == p for r in results)]
    detectors = list(dict.fromkeys(r["detector"] for r in results))
    rows = by_outcome(results, table)
    others = sum(p not in OURS for p in policies)
    apart = [APART] if 0 < others < len(policies) else []
    widths = [1.0] * others + apart + [1.0] * (len(policies) - others)
    figure, axes = plt.subplots(
        1,
        len(widths),
        squeeze=False,
        gridspec_kw=dict(width_ratios=widths),
        # The legend needs its width as well.
        figsize=(
            max(8.0, 3.2 + 0.5 * len(detectors) * len(policies)),
            2.6 + 0.3 * len(rows),
        ),
        layout="constrained",
    )
    columns = list(axes[0])
    if apart:
        columns.pop(others).axis("off")
    found = by_row(results)
    for axis, policy in zip(columns, policies):
        for y, row in enumerate(rows):
            for x, detector in enumerate(detectors):
                seeds = found.get((*row, detector), [])
                _cell(axis, x, y, table, [r for r in seeds if r["policy"] == policy])
        _frame(axis, policy, detectors, len(rows))
    columns[0].set_yticks(
        range(len(rows)),
        [f"{FAULTS.get(f, 'no fault')}, {PRECISIONS[p]}" for _, p, f in rows],
        fontsize=8,
    )
    figure.suptitle("mAP over that of the clean runs", fontsize=11)
    figure.legend(
        handles=legend(),
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    return figure


def by_outcome(results: list[Result], table: Table) -> list[Row]:
    """First what ruins runs without hooks, then what harms none, then no fault.

    In each what ours saves comes first.
    """
    rows = list(dict.fromkeys(key[:3] for key in by_row(results)))

    def mean(row: Row, *policies: str) -> float:
        long, precision, fault = row
        shares = [
            min(table.share(r), 1.0)
            for r in results
            if (r["long"], r["precision"], r["fault"]) == (long, precision, fault)
            and r["policy"] in policies
        ]
        return sum(shares) / len(shares) if shares else 0.0

    def key(row: Row) -> tuple[Any, ...]:
        plain = mean(row, "nothing")
        return row[2] == CLEAN, plain >= SAVED, -mean(row, *OURS), plain

    return sorted(rows, key=key)


def color_of(share: float) -> Any:
    """The colour of its step."""
    return [c for least, c in zip(STEPS, COLORS) if share >= least][-1]


def ink_on(color: Any) -> str:
    """Black or white, whichever has the higher contrast."""
    return max("black", "white", key=lambda ink: contrast(to_rgb(ink), color))


def contrast(one: Any, other: Any) -> float:
    """Of two colours, as WCAG defines it: of their luminance, so in grey as well."""
    light = [
        sum(
            weight * (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4)
            for weight, x in zip((0.2126, 0.7152, 0.0722), color)
        )
        for color in (one, other)
    ]
    return (max(light) + 0.05) / (min(light) + 0.05)


def _cell(axis: Axes, x: int, y: int, table: Table, seeds: list[Result]) -> None:
    corner = x - 0.5, y - 0.5
    if not seeds:
        axis.add_patch(Rectangle(corner, 1, 1, **NOT_RUN))
        return
    share = sum(map(table.share, seeds)) / len(seeds)
    color = color_of(share)
    axis.add_patch(
        Rectangle(corner, 1, 1, facecolor=color, edgecolor="white", linewidth=0.8)
    )
    words = rounded_down(share) if any(r["finished"] for r in seeds) else "ended"
    plain = [r for r in seeds if r["policy"] == "nothing"]
    words += "*" * any(table.effect(r) == FINITE for r in plain)
    ink = ink_on(color)
    axis.text(x, y, words, ha="center", va="center", size=7, color=ink)


def _frame(axis: Axes, policy: str, detectors: list[str], rows: int) -> None:
    ours = policy in OURS
    axis.set(xlim=(-0.5, len(detectors) - 0.5), ylim=(rows - 0.5, -0.5), yticks=[])
    axis.set_title(
        POLICIES[policy][0], fontsize=10, fontweight="bold" if ours else "normal"
    )
    axis.set_xticks(range(len(detectors)), detectors, rotation=60, fontsize=8)
    for tick, name in zip(axis.get_xticklabels(), detectors):
        tick.set(ha="right", rotation_mode="anchor", text=name)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set(linewidth=2.0 if ours else 0.8)


def legend() -> list[Patch]:
    """What colours, hatching and words of a cell mean."""
    words = [f"{a:g} to {b:g}" for a, b in zip(STEPS, STEPS[1:])]
    words.append(f"{SAVED:g} and more: saved")
    steps = [
        Patch(facecolor=color, edgecolor="silver", label=word)
        for color, word in zip(COLORS, words)
    ]
    nothing = dict(facecolor="none", edgecolor="none")
    return [
        *steps,
        Patch(label="not run", **NOT_RUN),
        Patch(label="ended: by an error, each time", **nothing),
        Patch(label="*: ruined, with losses that are all finite", **nothing),
    ]
