"""The HTML page as a browser gets it: what it shows, and what it must never do."""

import base64
import hashlib
import re
import xml.etree.ElementTree as ET

import matplotlib
import pytest

from amp_hooks.report.cli import main

from ..made import (
    FORWARD,
    NAN,
    bad,
    curve,
    diverged,
    line,
    overflows,
    rollback,
    start_line,
    write,
)
from .test_pages import drawn_in, parse, svgs_of

# matplotlib 3.7 and 3.9 label others of the powers, 3.11 these.
NEW_TICKS = tuple(map(int, matplotlib.__version__.split(".")[:2])) >= (3, 11)
BEGAN, ENDED = "2026-03-01T10:00:00+00:00", "2026-03-01T12:30:00+00:00"


def story(folder=""):
    """400 iterations: calibration, three bad iterations, a rollback, the end."""
    looked_into = dict(folder=folder, kind="overflow", module="head", finding="Inf.")
    return [
        start_line(max_iters=400, time=BEGAN),
        *overflows(0),
        *bad(205, 206, 207, losses=dict(loss="nan", loss_cls="nan")),
        *([line(207, "forensics", FORWARD, **looked_into)] if folder else []),
        rollback(207),
        line(399, "end", time=ENDED),
    ]


def curves(**more):
    """A logged value every ten iterations; NaN where the means of the loss are so."""
    loss = [1.0] * 20 + [NAN] + [1.0] * 19
    return {
        "loss": curve(loss),
        "amp/scale_log2": curve([16.0] * 20 + [10.0] + [15.0] * 19),
        "time": curve([22.5] * 40),
        **more,
    }


def html_of(tmp_path, *arguments, status, **made):
    """The page of a run, by the command line."""
    work_dir = write(tmp_path / "work", **made)
    out = tmp_path / "report.html"
    assert main([str(work_dir), "--html", str(out), *arguments]) == status
    return out.read_text(encoding="utf-8")


def text_of(html):
    return " ".join(" ".join(parse(html).text).split())


EVIL = '\033[2J"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}$x^2$'


@pytest.mark.filterwarnings("error")
def test_nothing_in_the_files_becomes_markup(tmp_path):
    """Images, layers, loss terms, folders, arguments, errors and the config."""
    lines = [
        start_line(
            max_iters=400,
            time="9999-12-31T23:59:59+00:00",
            versions={EVIL: EVIL},
            hooks={EVIL: {}},
        ),
        *bad(5, losses={EVIL: "nan"}, layers=[EVIL]),
        line(5, "bad_batch", FORWARD, images=[EVIL], ids=[1], rank=0),
        line(5, "suspect", image=EVIL, id=1, iters=[2, 5]),
        line(6, "forensics", folder="javascript:alert(1)", finding=EVIL, module=EVIL),
        line(7, "unheard-of" + EVIL, what=EVIL),
        line(399, "abort", error=EVIL),
    ]
    shown = curves()
    loss = shown["loss"].values
    for name in (f"_loss{EVIL}", "loss -->", "loss_\u4e00"):
        shown[name] = curve([*loss[:20] * 100, *loss[20:]])
    config = f"optim_wrapper = dict(type={EVIL!r})\ncustom_hooks = [{EVIL!r}]\n"
    metrics = [(399, {f"{EVIL}/bbox_mAP": 0.5})]
    made = dict(lines=lines, curves=shown, config=config, validations=metrics)
    html = html_of(tmp_path, status=2, **made)
    page = parse(html)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert "alert(1)" in " ".join(page.text)
    assert not [link for link in page.links if "alert" in link]
    assert "49" not in re.findall(r"onerror=alert\(2\)&gt;(.{9})", html)
    for drawing in svgs_of(html):
        ET.fromstring(drawing)


def test_only_its_own_script_may_run(tmp_path):
    """A browser that knows the policy runs nothing else, and fetches nothing."""
    html = html_of(tmp_path, status=1, lines=story())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert "default-src 'none'" in policy
    script = re.search(r"<script>(.*)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_each_line_to_paste_has_a_button(tmp_path):
    html = html_of(tmp_path, status=1, lines=story(), curves=curves())
    buttons = re.findall(r'data-copy="([^"]*)"', html)
    pasted = re.findall(r'<pre id="(paste-\d+)"', html)
    assert pasted
    assert [b for b in buttons if b != "all"] == pasted
    assert ("all" in buttons) == (len(pasted) > 1)


def test_the_incident_is_enlarged_beside_the_whole_run(tmp_path):
    html = html_of(tmp_path, status=1, lines=story(), curves=curves())
    text = text_of(html)
    assert "The whole run: iterations 0 to 399" in text
    assert "The incident: iterations 155 to 257" in text  # 50 before to 50 after
    whole, enlarged = svgs_of(html)
    for label in ("not finite 205", "rollback 207"):
        assert label in drawn_in(whole)
        assert label in drawn_in(enlarged)
    ticks = {int(t) for t in re.findall(r"\b\d{3}\b", drawn_in(enlarged))}
    assert {160, 180, 200, 220, 240} <= ticks
    assert not {100, 300} & ticks
    heights = {re.search(r'height="([\d.]+)pt"', x)[1] for x in (whole, enlarged)}
    assert len(heights) == 1  # so that the rows of both stand side by side


def test_a_healthy_run_has_nothing_to_enlarge(tmp_path):
    lines = [start_line(max_iters=400), line(399, "end")]
    html = html_of(tmp_path, status=0, lines=lines, curves={"loss": curve([1.0] * 40)})
    assert len(svgs_of(html)) == 1
    assert "incident" not in text_of(html)


def test_of_many_incidents_the_first_and_the_last_are_enlarged(tmp_path):
    lines = [start_line(max_iters=5000)]
    for i in range(400, 4000, 400):
        lines += bad(i)
    html = html_of(tmp_path, status=1, lines=[*lines, line(4999, "end")])
    text = text_of(html)
    for span in ("350 to 450", "750 to 850", "1150 to 1250", "3550 to 3650"):
        assert f"incident: iterations {span}" in text
    assert len(svgs_of(html)) == 5


def test_a_divergence_is_enlarged_from_where_it_began(tmp_path):
    lines = [start_line(max_iters=1000), diverged(320, since=300)]
    lines += [rollback(320, verdict="DIVERGED"), line(999, "end")]
    html = html_of(tmp_path, status=1, lines=lines, curves={"loss": curve([1.0] * 100)})
    assert "The incident: iterations 250 to 370" in text_of(html)


def test_a_loss_scale_is_a_number(tmp_path):
    html = html_of(tmp_path, status=1, lines=story(), curves=curves())
    text = text_of(html)
    assert "log2" not in text
    assert ("65536" if NEW_TICKS else "32768") in drawn_in(svgs_of(html)[0])
    rows = re.findall(r"<tr>(<td>.*?)</tr>", html)
    assert any("<td>65536</td>" in row for row in rows)
    assert any("<td>1024</td>" in row for row in rows)


def test_a_loss_scale_of_0_is_0_and_at_the_edge_of_its_plot(tmp_path):
    scale = {"amp/scale_log2": curve([16.0] * 20 + [-149.0] * 20)}
    html = html_of(tmp_path, status=2, lines=story()[:2], curves=scale)
    assert '<td class="bad">0</td>' in html
    assert "beyond the axis" in text_of(html)


def test_only_the_bad_cell_is_marked(tmp_path):
    html = html_of(tmp_path, status=1, lines=story(), curves=curves())
    (row,) = [r for r in re.findall(r"<tr.*?</tr>", html) if "<td>200-224</td>" in r]
    assert "<tr>" in row
    cells = re.findall(r'<td(?: class="(bad)")?>([^<]*)</td>', row)
    # Loss, bad iterations and rollbacks; neither the scale nor the overflows.
    assert [text for is_bad, text in cells if is_bad] == ["3", "1"]


def test_what_happened_has_date_epoch_and_duration(tmp_path):
    epochs = curve([1 + i // 10 for i in range(40)])  # of 100 iterations
    html = html_of(tmp_path, status=1, lines=story(), curves=curves(epoch=epochs))
    rows = {
        cells[0]: cells
        for row in re.findall(r"<tr[^>]*>.*?</tr>", html, re.DOTALL)
        if (cells := re.findall(r"<td[^>]*>\s*(.*?)\s*</td>", row, re.DOTALL))
    }
    assert "when (UTC)" in text_of(html)
    assert rows["0"][1:3] == ["1", "2026-03-01 10:00:00"]
    assert rows["205 to 207"][1:3] == ["3", "2026-03-01 11:16:52"]
    assert rows["205 to 207"][-1] == "3 iterations, 1 min 8 s"
    assert rows["399"][-1] == "400 iterations, 2 h 30 min"
    assert "trained for 2 h 30 min" in text_of(html)


def test_a_divergence_lasts_until_it_is_over(tmp_path):
    """Not from its onset to when it was certain: to a rollback, or to the end."""
    ill = [start_line(max_iters=400), diverged(320, since=300)]

    def lasted(*lines):
        html = html_of(tmp_path, status=2, lines=[*ill, *lines], curves=curves())
        rows = re.findall(r"<tr[^>]*>.*?</tr>", html, re.DOTALL)
        (row,) = [row for row in rows if 'href="#iter-320"' in row or ">320<" in row]
        return row

    assert "100 iterations" in lasted(line(399, "end"))


def test_the_folder_of_an_incident_is_linked_where_it_lies_today(tmp_path):
    """The ledger has the path of the machine that trained."""
    folder = "/there/work/20260101_000000/faults/iter_207"
    work_dir = write(tmp_path / "run #1", lines=story(folder))
    out = tmp_path / "report.html"

    def links():
        assert main([str(work_dir), "--html", str(out)]) == 1
        found = parse(out.read_text(encoding="utf-8")).links
        return [link for link in found if not link.startswith("#")]

    assert links() == []
    (work_dir / "20260101_000000/faults/iter_207").mkdir(parents=True)
    assert links() == ["./run%20%231/20260101_000000/faults/iter_207/"]


@pytest.mark.parametrize(
    "folder",
    [
        "javascript:alert(1)",
        "https://example.com/20260101_000000/",
        "/there/20260101_000000/../../..",
        "file:///etc",
    ],
)
def test_no_link_leaves_the_run(tmp_path, folder):
    html = html_of(tmp_path, status=1, lines=story(folder))
    assert all(x.startswith(("#", "./work/")) for x in parse(html).links)


def test_labels_of_the_plots_lead_to_what_happened(tmp_path):
    html = html_of(tmp_path, status=1, lines=story(), curves=curves())
    found = re.findall(r'<tr id="(\w+)"', html)
    anchors = set(found)
    assert len(anchors) == len(found)
    links = {link for link in parse(html).links if link.startswith("#i")}
    assert {"#i205", "#i207"} & links
    assert {link[1:] for link in links} <= anchors


@pytest.mark.parametrize(
    ("term", "shown"),
    [
        ([0.1] * 20 + [1.0] * 20, True),  # it rises, where the loss does not
        ([0.0] * 20 + [1.0] * 20, True),  # no sample in the first half
        ([0.1] * 20 + [NAN] + [0.1] * 19, True),
        ([0.1, 0.12] * 20, False),
        ([0.1] * 19 + [10.0] + [0.1] * 20, False),  # a spike is in the loss as well
    ],
)
def test_loss_terms_are_shown_where_they_differ(tmp_path, term, shown):
    lines = [start_line(max_iters=400), line(399, "end")]
    logged = {
        "loss": curve([2.0] * 40),
        "loss_cls": curve([1.0] * 40),
        "loss_bbox": curve(term),
    }
    html = html_of(tmp_path, status=0, lines=lines, curves=logged)
    drawn = drawn_in(svgs_of(html)[0])
    assert ("loss_bbox" in drawn) == shown
    assert ("loss_cls" in drawn) == any(v != v for v in term)


def test_evaluations_come_first_and_have_their_numbers(tmp_path):
    values = [(99, 0.1), (199, 0.35), (299, 0.2), (399, 0.25)]
    metrics = [(i, {"coco/bbox_mAP": v}) for i, v in values]
    html = html_of(
        tmp_path, status=1, lines=story(), curves=curves(), validations=metrics
    )
    drawn = drawn_in(svgs_of(html)[0])
    assert drawn.index("coco/bbox_mAP") < drawn.index("loss")
    assert "0.350" in drawn  # the best one
    assert "0.250" in drawn  # the last one
    assert "last coco/bbox_mAP 0.250" in text_of(html)


def test_what_is_not_finite_is_marked_at_the_edge(tmp_path):
    infinite = curve([1.0] * 30 + [float("inf")] + [1.0] * 9)
    html = html_of(tmp_path, status=1, lines=story(), curves=curves(grad_norm=infinite))
    assert "beyond the axis: NaN, inf, or 0" in text_of(html)
    # The mark of the loss and that of the gradient norm are two shapes in vermilion.
    whole = svgs_of(html)[0]
    assert len(re.findall(r"<use [^>]*fill: var\(--vermilion\)", whole)) >= 2


def test_a_run_of_weeks_is_a_small_file_with_every_spike(tmp_path):
    spiked = [1.0] * 90_000
    spiked[54_321] = 1e6
    noisy = {
        name: curve([v + 0.1 * (i * 7919 % 13) for i, v in enumerate(spiked)], 1, 0)
        for name in ("loss", "loss_cls", "grad_norm", "lr", "amp/cls_score_absmax")
    }
    lines = [start_line(max_iters=90_000), line(89_999, "end")]
    html = html_of(tmp_path, status=0, lines=lines, curves=noisy)
    assert len(html) < 1_500_000
    assert ("1e6" if NEW_TICKS else "1e5") in drawn_in(svgs_of(html)[0])


def test_the_set_up_is_folded_and_the_config_without_what_is_private(tmp_path):
    config = (
        "optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(lr=0.02))\n"
        "visualizer = dict(vis_backends=[dict(init_kwargs=dict(key='secret'))])\n"
    )
    html = html_of(tmp_path, status=1, lines=story(), config=config)
    folded = html[html.index("<h2>What was active") :]
    assert "AmpOptimWrapper" in folded
    assert "secret" not in html
    before = html[: html.index("<h2>What was active")]
    assert before.rstrip().endswith("<details>\n<summary>")


def test_light_and_dark(tmp_path):
    html = html_of(tmp_path, status=1, lines=story(), curves=curves())
    assert "prefers-color-scheme: dark" in html
    assert 'id="theme"' in html
    # A drawing takes its colours from the style sheet, which has two of each.
    used = set(re.findall(r"var\(--([\w-]+)\)", "".join(svgs_of(html))))
    for name in used:
        assert len(re.findall(rf"--{name}: #", html)) == 3
    for drawing in svgs_of(html):
        assert not re.findall(r"#[0-9a-fA-F]{6}\b", drawing)


OKABE_ITO = {"#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7"}


def test_curves_and_marks_differ_for_those_who_see_few_colours(tmp_path):
    html = html_of(tmp_path, status=1, lines=story(), curves=curves())
    names = ("curve", "sky", "green", "orange", "vermilion", "purple")
    for theme in range(3):  # light, dark by the system, dark by the button
        of = [re.findall(rf"--{name}: (#\w+)", html)[theme] for name in names]
        assert set(of) == OKABE_ITO
