"""The terminal page in windows of any width, and in what is no window."""

import ast
import io
import sys

import numpy as np
import pytest

from amp_hooks.report.cli import main
from amp_hooks.report.read.curves import Curve
from amp_hooks.report.show.code_lines import broken
from amp_hooks.report.show.health import Quantity
from amp_hooks.report.show.spark import BARS, spark

from ..made import (
    CONFIG,
    bad,
    curve,
    diverged,
    line,
    overflows,
    rollback,
    start_line,
    write,
)

NAN = float("nan")


class Terminal(io.StringIO):
    """What a window is to a program."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def work_dir(tmp_path):
    """A run with every column of the table, and long paths of its images."""
    image = "data/a_folder_with_a_very_long_name_indeed/" * 3 + "1.jpg"
    lines = [
        start_line(max_iters=400),
        *overflows(0),
        *bad(205, 206, 207, losses=dict(loss="nan", loss_cls="nan")),
        line(207, "bad_batch", images=[image], ids=[1], rank=0),
        line(207, "suspect", image=image, id=1, iters=[205, 207]),
        rollback(207),
        diverged(320, since=300),
        rollback(320, verdict="DIVERGED"),
        line(399, "end"),
    ]
    loss = [1.0] * 20 + [NAN] + [1.0] * 19
    curves = {
        "loss": curve(loss),
        "lr": curve([0.000123] * 40),
        "grad_norm": curve([12345.0] * 40),
        "amp/health": curve([0.0] * 30 + [2.0] + [0.0] * 9),
        "amp/scale_log2": curve([16.0] * 20 + [-20.0] + [15.0] * 19),
        "amp/cls_score_absmax": curve([12345.0] * 40),
    }
    config = "\n".join(f"{name} = {value!r}" for name, value in CONFIG.items())
    return write(tmp_path / "work", lines, curves, config)


@pytest.mark.parametrize("width", [60, 88, 140])
def test_no_line_is_wider_than_the_window(work_dir, monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main([str(work_dir)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert max(map(len, lines)) > 0.8 * min(width, 120)
    assert any(x.split()[:2] == ["0-24", "1"] for x in lines)
    # What has no room is named, never cut.
    left_out = any("as well)" in x for x in lines)
    assert left_out == (width < 140)
    assert not any("…" in x for x in lines)


def test_a_window_gives_its_width(work_dir, monkeypatch):
    window = Terminal()
    monkeypatch.setattr(sys, "stdout", window)
    monkeypatch.setenv("COLUMNS", "70")  # what a shell tells of its window
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    main([str(work_dir)])
    assert max(map(len, window.getvalue().splitlines())) <= 70


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        (dict(TERM="xterm"), True),
        (dict(TERM="xterm", NO_COLOR="1"), False),
        (dict(TERM="dumb"), False),
    ],
)
def test_colours_are_for_windows_that_want_them(
    work_dir, monkeypatch, environment, coloured
):
    window = Terminal()
    monkeypatch.setattr(sys, "stdout", window)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    main([str(work_dir)])
    assert ("\033[" in window.getvalue()) == coloured


def test_a_file_gets_plain_text_of_88_columns(work_dir, monkeypatch, capsys):
    """Whatever the environment of a CI says of colours and terminals."""
    monkeypatch.delenv("COLUMNS", raising=False)
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1")
    main([str(work_dir)])
    text = capsys.readouterr().out
    assert "\033" not in text
    assert max(map(len, text.splitlines())) <= 88
    assert not any(line != line.rstrip() for line in text.splitlines())
    # One can grep for an event, and for its iteration.
    assert "\niteration 320: Diverged: loss 102" in text


def test_codes_in_the_files_are_not_obeyed(tmp_path, capsys):
    evil = "\033[2J\x9b31m\r\a.png"
    lines = [start_line(max_iters=9), *bad(5, losses={evil: "nan"})]
    lines.append(line(5, "suspect", image=evil, id=1, iters=[2, 5]))
    main([str(write(tmp_path / "work", lines))])
    text = capsys.readouterr().out
    assert "?[2J?31m??.png" in text
    assert not {"\033", "\x9b", "\r", "\a"} & set(text)


@pytest.mark.parametrize("columns", ["0", "", "wide", "-3"])
def test_nonsense_in_columns_is_no_width(work_dir, monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    main([str(work_dir)])
    assert max(map(len, capsys.readouterr().out.splitlines())) in range(80, 89)


def test_a_loss_scale_is_a_number(work_dir, capsys):
    main([str(work_dir)])
    text = capsys.readouterr().out
    assert "65536" in text
    assert "log2" not in text
    assert "9.54e-07 to 65536" in text


# --- sparklines -----------------------------------------------------------------------
def drawn(values, **about):
    about = dict(dict(worst=np.max), **about)
    values = np.array(values, dtype=float)
    quantity = Quantity("q", "u", "q", Curve(np.arange(len(values)), values), **about)
    return spark(quantity, BARS, len(values))


def test_one_outlier_does_not_flatten_the_rest():
    text = drawn([*range(1, 11), 1000, *range(1, 11)])
    assert text[10] == "█"
    assert len(set(text)) >= 5
    assert "█" not in text[:10] + text[11:]


def test_several_outliers_are_all_seen():
    values = [1.0, 1.1, 0.9, 1.2] * 10
    values[7], values[23] = 500.0, 90.0
    text = drawn(values, log=True)
    assert [i for i, bar in enumerate(text) if bar == "█"] == [7, 23]


def test_without_an_outlier_all_bars_are_used():
    assert set(drawn(range(40))) == set(BARS)


def test_what_was_lower_at_times_is_else_at_the_top():
    """A loss scale that has found its level, logits that are stuck at their worst."""
    values = [1.0] * 3 + [100.0] * 37
    assert drawn(values, log=True) == BARS[0] * 3 + BARS[-1] * 37


def test_what_is_flat_is_flat():
    assert set(drawn([3.0] * 20)) == {BARS[0]}
    assert set(drawn([3.0, 3.01] * 10)) < set(BARS[:4])


def test_not_finite_and_missing():
    text = drawn([1.0, NAN, 2.0, float("inf"), 3.0])
    assert text[1] == text[3] == "!"
    assert drawn([NAN, NAN]) == "!!"
    sparse = Curve(np.array([0, 1, 9]), np.array([1.0, 2.0, 3.0]))
    assert spark(Quantity("q", "u", "q", sparse, np.max), BARS, 3)[1] == " "


# --- lines to paste -------------------------------------------------------------------
@pytest.mark.parametrize("width", [30, 53, 81])
@pytest.mark.parametrize(
    "text",
    [
        "optim_wrapper = dict(optimizer=dict(lr=0.005, momentum=0.9), "
        "clip_grad=dict(max_norm=35, norm_type=2), type='AmpOptimWrapper')",
        "hooks = [dict(images=['a, b.jpg', 'c, (d).jpg'], also=[1, 2, 3, 4, 5, 6, 7])]",
        "dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=70),",
        "x = 1",
    ],
)
def test_broken_lines_are_the_same_python(text, width):
    lines = broken(text, width)
    assert ast.dump(ast.parse("\n".join(lines))) == ast.dump(ast.parse(text))
    assert max(map(len, lines)) <= width


def test_comments_stay_comments_and_other_lines_stay():
    comment = "# in custom_hooks, in place of the present StabilityHook, as before:"
    assert all(x.startswith("# ") for x in broken(comment, 30))
    assert broken("not ( python " * 9, 30) == ["not ( python " * 9]
