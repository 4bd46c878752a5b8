"""The results of rescue_benchmark.py as Markdown tables and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compare_runs import show
from rescue_cells import CLEAN, FAULTS, FP32, INJECTED, POLICIES

SAVED = 0.95  # of the mAP of the clean FP32 run

Result = dict[str, Any]
Index = dict[tuple[str, str, str], Result]


# What a fault did to the run without hooks.
HARMLESS, RUINED, FINITE = "harmless", "ruined", "all finite"

PAGE = """\
# The rescue benchmark

Written by `python scripts/rescue_benchmark.py`, which says what its runs are. Made on
{about}.

Faults by what they did to the run without hooks, and how many of their runs ended at
{saved:g} or more of the mAP of the clean FP32 run of the same detector:

- *ruined*: it ended below that;
- *harmless*: it did not;
- *all finite*: it ended below that although no loss was NaN or infinite, and nothing of
  the kind was injected.

*finished*: all of these that did not end with an error. Then, of "ruined": *mAP*, the
mean, in which a run that ended early is 0 and more than 1 is 1; *lost*, iterations with
a non-finite loss, a refused step (but not by a loss scale being found), or undone;
*time*, of a processor, over that of the clean FP16 run without hooks; both are means of
those that finished. *clean*: runs without a fault; interventions are what amp_hooks'
ledger has of vetoes, clamps switched on, rollbacks and fallbacks.

{summary}

Every run: mAP, iterations lost and time, or where it ended.

{cells}
"""


def markdown(results: list[Result], about: str) -> str:
    """The page: a summary, then every cell."""
    return PAGE.format(
        about=about, saved=SAVED, summary=summary(results), cells=every_cell(results)
    )


def summary(results: list[Result]) -> str:
    """A row for each policy."""
    cells = index(results)
    head = ["", RUINED, HARMLESS, FINITE, "finished", "mAP", "lost", "time", "clean"]
    table = [head]
    for policy in used(results, 2, POLICIES):
        own = [r for r in results if r["policy"] == policy]
        clean = [r for r in own if r["fault"] == CLEAN]
        faulty = [r for r in own if r["fault"] != CLEAN]
        mine = {
            kind: [
                r for r in faulty if effect(cells, r["detector"], r["fault"]) == kind
            ]
            for kind in (RUINED, HARMLESS, FINITE)
        }
        ruined = mine[RUINED]
        done = [r for r in ruined if r["finished"]]
        table.append(
            [
                POLICIES[policy][0],
                *(
                    f"{sum(share(cells, r) >= SAVED for r in those)} of {len(those)}"
                    for those in mine.values()
                ),
                f"{sum(r['finished'] for r in faulty)} of {len(faulty)}",
                mean([min(share(cells, r), 1.0) for r in ruined], ".2f"),
                mean([r["lost"] for r in done], ".0f"),
                mean([time_of(cells, r) for r in done], ".2f"),
                f"{sum(len(r['actions']) for r in clean)} interventions, mAP "
                + mean([share(cells, r) for r in clean], ".2f"),
            ]
        )
    return show(table)


def every_cell(results: list[Result]) -> str:
    """A row for each fault in each detector, a column for each policy."""
    cells = index(results)
    policies = used(results, 2, POLICIES)
    table = [["fault", "detector", *(POLICIES[p][0] for p in policies)]]
    for fault in [CLEAN, *used(results, 1, FAULTS)]:
        for detector in dict.fromkeys(r["detector"] for r in results):
            row = [named(cells, detector, fault), detector]
            for policy in policies:
                result = cells.get((detector, fault, policy))
                row.append(cell_words(cells, result) if result else "")
            table.append(row)
    return show(table)


def cell_words(cells: Index, result: Result) -> str:
    """Ratio of mAP, iterations lost, time over clean."""
    if not result["finished"]:
        return f"ended at {result['iters']} ({result['error'].split(':')[0]})"
    text = f"{ratio(cells, result):.2f}, lost {result['lost']}, "
    return text + f"x{time_of(cells, result):.2f}"


def effect(cells: Index, detector: str, fault: str) -> str:
    """What a fault did to the run without hooks; none does no harm.

    What ruins a model with finite numbers is no matter of precision, and no reason for
    a rollback.
    """
    if fault == CLEAN:
        return HARMLESS
    plain = cells.get((detector, fault, "nothing"))
    if plain is None:
        return RUINED
    if share(cells, plain) >= SAVED:
        return HARMLESS
    loud = fault in INJECTED or plain["bad"] > 0 or not plain["finished"]
    return RUINED if loud else FINITE


def named(cells: Index, detector: str, fault: str) -> str:
    """A fault's name, and whether there was nothing that we promise to undo."""
    if fault == CLEAN:
        return "none"
    did = effect(cells, detector, fault)
    return FAULTS[fault] + (f" ({did})" if did != RUINED else "")


def index(results: list[Result]) -> Index:
    """By detector, fault and policy."""
    return {(r["detector"], r["fault"], r["policy"]): r for r in results}


def used(results: list[Result], place: int, names: Any) -> list[str]:
    """Those of ``names`` that occur, in its order."""
    found = {key[place] for key in index(results)}
    return [name for name in names if name in found]


def ratio(cells: Index, result: Result) -> float | None:
    """Of the mAP to that of the clean FP32 run; ``None`` for a run that ended early."""
    if result["map"] is None:
        return None
    clean = cells[(result["detector"], CLEAN, FP32)]["map"]
    return float(result["map"] / clean) if clean else 0.0


def share(cells: Index, result: Result) -> float:
    """The same, 0 for a run that ended early."""
    return ratio(cells, result) or 0.0


def time_of(cells: Index, result: Result) -> float:
    """Processor time over that of the clean FP16 run without hooks."""
    clean = cells.get((result["detector"], CLEAN, "nothing"), result)
    return float(result["cpu"] / clean["cpu"])


def mean(values: list[float], form: str) -> str:
    """``-`` of nothing."""
    return format(sum(values) / len(values), form) if values else "-"


def failures(results: list[Result]) -> list[str]:
    """What is promised of amp_hooks and not shown."""
    cells = index(results)
    broken = []
    for r in results:
        if r["policy"] != "ladder":
            continue
        if effect(cells, r["detector"], r["fault"]) == FINITE:
            continue
        name = f"{r['detector']}, {r['fault']}"
        if not r["finished"]:
            broken.append(f"{name}: did not finish: {r['error']}")
        elif share(cells, r) < SAVED:
            broken.append(f"{name}: mAP is {share(cells, r):.2f} of the clean run's")
        if r["fault"] == CLEAN and r["actions"]:
            broken.append(f"{name}: {len(r['actions'])} interventions")
    return broken


def plot(results: list[Result], path: Path) -> None:
    """A square for each cell, from lost to saved; grey if all was finite."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    cells = index(results)
    policies = used(results, 2, POLICIES)
    detectors = list(dict.fromkeys(r["detector"] for r in results))
    faults = [CLEAN, *used(results, 1, FAULTS)]
    figure, axes = plt.subplots(
        1,
        len(policies),
        sharey=True,
        squeeze=False,
        figsize=(
            1 + 0.55 * len(detectors) * len(policies) + 2.2,
            1.8 + 0.4 * len(faults),
        ),
        layout="constrained",
    )
    for axis, policy in zip(axes[0], policies):
        values = np.full((len(faults), len(detectors)), np.nan)
        for i, fault in enumerate(faults):
            for k, detector in enumerate(detectors):
                result = cells.get((detector, fault, policy))
                if result is None:
                    axis.text(k, i, "not run", ha="center", va="center", fontsize=5)
                    continue
                value = ratio(cells, result)
                label, color = "ended" if value is None else f"{value:.2f}", "black"
                if effect(cells, detector, fault) != FINITE:
                    values[i, k] = 0.0 if value is None else min(value, 1.0)
                    color = "black" if 0.2 < values[i, k] < 0.8 else "white"
                axis.text(k, i, label, ha="center", va="center", size=7, color=color)
        axis.set_facecolor("lightgrey")
        axis.imshow(values, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
        axis.set_title(POLICIES[policy][0], fontsize=9)
        axis.set_xticks(range(len(detectors)), detectors, rotation=60, fontsize=7)
        axis.set_yticks(
            range(len(faults)), [FAULTS.get(f, "none") for f in faults], fontsize=8
        )
    figure.suptitle("mAP over that of the clean FP32 run", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)
