"""What was active in a run, as labelled lines."""

from __future__ import annotations

from typing import Any

from ...engine.words import count, without_prefix
from ..judge.incidents import Incidents
from ..judge.recipe import active_hooks, read_recipe
from ..read.history import RunHistory

ATTACH = "custom_hooks = [dict(type='amp_hooks.StabilityHook')]"


def describe(run: RunHistory, found: Incidents) -> list[tuple[str, str]]:
    """``(label, text)`` of everything that is known to have been active."""
    recipe, start_line = read_recipe(run), run.start_line or {}
    versions = start_line.get("versions")
    optimizers = start_line.get("optimizers")
    optimizers = optimizers if isinstance(optimizers, list) else []
    rows = [
        ("run", _starts(run, found)),
        ("hooks", _hooks(run)),
        *(("optimizer", without_prefix(str(o), "optimizer: ")) for o in optimizers),
    ]
    if recipe.known:
        if not start_line:
            clip = "none" if recipe.clip is None else f"{recipe.clip:g}"
            rows.append(
                ("optimizer", f"{recipe.wrapper}, {recipe.half}, clip_grad {clip}")
            )
        lr = "not in the config's optimizer" if recipe.lr is None else f"{recipe.lr:g}"
        rows += [
            ("learning rate", f"{lr}; schedule: {recipe.schedule}"),
            ("warm-up", _warmup(recipe.warmup)),
            ("EMA", "yes" if recipe.ema else "no"),
            (
                "data filter",
                f"filter_cfg {recipe.filter_cfg or 'none'}, FilterAnnotations "
                f"{'in' if recipe.box_filter else 'not in'} the training pipeline",
            ),
        ]
    if start_line:
        rows += [
            (
                "batch",
                f"{start_line.get('batch_size') or 'unknown'} samples in each of "
                f"{count(start_line.get('world_size') or 1, 'process', 'es')}, "
                f"{start_line.get('device')}",
            ),
        ]
    if isinstance(versions, dict):
        rows.append(("versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    rows += [
        (
            "note",
            f"the ledger was full in iteration {h.iter}: single overflows after it "
            "are not counted here",
        )
        for h in run.having("truncated")
    ]
    rows += [("note", note) for note in run.notes]
    return rows


def _warmup(iterations: float) -> str:
    if iterations == float("inf"):
        return "yes, counted in epochs"
    return f"{iterations:g} iterations" if iterations else "none"


def _starts(run: RunHistory, found: Incidents) -> str:
    names = [start.name for start in run.starts]
    text = f"{run.work_dir}: iterations {found.first} to {found.last}"
    if len(names) == 1:
        return f"{text}, one start ({names[0]})"
    again = ", ".join(f"{s.name} from iteration {s.begins}" for s in run.starts[1:])
    return f"{text}, {len(names)} starts read as one: {', '.join([*names[:1], again])}"


def _hooks(run: RunHistory) -> str:
    if not run.watched:
        return (
            "none of amp_hooks, so loss scale, logits and images are not known. To "
            f"attach them: {ATTACH}"
        )
    hooks = active_hooks(run)
    shown = ", ".join(f"{name}({_arguments(hooks[name])})" for name in hooks)
    first = next((s.start_line for s in run.starts if s.start_line), None)
    if first and run.start_line and first.get("hooks") != run.start_line.get("hooks"):
        shown += " (in the last start; others in the first)"
    return shown or "of amp_hooks, but neither ledger nor config names them"


def _arguments(arguments: Any) -> str:
    if not isinstance(arguments, dict):
        return ""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
