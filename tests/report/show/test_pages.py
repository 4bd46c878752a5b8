"""What the two pages look like."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from amp_hooks.engine.events import EVENTS
from amp_hooks.engine.verdict import Verdict
from amp_hooks.report.show.groups import group
from amp_hooks.report.show.html_page import render as render_html
from amp_hooks.report.show.page import make_page
from amp_hooks.report.show.terminal import render

from ..made import (
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

VOID = ("meta", "br")


class Checked(HTMLParser):
    """Collects links and text, and sees to it that elements are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open += [] if tag in VOID else [tag]
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(html):
    page = Checked()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def svgs_of(html):
    return re.findall(r"<svg.*?</svg>", html, re.DOTALL)


def drawn_in(svg):
    return " ".join(" ".join(ET.fromstring(svg).itertext()).split())


@pytest.mark.parametrize("name", ["healthy", "rescued", "lost", "stock"])
def test_one_file_that_fetches_nothing(page_of, name):
    html = render_html(page_of(name))
    page = parse(html)
    assert all(link.startswith("#") for link in page.links)
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert "@import" not in html
    assert all(url.startswith("#") for url in re.findall(r"url\(['\"]?([^)]*)", html))
    for drawing in svgs_of(html):
        assert ET.fromstring(drawing).tag.endswith("svg")
    assert len(html) < 1_000_000


def test_the_html_page_has_every_section_in_order(page_of):
    html = render_html(page_of("rescued"))
    text = " ".join(parse(html).text)
    titles = ["Recovered:", "Advice", "Health over time", "What happened"]
    titles += ["All events", "Likely causes", "What was active", "Of the config"]
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    drawn = drawn_in(svgs_of(html)[0])
    for title in (
        "loss",
        "loss scale",
        "largest |cls_score|",
        "gradient norm before clipping",
        "learning rate",
        "bad iterations, in each bar",
        "FP16 ends: 65504",
        "iteration (from 0)",
        "rollback 7",
        "clamp on 5",
        "not finite 5",
    ):
        assert title in drawn


def test_names_are_escaped():
    evil = "<script>alert(1)</script>&\udce9.png"
    lines = [*bad(5), line(5, "suspect", image=evil, id=1, iters=[2, 5])]
    page = make_page(run([start_line(), *lines]))
    html = render_html(page)
    assert parse(html).tags.count("script") == 1  # our own
    assert "&lt;script&gt;" in html
    html.encode("utf-8")
    assert "<script>" in render(page, "ascii")


def test_what_repeats_is_told_once():
    """14 overflows with their vetoes, then a rollback, then the same again."""
    vetoes = [line(i, "veto", "SCALE_OVERFLOW", scale=8.0) for i in range(3, 17)]
    pairs = [x for two in zip(overflows(*range(3, 17)), vetoes) for x in two]
    history = run([*pairs, rollback(17), *bad(18, 19, losses=dict(loss="nan"))])
    first, second, third = group(history.happenings)
    assert first.where == "iterations 3 to 16"
    assert first.text.startswith("14 times gradient overflow")
    assert "14 steps refused" in first.text
    assert second.text.startswith("Rollback 1")
    assert third.text.startswith("2 times the forward pass was not finite")


def test_long_runs_stay_readable_and_small():
    lines = [start_line(max_iters=10**6)]
    for i in range(0, 60_000, 20):
        lines += overflows(i) + bad(i + 10, losses=dict(loss="nan"))
    curves = {
        "loss": curve([1.0, NAN] * 25_000),
        "amp/scale_log2": curve([16.0, 3.0] * 25_000),
    }
    page = make_page(run(lines, curves))
    terminal = render(page)
    assert terminal.count("\n") < 200
    assert "more events; --html shows them" in terminal
    html = render_html(page)
    assert "more events in stability.jsonl" in html
    assert len(html) < 4_000_000


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_any_terminal(page_of, encoding):
    text = render(page_of("rescued"), encoding)
    text.encode(encoding)
    assert max(map(len, text.splitlines())) <= 88
    assert ("█" in text) == (encoding == "utf-8")


def test_colours_only_if_asked(page_of):
    assert "\033[1;33mRecovered:" in render(page_of("rescued"), colour=True)
    assert "\033" not in render(page_of("rescued"))


def test_a_run_that_has_not_ended_says_so():
    page = make_page(run([start_line(max_iters=500), *overflows(20)]))
    assert "It has not ended: 21 of 500 iterations are done" in page.sentence
    ended = make_page(run([start_line(max_iters=500), line(20, "end")]))
    assert "not ended" not in ended.sentence


@pytest.mark.parametrize("value", ["left out", None, "inf", 3])
def test_lines_without_their_fields_make_a_page(value):
    """Of another version, or damaged: a poorer page, and no error."""
    lines = []
    for verdict in Verdict:
        for i, (event, about) in enumerate(EVENTS.items()):
            fields = {} if value == "left out" else dict.fromkeys(about.fields, value)
            lines.append(line(i, event, verdict.value, **fields))
    page = make_page(run(lines))
    parse(render_html(page))
    assert render(page)


def test_next_to_nothing_is_still_a_page():
    page = make_page(run([start_line()]))
    assert page.sentence.startswith("Healthy: 0 iterations")
    parse(render_html(page))
    render(page)


LOSS = {
    "loss": curve([1.0] * 6 + [100.0] * 4),
    "amp/loss_low": curve([0.6] * 10),
    "amp/loss_high": curve([1.6] * 10),
    "amp/health": curve([0.0] * 6 + [1.0, 2.0, 2.0, 2.0]),
}
START, END = start_line(max_iters=100), line(99, "end")
NOTHING = "Nothing to change."


def test_a_run_that_is_ill_and_finite():
    page = make_page(run([START, watch(63), diverged(69), END], LOSS))
    assert page.sentence.startswith(
        "Lost: the run has diverged (iteration 69: loss 102"
    )
    html = render_html(page)
    text = " ".join(parse(html).text)
    assert "Watched: loss 3 for 0.9." in text
    assert "Diverged: loss 102 for 0.9 since iteration 61" in text
    drawn = drawn_in(svgs_of(html)[0])
    assert "loss, on its healthy range" in drawn
    assert "healthy watched ill" in drawn
    assert "diverged 69" in drawn
    assert "not finite in" not in text
    head, *rows = page.table()
    assert {row[head.index("not finite")] for row in rows} == {"0"}
    assert [s.ill for s in page.health] == [s.last >= 61 for s in page.health]
    assert NOTHING not in render(page)


def test_the_last_good_checkpoint_stands_on_a_line_of_its_own():
    """To be copied: no full stop behind it, nothing that breaks a long path."""
    path = f"/{'a_long_folder/' * 12}rollback/iter_50.pth"
    lines = [START, line(50, "snapshot", file=path), watch(63), diverged(69), END]
    page = make_page(run(lines, LOSS))
    assert path not in page.sentence
    assert f"\nLast good checkpoint:\n{path}\n" in render(page)
    assert f">{path}</pre>" in render_html(page)
    assert not make_page(run([START, *lines[1:2], END])).checkpoint


def test_a_run_that_went_back_and_is_healthy():
    curves = {**LOSS, "amp/health": curve([0.0] * 6 + [2.0, 1.0, 0.0, 0.0])}
    page = make_page(run([START, diverged(69), went_back(69), END], curves))
    assert page.sentence.startswith("Recovered: 1 divergence (iteration 69: loss 102")
    assert "1 rollback. The last 30 iterations were healthy." in page.sentence
    assert "Rollback 1: the run had left its healthy range" in render(page)


def test_what_passed_by_itself_is_shown_and_healthy():
    lines = [START, nan_term(7, loss_mask="nan"), watch(52), well(80), END]
    page = make_page(run(lines, dict(loss=LOSS["loss"])))
    assert page.sentence == (
        "Healthy: 100 iterations, nothing lost. Not finite and no harm: loss_mask. "
        + NOTHING
    )
    text = render(page)
    assert "loss_mask was not finite, but all gradients were finite." in text
    assert "iteration 52: Watched" in text
    assert "iteration 80: Healthy again by itself" in text


def test_health_has_no_plot_where_there_was_nothing_else():
    well_all_along = {**LOSS, "amp/health": curve([0.0] * 10)}
    assert "health" not in make_page(run([START, END], well_all_along)).table()[0]


def test_there_is_something_to_change_after_an_exception():
    error = "RuntimeError: CUDA out of memory"
    page = make_page(run([START, ended_with(50, error)]))
    assert page.sentence == f"Lost: training ended with {error} (iteration 50)."
    text = render(page)
    assert NOTHING not in text
    assert "iteration 50: Training ended with RuntimeError: CUDA out of memory." in text
    assert NOTHING not in render_html(page)


def test_stopped_by_hand_is_no_loss_and_no_end():
    page = make_page(run([START, ended_with(50, "KeyboardInterrupt")]))
    assert page.sentence == (
        "Healthy: 51 iterations, nothing lost. It has not ended: KeyboardInterrupt in "
        "iteration 50; 100 were planned."
    )


def test_a_part_that_failed_is_named_and_something_is_to_change():
    failed = line(
        12,
        "failure",
        part="HealthHook",
        where="after_train_iter (amp_hooks/health/health_hook.py:110)",
        error="KeyError: 'x'",
    )
    page = make_page(run([START, failed, END]))
    assert page.sentence.startswith("Healthy")
    assert "Failed, and off since: HealthHook (iteration 12)." in page.sentence
    assert "Nothing to change" not in page.sentence
    assert "goes on without it" in render(page, "utf-8", False)


def test_watched_at_the_end_says_so():
    page = make_page(run([START, watch(52), well(80), watch(95), END]))
    assert page.sentence == (
        "Healthy: 100 iterations, nothing lost. Watched at the end (iteration 95: loss "
        "3 for 0.9). Nothing to change."
    )


# --- where, and how many --------------------------------------------------------------
@pytest.mark.parametrize(
    ("iterations", "where", "told"),
    [
        ([19, 21], "iterations 19 and 21", "iterations 19 and 21"),
        ([19, 20, 21], "iterations 19 to 21", "iterations 19 to 21"),
        ([19], "iteration 19", "iteration 19"),
        (
            range(1000, 3001, 100),
            "21 iterations between 1000 and 3000",
            "between 1000 and 3000",
        ),
    ],
)
def test_iterations_are_those_that_were(iterations, where, told):
    """A span would claim all that lie between its ends."""
    history = run([start_line(max_iters=9999), *bad(*iterations, vetoed=False),
                   line(9998, "end")])  # fmt: skip
    _, group_, _ = group(history.happenings)
    assert group_.where == where
    assert f"not finite ({told})" in make_page(history).sentence


def test_a_full_ledger_says_what_is_missing():
    history = run([START, line(60, "truncated", max_events=9), END])
    _, full, _ = group(history.happenings)
    assert full.text.startswith("The ledger is full after 9 lines: from here on")
    page = make_page(history)
    assert any("full in iteration 60" in text for _, text in page.active)
    # Without its field, as an older or a damaged line has it, it is no bare word.
    _, bare, _ = group(run([START, line(60, "truncated"), END]).happenings)
    assert bare.text.startswith("The file is full")


def test_iterations_count_from_0_wherever_they_are_named():
    """A checkpoint counts those that are done, a schedule those that are planned."""
    page = make_page(run([], ckpt=checkpoint([1.0] * 100, nonfinite=["bn.bias"])))
    assert "newest checkpoint (written after iteration 99) not finite" in page.sentence
    page = make_page(run([], ckpt=checkpoint([1.0] * 100, scale=0.0)))
    assert "collapsed to 0 by iteration 99" in page.sentence
