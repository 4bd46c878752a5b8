"""Learning rates as evidence: by the schedule, whatever hooks did to them."""

import pytest

from amp_hooks.report.judge.incidents import find
from amp_hooks.report.judge.rates import bad_rates
from amp_hooks.report.read.history import Start, merge

from ..made import CONFIG, bad, curve, line, rollback, run, start_line

END = line(999, "end")
SUITE = start_line(hooks=["StabilityHook"])
RISES = [0.02 * min(1.0, (i + 1) / 500) for i in range(1000)]


def rates(lines, lr, start=SUITE):
    history = run([start, *lines, END], dict(lr=curve(lr, 1, 0)))
    return bad_rates(history, find(history))


def after_rollback(at, factor, again=100):
    """What is logged of a constant 0.02: lowered, after a warm-up of its own."""
    warm = [0.02 * factor * (k + 1) / again for k in range(again)]
    rest = [0.02 * factor] * (1000 - at - 1 - again)
    return [0.02] * (at + 1) + warm + rest


def test_after_a_rollback_every_later_rate_is_lower_and_that_is_no_evidence():
    found = rates([*bad(300, 301, 302), rollback(302)], after_rollback(302, 0.1))
    assert found.below == 0
    assert not found.telling
    assert found.changed
    assert found.lowest == pytest.approx(0.02)


def test_a_schedule_that_falls_is_evidence_also_after_a_rollback():
    """The lower half of the schedule held, at a factor that is not its doing."""
    lr = [0.02] * 303 + [0.002] * 97 + [0.0002] * 600
    lines = [*bad(100, 200, 300, 302), rollback(302)]
    start = start_line(hooks=["RollbackHook"])
    start["hooks"]["RollbackHook"] = dict(warmup_iters=0)
    found = rates(lines, lr, start)
    assert found.below == 600
    assert found.telling


def test_a_rate_that_rose_again_is_the_schedule_s():
    lr = after_rollback(302, 0.5)[:600] + [0.02] * 400
    lines = [*bad(300, 301, 302), rollback(302, 0.5)]
    found = rates([*lines, line(599, "recover", lr_factor=1.0)], lr)
    assert found.below == 0


@pytest.mark.parametrize(
    ("lines", "below"),
    [
        ([], 999 - 600),
        ([line(600, "clamp_on", reason="x")], 0),
        ([line(600, "clamp_on", reason="x"), line(800, "clamp_off")], 199),
        ([line(600, "fallback", to="bfloat16", reason="x")], 0),
        ([line(601, "replaced", images=["a.jpg"], total=1)], 0),
        (
            [
                line(600, "fallback", to="bfloat16", reason="x"),
                line(800, "fallback", to="float16"),
            ],
            199,
        ),
    ],
)
def test_what_a_clamp_or_another_precision_helped_through(lines, below):
    lr = [0.02] * 601 + [0.01] * 399
    assert rates([*bad(600), *lines], lr).below == below


@pytest.mark.parametrize(
    ("first", "second", "below"),
    [
        ("float16", "float16", 399),
        ("float16", "bfloat16", 0),
        ("float32", "float16", 0),
    ],
)
def test_a_start_in_another_precision_is_no_evidence(first, second, below):
    """Of a resume: it has nothing bad, at whatever learning rate."""

    def start(name, begins, half, lines):
        told = start_line(begins, optimizers=[f"optimizer: X, SGD, dtype {half}"])
        return Start(name, [told, *lines], dict(lr=curve(lr, 1, 0)), [], CONFIG)

    in_first = first != "float32"
    lr = [0.02] * 601 + [0.01] * 399 if in_first else [0.01] * 399 + [0.02] * 601
    at = 600
    lines = [bad(at), []] if in_first else [[], bad(at)]
    begins = 601 if in_first else 399
    history = merge(
        "work",
        [start("1", 0, first, lines[0]), start("2", begins, second, [*lines[1], END])],
    )
    assert bad_rates(history, find(history)).below == below


def test_between_a_jump_and_a_rollback_nobody_knows():
    """Logged every tenth time: the last rate before is of before the jump."""
    rates_logged = curve([0.1] * 6 + [10.0] * 94, 10, 9)
    lines = [SUITE, *bad(61, 62, 63), rollback(63), END]
    history = run(lines, dict(lr=rates_logged))
    assert bad_rates(history, find(history)) is None
    # Of those that are known, what is known.
    lines[1:1] = bad(30)
    known = bad_rates(*(lambda h: (h, find(h)))(run(lines, dict(lr=rates_logged))))
    assert (known.first, known.bad) == (pytest.approx(0.1), 1)


def test_without_a_ledger_the_scalar_tells():
    curves = {
        "loss": curve([1.0] * 30 + [float("nan")] + [1.0] * 69),
        "lr": curve([0.02] * 31 + [0.002] * 69),
        "amp/lr_factor": curve([1.0] * 31 + [0.1] * 69),
    }
    history = run([], curves)
    found = find(history)
    assert bad_rates(history, found) is None  # a printed mean is no iteration
    lines = [start_line(), *bad(305)]
    history = run(lines, curves)
    assert bad_rates(history, find(history)).below == 0


def test_nothing_done_about_it_is_as_it_was():
    found = rates(bad(700, 800), RISES)
    assert (found.below, found.changed) == (499, False)
