"""The order of hooks: StabilityHook's table is what a real run has."""

import inspect
import re

import pytest
from mmengine.runner.priority import get_priority

import amp_hooks
from amp_hooks.engine.averaging import ema_hooks
from amp_hooks.registry import HOOKS
from tests import helpers

LISTED = [
    *helpers.SUITE,
    dict(type="amp_hooks.HealthHook"),
    dict(type="amp_hooks.PrecisionFallbackHook"),
    dict(type="amp_hooks.AmpPreflightHook"),
    helpers.fault("gradient", 10**6, where="bbox_head.retina_cls.weight"),
]
ONE_LINE = [dict(type="amp_hooks.StabilityHook"), LISTED[-1]]


def table():
    """``(priority, class name)`` of each row, in order."""
    text = inspect.getdoc(amp_hooks.StabilityHook)
    return [
        (int(priority), name)
        for priority, name in re.findall(r"^(\d+) +(\w+Hook)\b", text, re.MULTILINE)
    ]


def test_the_table_is_sorted_and_has_all_our_hooks():
    rows = table()
    assert [p for p, _ in rows] == sorted(p for p, _ in rows)
    names = [name for _, name in rows]
    assert len(names) == len(set(names))
    assert {n for n in amp_hooks.__all__ if n.endswith("Hook")} <= set(names)
    for priority, name in rows:
        if name in amp_hooks.__all__:
            assert get_priority(HOOKS.get(name).priority) == priority, name


@pytest.mark.parametrize(
    ("hooks", "ema"),
    [
        (LISTED, "NORMAL"),
        (LISTED[::-1], 49),  # as YOLOX and RTMDet have it
        (ONE_LINE, 49),
        (ONE_LINE[::-1], "NORMAL"),
    ],
    ids=["listed", "reversed", "one line", "one line, reversed"],
)
def test_a_real_run_has_the_order_of_the_table(build, hooks, ema):
    options = {"default_hooks.ema.priority": ema}
    runner = build("retinanet", iters=1, hooks=hooks, options=options)
    runner.train()
    priorities = {name: priority for priority, name in table()}
    assert priorities["EMAHook"] == 50
    priorities["EMAHook"] = get_priority(ema)
    order = [(type(h).__name__, get_priority(h.priority)) for h in runner.hooks]
    # FaultInjectionHook and RollbackHook have a second part, of the lowest priority.
    order = [(n, p) for n, p in order if not n.startswith("_Last")]
    assert dict(order) == {n: priorities[n] for n, _ in order}
    assert [p for _, p in order] == sorted(p for _, p in order)
    # Nothing of the table is missing but the other form's own entry.
    assert set(priorities) - {n for n, _ in order} <= {"StabilityHook"}


@pytest.mark.parametrize("hooks", [LISTED, ONE_LINE])
def test_an_ema_before_the_guard_keeps_its_place_and_is_served(build, hooks):
    """What it averages then is in tests/engine/test_averaging.py."""
    options = {"default_hooks.ema.priority": "HIGH"}
    runner = build("retinanet", iters=2, hooks=hooks, options=options)
    runner.train()
    order = [type(hook).__name__ for hook in runner.hooks]
    assert order.index("EMAHook") < order.index("StepGuardHook")
    (ema,) = ema_hooks(runner)
    assert ema.ema_model.steps == 2
