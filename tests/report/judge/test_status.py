"""How a run ended, on hand-made runs: a case for each way to misjudge one."""

import pytest

from amp_hooks.report.judge.incidents import find
from amp_hooks.report.judge.status import Status, judge
from amp_hooks.report.read.history import Start, merge

from ..made import (
    CONFIG,
    NAN,
    bad,
    checkpoint,
    curve,
    diverged,
    ended_with,
    line,
    nan_term,
    overflows,
    rollback,
    run,
    start_line,
    watch,
    well,
    went_back,
)

HEALTHY, RECOVERED, LOST = Status
START, END = start_line(max_iters=100), line(99, "end")
FINE = dict(loss=curve([1.0] * 10))
ACCUMULATED = dict(CONFIG, optim_wrapper=dict(accumulative_counts=4))
ABORT = dict(rollbacks=1, limit="max_rollbacks=1", checkpoint="c.pth", lr_factor=0.1)


def scale(*log2, growth=0.0):
    return {
        **FINE,
        "amp/scale_log2": curve(log2),
        "amp/growth_tracker": curve([growth] * len(log2)),
    }


def health(*states):
    """Points at 9, 19, ..."""
    return {**FINE, "amp/health": curve(map(float, states))}


def val(*maps):
    return [(10 * i, {} if x is None else {"bbox_mAP": x}) for i, x in enumerate(maps)]


CASES = {
    # name: (status, run)
    "nothing happened": (HEALTHY, run([START, END], FINE)),
    "calibration and an ordinary overflow": (
        HEALTHY,
        run([START, *overflows(0, 1, 2), *overflows(70, skip="ordinary"), END], FINE),
    ),
    "still calibrating at the end": (
        HEALTHY,
        run([START, *overflows(*range(12))], scale(5, growth=0)),
    ),
    "an early warning alone": (
        HEALTHY,
        run([START, line(5, "early_warning", layer="fc"), END], FINE),
    ),
    "killed in health": (HEALTHY, run([START], FINE)),
    "stock in health": (HEALTHY, run([], FINE, ckpt=checkpoint([1.0] * 100))),
    "undertrained: mAP 0 from the beginning": (
        HEALTHY,
        run([START, END], FINE, validations=val(0.0, 0.0)),
    ),
    "static scale below 1": (HEALTHY, run([START, END], scale(-10, -10))),
    "one bad iteration": (RECOVERED, run([START, *bad(50), END], FINE)),
    "one bad iteration, the very last, undone": (
        RECOVERED,
        run([START, *bad(99), END], FINE),
    ),
    "one bad iteration, the very last, not undone": (
        LOST,
        run([START, *bad(99, vetoed=False), END], FINE),
    ),
    "the last three, undone": (LOST, run([START, *bad(97, 98, 99), END], FINE)),
    "the last three, rolled back at the last": (
        RECOVERED,
        run([START, *bad(97, 98, 99), rollback(99), END], FINE),
    ),
    "limping: 7 of the last 20": (
        LOST,
        run([START, *bad(*range(81, 99, 3), 98), END], FINE),
    ),
    "7 of 20 before a rollback": (
        RECOVERED,
        run([START, *bad(*range(81, 99, 3), 98), rollback(98), END], FINE),
    ),
    "raised": (RECOVERED, run([START, *bad(5, verdict="RAISED"), END], FINE)),
    "a clamp alone": (
        RECOVERED,
        run([START, line(5, "clamp_on", reason="large logits"), END], FINE),
    ),
    "fallback": (
        RECOVERED,
        run([START, line(5, "fallback", to="bfloat16", reason="x"), END], FINE),
    ),
    "a collapse that ended": (
        RECOVERED,
        run([START, *overflows(50, skip="collapse"), END], scale(0, 16, growth=9)),
    ),
    "a collapse of one of two optimizers": (
        RECOVERED,
        run([START, *overflows(50, skip=dict(a="ordinary", b="collapse")), END], FINE),
    ),
    "16 overflows in a row, without LossScaleMonitorHook": (
        RECOVERED,
        run([START, *overflows(*range(20, 36), skip=None), END], FINE),
    ),
    "overflow at a loss scale of 0": (
        RECOVERED,
        run([START, *overflows(20, skip=None, scale=0.0), END], FINE),
    ),
    "15 overflows in a row are calibration": (
        HEALTHY,
        run([START, *overflows(*range(20, 35), skip=None), END], FINE),
    ),
    "scale collapsed to the end": (LOST, run([START, END], scale(16, 3, -30))),
    "scale below 1 that bears clean steps": (
        HEALTHY,
        run([START, END], scale(16, -1, growth=50)),
    ),
    "scale collapsed, and FP16 was left": (
        RECOVERED,
        run(
            [START, line(30, "fallback", to="bfloat16", reason="x"), END],
            {**scale(16, -30), "amp/nonfinite": curve([0.0] * 9)},
        ),
    ),
    "the ledger is full, and then NaN to the end": (
        LOST,
        run(
            [START, line(60, "truncated", max_events=9)],
            dict(loss=curve([1.0] * 7 + [NAN] * 3)),
        ),
    ),
    "hooks, but the ledger is gone; NaN to the end": (
        LOST,
        run([], dict(scale(16, 16), loss=curve([1.0] * 7 + [NAN] * 3))),
    ),
    "abort": (LOST, run([START, *bad(3), line(3, "abort", **ABORT)], FINE)),
    "checkpoint not finite": (
        LOST,
        run([], FINE, ckpt=checkpoint([1.0] * 100, nonfinite=["bn.running_var"])),
    ),
    "mAP fell to 0": (LOST, run([], FINE, validations=val(0.3, 0.0, 0.0))),
    "mAP fell: nothing found any more": (
        LOST,
        run([], FINE, validations=val(0.3, None)),
    ),
    "mAP came back": (HEALTHY, run([], FINE, validations=val(0.3, 0.0, 0.2))),
    # Without our hooks: the loss of each iteration from the checkpoint ...
    "stock, NaN to the end": (
        LOST,
        run([], FINE, ckpt=checkpoint([1.0] * 50 + [NAN] * 50)),
    ),
    "stock, scale at 0": (
        LOST,
        run([], FINE, ckpt=checkpoint([1.0] * 100, scale=0.0)),
    ),
    "stock, one NaN that poisons the last printed mean": (
        RECOVERED,
        run([], dict(loss=curve([1.0] * 5 + [NAN] * 5)),
            ckpt=checkpoint([1.0] * 55 + [NAN] + [1.0] * 44)),
    ),
    # ... or only printed means of 50 iterations.
    "printed only, one NaN in the middle": (
        RECOVERED,
        run([], dict(loss=curve([1.0] * 4 + [NAN] * 5 + [1.0]))),
    ),
    "printed only, NaN at the end": (
        LOST,
        run([], dict(loss=curve([1.0] * 9 + [NAN]))),
    ),
    "hooks attached: a printed NaN says nothing that they do not": (
        RECOVERED,
        run([START, *bad(95), END], dict(loss=curve([1.0] * 9 + [NAN]))),
    ),
    "checkpoint, then printed means that its last NaN poisons": (
        RECOVERED,
        run([], dict(loss=curve([1.0] * 9 + [NAN])),
            ckpt=checkpoint([1.0] * 85 + [NAN] + [1.0] * 4)),
    ),
    # Finite, and ill.
    "watched, and well again": (
        HEALTHY,
        run([START, watch(52), well(80), END], health(0, 0, 0, 0, 0, 1, 1, 1, 0, 0)),
    ),
    "watched at the end": (HEALTHY, run([START, watch(95), END], health(*[0] * 9, 1))),
    "a term that is NaN and does no harm": (
        HEALTHY,
        run([START, nan_term(7, loss_mask="nan"), END], FINE),
    ),
    "such a term, and with it the logged loss": (
        HEALTHY,
        run([START, nan_term(70, loss_mask="nan"), END], FINE,
            ckpt=checkpoint([1.0] * 70 + [NAN] * 30)),
    ),
    "such a term, and before it a loss that nothing explains": (
        RECOVERED,
        run([START, nan_term(70, loss_mask="nan"), END], FINE,
            ckpt=checkpoint([1.0] * 60 + [NAN] + [1.0] * 9 + [NAN] * 30)),
    ),
    "such a term, and then the ledger is full": (
        LOST,
        run([START, nan_term(20, loss_mask="nan"), line(60, "truncated", max_events=9)],
            FINE, ckpt=checkpoint([1.0] * 70 + [NAN] * 30)),
    ),
    "diverged to the end": (LOST, run([START, diverged(69), END], FINE)),
    "diverged, and went back": (
        RECOVERED,
        run([START, diverged(69), went_back(69), END],
            health(0, 0, 0, 0, 0, 0, 2, 1, 0, 0)),
    ),
    "diverged, went back in the last iteration": (
        RECOVERED,
        run([START, diverged(99), went_back(99), END], health(*[0] * 9, 2)),
    ),
    "diverged, went back, and diverged again": (
        LOST,
        run([START, diverged(69), went_back(69), diverged(90), END], FINE),
    ),
    "diverged, and well by itself": (
        RECOVERED,
        run([START, diverged(69), well(95), END], health(*[0] * 6, 2, 2, 2, 2)),
    ),
    "another rank diverged": (
        RECOVERED,
        run([START, *bad(69, verdict="DIVERGED"), went_back(69), END], FINE),
    ),
    "ill at the end, by the scalar alone": (
        LOST,
        run([START, line(60, "truncated", max_events=9), END], health(*[0] * 9, 2)),
    ),
    "ill, and well at the end, by the scalar": (
        RECOVERED,
        run([START, diverged(50), line(60, "truncated", max_events=9), END],
            health(0, 0, 0, 0, 0, 2, 2, 0, 0, 0)),
    ),
    "ill at the end, without a ledger": (LOST, run([], health(0, 0, 2, 2))),
    "ill in between, without a ledger": (RECOVERED, run([], health(0, 2, 2, 0))),
    "rollbacks used up on divergence": (
        LOST,
        run([START, diverged(69), line(69, "abort", "DIVERGED", **ABORT)], FINE),
    ),
    # Exceptions that have nothing to do with numbers.
    "ended by an exception": (
        LOST,
        run([START, ended_with(50, "RuntimeError: CUDA out of memory")], FINE),
    ),
    "stopped by hand": (
        HEALTHY,
        run([START, ended_with(50, "KeyboardInterrupt")], FINE),
    ),
    "scalars without a ledger": (
        RECOVERED,
        run([], {**FINE, "amp/rollbacks_total": curve([0.0, 1.0])}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_status(name):
    expected, history = CASES[name]
    judged = judge(history, find(history))
    assert judged.status is expected, judged.reasons
    assert bool(judged.reasons) == (expected is not HEALTHY)


def two_starts(first, second):
    return merge(
        "work",
        [
            Start("20260101_000000", first, dict(FINE)),
            Start("20260102_000000", second, dict(loss=curve([1.0] * 10, first=59))),
        ],
    )


def test_what_a_kill_took_back_is_marked_and_not_the_end():
    first = [START, *bad(80, 81, 82, vetoed=False)]
    history = two_starts(first, [start_line(45), line(149, "end")])
    assert [h.lost for h in history.happenings] == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]
    found = find(history)
    assert not len(found.bad)
    assert found.lost_bad.tolist() == [80, 81, 82]
    assert judge(history, found).status is RECOVERED
    # The first start's points end where the second begins: 49 is gone.
    assert history.curves["loss"].iters.tolist() == [
        9, 19, 29, 39, 59, 69, 79, 89, 99, 109, 119, 129, 139, 149,
    ]  # fmt: skip


def test_a_state_found_broken_at_a_snapshot_counts():
    """RollbackHook goes back at once, without an overflow line."""
    history = run([START, rollback(50), END], FINE)
    assert find(history).streaks == [(50, 50)]


def test_given_up_and_then_resumed_with_success():
    first = [START, *bad(40), line(40, "abort", **ABORT)]
    history = two_starts(first, [start_line(30), line(149, "end")])
    assert judge(history, find(history)).status is RECOVERED


def test_a_training_that_began_anew_is_not_judged_by_the_one_before():
    first = [START, *bad(40), line(40, "abort", **ABORT)]
    history = two_starts(first, [start_line(0), line(149, "end")])
    assert judge(history, find(history)).status is HEALTHY
    assert [s.name for s in history.starts] == ["20260102_000000"]
    assert "1 earlier start in this folder" in history.notes[0]


def test_a_checkpoint_of_the_training_before_is_not_read():
    old = checkpoint([NAN] * 100, saved="20251231_000000")
    history = run([START, END], FINE, ckpt=old)
    assert history.checkpoint is None
    assert judge(history, find(history)).status is HEALTHY
    assert "before this training began" in history.notes[0]


def reasons(lines, curves=FINE):
    history = run([START, *lines], curves)
    return judge(history, find(history)).reasons


def test_a_run_that_is_ill_says_why():
    said = reasons([diverged(69), END])
    assert said == [
        "the run has diverged (iteration 69: loss 102 for 0.9 since iteration 61; the "
        "learning rate rose x30 there)"
    ]
    said = reasons([diverged(40), went_back(40), diverged(69), well(80), END])
    assert said[0].startswith("2 divergences (last iteration 69: loss 102 for 0.9")


def test_what_diverged_was_finite():
    """No iteration of it is bad, and none an ordinary overflow."""
    lines = [*bad(69, verdict="DIVERGED"), diverged(69), went_back(69), END]
    history = run([START, *lines], FINE)
    found = find(history)
    assert not len(found.bad)
    assert not len(found.overflows)
    assert not len(found.collapses)
    assert found.rollbacks.tolist() == [69]
    assert found.onsets == [61]
    assert found.healthy_since == 30
    assert not any("not finite" in reason for reason in reasons(lines))


def test_an_exception_is_named_and_no_divergence():
    (said,) = reasons([ended_with(50, "OSError: no space", "SCALE_OVERFLOW")])
    assert said == "training ended with OSError: no space (iteration 50)"
    nan = ended_with(50, "ValueError: matrix contains ...", "RAISED")
    (said,) = reasons([nan])
    assert "the training step raised because of NaN: ValueError" in said


@pytest.mark.parametrize(
    ("error", "lines", "by_numbers"),
    [
        ("FloatingPointError: Loss is nan", [], True),
        ("ValueError: (NaN)", [line(50, "forensics", "RAISED", finding="x")], True),
        ("ValueError: (NaN)", [line(49, "forensics", "RAISED", finding="x")], False),
        ("ValueError: shapes", [], False),
    ],
)
def test_what_nan_has_raised_is_no_exception_of_something_else(
    error, lines, by_numbers
):
    """Also where no hook is there that deals with it."""
    history = run([START, *lines, line(50, "abort", "HEALTHY", error=error)])
    judged = judge(history, find(history))
    assert judged.status is Status.LOST
    assert judged.by_numbers is by_numbers


@pytest.mark.parametrize(
    ("iterations", "lost", "healthy"),
    [
        ((60, 76), False, 24),
        ((84, 100), True, None),
        ((85, 100), False, 0),
        ((0, 100), False, 0),  # killed while it was calibrated
    ],
)
def test_a_scale_that_collapses_to_the_end(iterations, lost, healthy):
    """Above 1, where a floor or few steps have kept it."""
    row = range(*iterations)
    lines = overflows(*row[:-1]) + overflows(row[-1], skip="collapse")
    history = run([START, *lines, line(99, "end")], FINE)
    judged = judge(history, found := find(history))
    assert judged.status is (Status.LOST if lost else Status.RECOVERED)
    if lost:
        assert judged.reasons == [
            "from iteration 84 to the last one, 99, every step was skipped, for its "
            "gradients overflowed"
        ]
    if healthy is not None:
        assert found.healthy_since == healthy


@pytest.mark.parametrize(
    ("steps", "lost"),
    [
        (range(35, 100, 4), True),
        (range(35, 96, 4), False),  # the last step was taken
        (range(43, 100, 4), False),  # 15 of them
        ((*range(35, 60, 4), *range(64, 100, 4)), False),
        (range(3, 100, 4), False),  # all: it may have been calibrated
    ],
)
def test_a_collapse_to_the_end_where_gradients_accumulate(steps, lost):
    history = run([START, *overflows(*steps), line(99, "end")], FINE, ACCUMULATED)
    judged = judge(history, find(history))
    assert (judged.status is Status.LOST) == lost
    if lost:
        (reason,) = judged.reasons
        assert reason.startswith("from iteration 35 to the last one, 99, every step")


@pytest.mark.parametrize(
    ("error", "verdict", "status"),
    [
        ("SystemExit: 1", "FORWARD_NONFINITE", Status.LOST),
        ("SystemExit: 1", "RAISED", Status.LOST),
        ("SystemExit: 143", "HEALTHY", Status.HEALTHY),
        ("SystemExit: 143", "FORWARD_NONFINITE", Status.HEALTHY),
        ("SystemExit: 0", "FORWARD_NONFINITE", Status.HEALTHY),
        ("SystemExit", "FORWARD_NONFINITE", Status.HEALTHY),
        ("SystemExit: Loss is NaN", "FORWARD_NONFINITE", Status.LOST),
        ("KeyboardInterrupt", "FORWARD_NONFINITE", Status.HEALTHY),
    ],
)
def test_who_ended_it(error, verdict, status):
    """DETR's engine ends with sys.exit(1) where the loss is NaN."""
    history = run([START, line(50, "abort", verdict, error=error)], FINE)
    assert judge(history, find(history)).status is status


def test_an_illness_that_a_kill_took_back_is_none():
    first = [START, diverged(69)]
    history = two_starts(first, [start_line(50), line(149, "end")])
    assert find(history).divergences == []
    assert judge(history, find(history)).status is HEALTHY


def test_an_illness_that_was_resumed_is_the_same():
    first = [START, diverged(55, since=50)]
    second = [start_line(60), diverged(60), went_back(75), line(149, "end")]
    (illness,) = find(two_starts(first, second)).divergences
    assert (illness.since, illness.told, illness.until) == (50, 55, 75)
    assert illness.went_back


@pytest.mark.parametrize(
    ("findings", "losses", "metrics", "status"),
    [
        (["large_logits"], [10564.0] + [5.0] * 9, (), LOST),
        (["large_logits"], [10564.0] + [5.0] * 9, [(99, dict(mAP=0.004))], LOST),
        (["large_logits"], [10564.0] + [5.0] * 9, [(99, dict(mAP=0.4))], HEALTHY),
        (["large_logits"], [40.0] + [5.0] * 9, (), HEALTHY),
        (["large_logits"], [40.0] + [5.0] * 9, [(99, dict(mAP=0.004))], LOST),
        (["large_logits"], [20.0] + [5.0] * 9, [(99, dict(mAP=0.004))], HEALTHY),
        # The sub-metrics are larger by nature.
        (["large_logits"], [40.0] + [5.0] * 9, [(99, dict(mAP=0.018, AR=0.14))], LOST),
        (["large_logits"], [40.0] + [5.0] * 9, [(99, dict(mAP=0.05))], HEALTHY),
        (["warm_up"], [10564.0] + [5.0] * 9, (), HEALTHY),
    ],
)
def test_weights_that_were_broken_from_the_beginning(findings, losses, metrics, status):
    lines = [START, line(0, "preflight", findings=findings, fails=[]), END]
    history = run(lines, {"amp/loss": curve(losses)}, validations=metrics)
    judged = judge(history, find(history))
    assert judged.status is status
    if status is LOST:
        assert f"began with a loss of {losses[0]:.5g}" in judged.reasons[0]


@pytest.mark.parametrize(
    ("logits", "best", "status"),
    [
        # Faster R-CNN of the rescue benchmark, whose clean run reaches 0.56.
        ([1503.0] + [640.0] * 9, 0.158, LOST),
        ([1503.0] + [640.0] * 9, 0.6, HEALTHY),
        ([1503.0] + [12.0] * 9, 0.158, HEALTHY),
    ],
)
def test_a_head_that_never_came_back_is_lost_if_it_knows_little(logits, best, status):
    lines = [START, line(0, "preflight", findings=["large_logits"], fails=[]), END]
    scalars = {
        "amp/loss": curve([32.6] + [2.2] * 9),
        "amp/cls_score_absmax": curve(logits),
    }
    history = run(lines, scalars, validations=[(9, dict(mAP=best))])
    judged = judge(history, find(history))
    assert judged.status is status
    if status is LOST:
        assert "where they are to the end (640)" in judged.reasons[0]
