"""Lines of several findings, pasted below each other, do all that they say."""

import pytest

from amp_hooks.engine.finding import Finding, numbered
from amp_hooks.engine.paste import Paste
from amp_hooks.preflight.batch_rules import losses_differ


def pasted(cfg, *findings):
    return [
        Paste.lines(paste, i, f)
        for paste in [Paste(cfg, pure_python=False)]
        for i, f in enumerate(findings, 1)
    ]


def finding(lines="", **more):
    return Finding("name", "what", "remedy", lines, **more)


def test_a_name_that_was_spoken_of_is_said_again_whole():
    lines = ["a = dict(b=dict(c=1), d=2)", "e = True", "a = dict(b=dict(f=3), d=4)"]
    *_, last = pasted({}, *map(finding, lines))
    assert last == "# with what 1 said of it:\na = dict(b=dict(c=1, f=3), d=4)"


@pytest.mark.parametrize(
    "lines",
    [
        "a = dict(_delete_=True, b=1)",  # it replaces what was said
        "a = dict(b=...)",  # it cannot be completed
        "a = [dict(b=1)]",
        "dict(type='EMAHook', ...),",
        "# a note",
    ],
)
def test_what_cannot_be_merged_stays_as_it_is(lines):
    assert pasted({}, finding("a = dict(c=1)"), finding(lines))[1] == lines


CLAMP = dict(HeadClampHook=dict(when="always"))


@pytest.mark.parametrize(
    ("present", "line"),
    [
        (
            [],
            "# in custom_hooks:\ndict(type='amp_hooks.HeadClampHook', when='always'),",
        ),
        (
            [dict(type="amp_hooks.HeadClampHook", limit=50.0)],
            "# in custom_hooks, in place of the present HeadClampHook:\n"
            "dict(type='amp_hooks.HeadClampHook', limit=50.0, when='always'),",
        ),
        (
            [dict(type="StabilityHook", _scope_="amp_hooks")],
            "# in custom_hooks, in place of the present StabilityHook:\n"
            "dict(type='amp_hooks.StabilityHook', head_clamp=dict(when='always')),",
        ),
        (
            [
                dict(type="amp_hooks.StabilityHook", head_clamp=None),
                dict(type="amp_hooks.HeadClampHook", limit=50.0),
            ],
            "# in custom_hooks, in place of the present HeadClampHook:\n"
            "dict(type='amp_hooks.HeadClampHook', limit=50.0, when='always'),",
        ),
        (
            [dict(type="EMAHook"), dict(type="amp_hooks.StabilityHook", panel=None)],
            "# in custom_hooks, in place of the present StabilityHook:\n"
            "dict(type='amp_hooks.StabilityHook', panel=None, "
            "head_clamp=dict(when='always')),",
        ),
        (
            [dict(type="amp_hooks.suite.StabilityHook", head_clamp=None)],
            "# in custom_hooks, in place of the present StabilityHook:\n"
            "dict(type='amp_hooks.StabilityHook', head_clamp=dict(when='always')),",
        ),
    ],
)
def test_a_hook_is_there_once(present, line):
    cfg = dict(custom_hooks=present)
    assert pasted(cfg, finding(hooks=CLAMP)) == [line]


def test_a_hook_that_the_command_line_has_added_is_changed_where_it_is():
    suite = dict(type="amp_hooks.StabilityHook", panel=None)
    cfg = dict(default_hooks=dict(stability=suite, timer=None))
    assert pasted(cfg, finding(hooks=CLAMP)) == [
        "# in default_hooks, in place of the present stability:\n"
        "dict(type='amp_hooks.StabilityHook', panel=None, "
        "head_clamp=dict(when='always')),"
    ]


def test_two_members_of_the_suite_are_one_entry():
    cfg = dict(custom_hooks=[dict(type="amp_hooks.StabilityHook")])
    boxes = finding(hooks=dict(BoxSanityHook=dict(action="drop")))
    *_, last = pasted(cfg, finding(hooks=CLAMP), boxes).pop().splitlines()
    assert last == (
        "dict(type='amp_hooks.StabilityHook', head_clamp=dict(when='always'), "
        "boxes=dict(action='drop')),"
    )


def test_pre_flight_names_the_member_too():
    found = losses_differ(dict(loss=1.0), dict(loss=9.0), "float16")
    cfg = dict(custom_hooks=[dict(type="amp_hooks.StabilityHook")])
    text = numbered(found, Paste(cfg, pure_python=False).lines)
    assert "StabilityHook', head_clamp=dict(when='always'))" in text
    assert "amp_hooks.HeadClampHook'" not in text


def test_the_numbers_are_those_of_the_list():
    """What fails comes first, and the comments count as the reader does."""
    findings = [finding("a = dict(b=1)"), finding("a = dict(c=2)", fails=True)]
    text = numbered(findings, Paste({}, pure_python=False).lines)
    first, second = text.split("2. ")
    assert "a = dict(c=2)" in first
    assert "# with what 1 said of it:\n       a = dict(c=2, b=1)" in second
