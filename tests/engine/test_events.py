import pytest

from amp_hooks.engine.events import EVENTS, in_words
from amp_hooks.engine.words import reason


@pytest.mark.parametrize("event", EVENTS)
def test_a_line_that_is_cut_short_or_of_another_version_still_reads(event):
    assert in_words(dict(iter=3, event=event, verdict="HEALTHY", new_field=1))


def test_an_unknown_event_is_shown_as_it_is():
    assert in_words(dict(iter=1, event="new", verdict="HEALTHY", a=2)) == (
        "new: {'a': 2}"
    )


def test_a_rollback_in_plain_words():
    line = dict(
        iter=21,
        event="rollback",
        verdict="STATE_NONFINITE",
        target_iter=0,
        rollbacks=1,
        lr_factor=0.1,
        scale=32768.0,
        nonfinite_state=["backbone.bn1.running_var"],
    )
    assert in_words(line) == (
        "Rollback 1: weights, buffers, optimizer or EMA were not finite: "
        "backbone.bn1.running_var. Weights, optimizer, loss scale and EMA went back to "
        "iteration 0; learning rate now x0.1, loss scale 32768."
    )


def test_long_lists_are_cut():
    line = dict(verdict="GRAD_NONFINITE", nonfinite_grads=list("abcde"))
    assert reason(line).endswith("gradients of a, b, c and 2 more")


def test_the_way_there_and_back():
    there = dict(event="fallback", to="bfloat16", until=None, reason="2 rollbacks")
    assert in_words(there) == (
        "Training goes on in bfloat16 for good, because of 2 rollbacks."
    )
    assert in_words(dict(event="fallback", to="float16", until=None)) == (
        "Training is back in float16."
    )


@pytest.mark.parametrize(
    ("skip", "normal"),
    [
        ("calibration", True),
        (dict(generator="ordinary", discriminator="calibration"), True),
        (dict(generator="ordinary", discriminator="collapse"), False),
        ("collapse", False),
        ("forward", False),
        (None, False),  # of a static scale, and where nobody has looked
    ],
)
def test_which_overflows_are_normal(skip, normal):
    text = reason(dict(verdict="SCALE_OVERFLOW", skip=skip))
    assert text.startswith("gradient overflow")
    assert ("normal for a dynamic loss scale" in text) is normal
    text = reason(dict(verdict="FORWARD_NONFINITE", skip=skip))
    assert text == "the forward pass was not finite"
