"""The results of rescue_benchmark.py as Markdown tables."""

from __future__ import annotations

import math
from typing import Any, Dict

from rescue_cells import CLEAN, FAULTS, INJECTED, OURS, POLICIES, PRECISIONS

from amp_hooks.engine.command_line import markdown_table

SAVED = 0.95  # of the mAP of the clean runs

Result = Dict[str, Any]

# What a fault did to the run without hooks.
HARMLESS, RUINED, FINITE = "harmless", "ruined", "all finite"

PAGE = """\
# The rescue benchmark

Written by `python scripts/rescue_benchmark.py`, which says what its runs are. Made on
{about}.

Runs by what their fault did to the run without hooks of the same seed, and how many
of them ended at {saved:g} or more of the mAP of the clean runs without hooks, the mean
over the seeds, of the same detector and precision, that began with the same weights:

- *ruined*: it ended below that;
- *harmless*: it did not;
- *all finite*: it ended below that although no loss was NaN or infinite, and nothing of
  the kind was injected.

*finished*: all of these that did not end with an error. Then, of *ruined* and *all
finite*: *mAP*, the mean, in which a run that ended early is 0 and more than 1 is 1;
*lost*, iterations with a non-finite loss, a refused step (but not by a loss scale
being found), or undone; *time*, of a processor, over that of the clean run without
hooks; both are means of those that finished. *clean*: runs without a fault;
interventions are what amp_hooks' ledger has of vetoes, clamps switched on, rollbacks
and fallbacks.

<!-- summary -->

{summary}

<!-- runs -->

Every run: mAP over that of the clean ones, seed by seed, iterations lost and time
(means of the seeds), or where it ended. *foretold*: the first batch told pre-flight
that the logits of the classifier are far out. *called lost*: by the report.

<!-- cells -->

{cells}
"""


class Table:
    """The results, and what they are compared with.

    Args:
        results: Of all cells.
    """

    def __init__(self, results: list[Result]) -> None:
        self.results = results
        self._cells = {_key(r): r for r in results}
        self._clean: dict[tuple[Any, ...], list[Result]] = {}
        for r in results:
            if r["fault"] == CLEAN and r["policy"] == "nothing":
                self._clean.setdefault(_group(r), []).append(r)

    def ratio(self, result: Result) -> float | None:
        """Of the mAP to that of the clean runs; ``None`` if it ended early."""
        if result["map"] is None:
            return None
        maps = [r["map"] for r in self._clean[_group(result)]]
        clean = sum(maps) / len(maps)
        return float(result["map"] / clean) if clean else 0.0

    def share(self, result: Result) -> float:
        """The same, 0 for a run that ended early."""
        return self.ratio(result) or 0.0

    def time(self, result: Result) -> float:
        """Processor time over that of the clean runs without hooks."""
        times = [r["cpu"] for r in self._clean[_group(result)]]
        return float(result["cpu"] / (sum(times) / len(times)))

    def effect(self, result: Result) -> str:
        """What its fault did to the run without hooks."""
        if result["fault"] == CLEAN:
            return HARMLESS
        plain = self._cells.get(_key(dict(result, policy="nothing")))
        if plain is None:
            return RUINED
        if self.share(plain) >= SAVED:
            return HARMLESS
        injected = result["fault"] in INJECTED and result["fault"] != "spike"
        loud = injected or plain["bad"] > 0 or not plain["finished"]
        return RUINED if loud else FINITE

    def saved(self, result: Result) -> bool:
        """Whether it ended as well as without the fault."""
        return self.share(result) >= SAVED


def _key(result: Result) -> tuple[Any, ...]:
    names = ("detector", "fault", "policy", "precision", "seed", "long")
    return tuple(result[name] for name in names)


def _group(result: Result) -> tuple[Any, ...]:
    names = ("detector", "precision", "long")
    return (*(result[name] for name in names), result.get("begins"))


def comparable(results: list[Result]) -> list[Result]:
    """Those with a clean run without hooks that began with the same weights."""
    known = {
        _group(r) for r in results if r["fault"] == CLEAN and r["policy"] == "nothing"
    }
    return [r for r in results if _group(r) in known]


def markdown(results: list[Result], about: str) -> str:
    """The page: a summary, then every cell."""
    return PAGE.format(
        about=about, saved=SAVED, summary=summary(results), cells=every_cell(results)
    )


def summary(results: list[Result]) -> str:
    """A row for each policy, precision and length."""
    head = ["", "runs", RUINED, HARMLESS, FINITE, "finished", "mAP", "lost", "time"]
    rows = [[*head, "clean"]]
    table = Table(results)
    kinds = [
        (long, precision, policy)
        for long in (False, True)
        for precision in PRECISIONS
        for policy in POLICIES
    ]
    for kind in kinds:
        own = [r for r in results if (r["long"], r["precision"], r["policy"]) == kind]
        if own:
            rows.append(_row(table, own, *kind))
    return markdown_table(rows)


def _row(
    table: Table, own: list[Result], long: bool, precision: str, policy: str
) -> list[str]:
    clean = [r for r in own if r["fault"] == CLEAN]
    faulty = [r for r in own if r["fault"] != CLEAN]
    kinds = {
        kind: [r for r in faulty if table.effect(r) == kind]
        for kind in (RUINED, HARMLESS, FINITE)
    }
    harmed = kinds[RUINED] + kinds[FINITE]
    done = [r for r in harmed if r["finished"]]
    name = f"{POLICIES[policy][0]}, {PRECISIONS[precision]}"
    return [
        name + (f", {max(r['iters'] for r in own)} iterations" if long else ""),
        str(len(faulty)),
        *(
            f"{sum(map(table.saved, those))} of {len(those)}"
            for those in kinds.values()
        ),
        f"{sum(r['finished'] for r in faulty)} of {len(faulty)}",
        mean([min(table.share(r), 1.0) for r in harmed], ".2f"),
        mean([r["lost"] for r in done], ".0f"),
        mean([table.time(r) for r in done], ".2f"),
        f"{sum(len(r['actions']) for r in clean)} interventions, mAP "
        + mean([table.share(r) for r in clean], ".2f"),
    ]


def every_cell(results: list[Result]) -> str:
    """A row for each fault in each detector, a column for each policy."""
    table = Table(results)
    policies = [p for p in POLICIES if any(r["policy"] == p for r in results)]
    rows = [["fault", "precision", "detector", *(POLICIES[p][0] for p in policies)]]
    for (long, precision, fault, detector), own in by_row(results).items():
        effects = {table.effect(r): None for r in own if r["policy"] == "nothing"}
        did = "" if fault == CLEAN else f" ({', '.join(effects)})"
        row = [FAULTS.get(fault, "none") + (did if effects else "")]
        row += [PRECISIONS[precision] + " long" * long, detector]
        for policy in policies:
            row.append(cell_words(table, [r for r in own if r["policy"] == policy]))
        rows.append(row)
    return markdown_table(rows)


def by_row(results: list[Result]) -> dict[tuple[Any, ...], list[Result]]:
    """Results by length, precision, fault and detector, in the order of the tables."""
    places: list[list[Any]] = [[False, True], list(PRECISIONS), [CLEAN, *FAULTS]]
    rows: dict[tuple[Any, ...], list[Result]] = {}
    for r in sorted(
        results,
        key=lambda r: [
            place.index(r[name])
            for place, name in zip(places, ("long", "precision", "fault"))
        ],
    ):
        row = r["long"], r["precision"], r["fault"], r["detector"]
        rows.setdefault(row, []).append(r)
    return rows


def rounded_down(share: float) -> str:
    """To two places: 0.947 is not saved, and shall not look like 0.95."""
    return f"{math.floor(100 * share + 1e-6) / 100:.2f}"


def cell_words(table: Table, seeds: list[Result]) -> str:
    """Ratio of mAP, iterations lost, time over clean; of one cell's seeds."""
    if not seeds:
        return ""
    seeds = sorted(seeds, key=lambda r: r["seed"])
    ended = [r for r in seeds if not r["finished"]]
    done = [r for r in seeds if r["finished"]]
    words = []
    if done:
        words.append(" ".join(rounded_down(table.share(r)) for r in done))
        words.append(f"lost {mean([r['lost'] for r in done], '.0f')}")
        words.append(f"x{mean([table.time(r) for r in done], '.2f')}")
    words += [f"ended at {r['iters']} ({r['error'].split(':')[0]})" for r in ended]
    for what, those in (
        ("foretold", [r for r in seeds if foretold(r)]),
        ("called lost", [r for r in seeds if r.get("report") == "lost"]),
    ):
        if those:
            some = f" {len(those)} of {len(seeds)}" if len(those) < len(seeds) else ""
            words.append(what + some)
    return ", ".join(words)


def foretold(result: Result) -> bool:
    """Whether pre-flight has seen that the classifier is out of its mind."""
    return "large_logits" in result.get("foretold", [])


def mean(values: list[float], form: str) -> str:
    """``-`` of nothing."""
    return format(sum(values) / len(values), form) if values else "-"


def failures(results: list[Result]) -> list[str]:
    """What is promised of amp_hooks and not shown.

    A run whose beginning is ruined may be lost, if it is named before its first step
    and called lost in the end.
    """
    table = Table(results)
    broken = []
    for r in results:
        if r["policy"] not in OURS:
            continue
        name = f"{r['detector']}, {r['fault']}, {PRECISIONS[r['precision']]}"
        name += f", seed {r['seed']}" + ", long" * r["long"]
        if not r["finished"]:
            broken.append(f"{name}: did not finish: {r['error']}")
        elif not table.saved(r) and not (foretold(r) and r["report"] == "lost"):
            broken.append(
                f"{name}: mAP is {rounded_down(table.share(r))} of the clean runs'"
            )
        if r["fault"] == CLEAN and r["actions"]:
            broken.append(f"{name}: {len(r['actions'])} interventions")
    return broken
