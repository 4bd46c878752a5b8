"""The report on runs that were trained: what it says, and its exit status."""

import pytest

from amp_hooks.report.cli import main
from amp_hooks.report.judge.status import Status
from amp_hooks.report.show.terminal import render
from tests import helpers, processes


def text_of(page):
    """The terminal page, with its line breaks undone."""
    return " ".join(render(page).split())


def section(text, title, after=None):
    part = text.split(title, 1)[1]
    return part.split(after, 1)[0] if after else part


def test_healthy(page_of):
    page = page_of("healthy")
    text = text_of(page)
    assert page.judged.status is Status.HEALTHY
    assert text.startswith("Healthy: 12 iterations, nothing lost. Nothing to change.")
    assert "RollbackHook(interval=4, probation=0)" in text
    assert "CpuAmpOptimWrapper, AdamW, dtype torch.float16" in text
    assert "2 samples in each of 1 process, cpu" in text
    assert "3 verified checkpoints" in section(text, "Events", "Likely causes")
    assert page.advice == []


def test_rescued(page_of):
    page = page_of("rescued")
    text = text_of(page)
    assert page.judged.status is Status.RECOVERED
    assert (
        "3 iterations not finite (iterations 5 to 7); 1 rollback; 1 head clamp." in text
    )
    assert "The last 4 iterations were healthy." in text
    assert "did damage on purpose (3 times)" in text
    first = "look at the data: what the model was given was not finite"
    assert f"First: {first}." in text
    events = section(text, "Events", "Likely causes")
    assert "iteration 5: The forward pass was not finite" in events
    assert "iteration 7: Rollback 1:" in events
    suspects = section(text, "Likely causes", "Advice")
    assert "none stands out among 6 images in bad iterations: none" in suspects
    assert "its logits were not finite in 3 iterations" in suspects
    # Those after the rollback were lower, which proves nothing.
    assert "bad ones down to 0.000997, the lowest of the schedule" in suspects
    # The learning rate did not do that.
    (advice,) = page.advice
    (evidence,) = advice.evidence
    assert evidence.startswith("iteration 5: NaN/Inf in the model's input: ")
    assert "/train/0000" in evidence
    assert "/faults/iter_5" in advice.change


def test_rescued_table_of_health(page_of):
    page = page_of("rescued")
    head, *rows = page.table()
    table = {row[0]: dict(zip(head, row)) for row in rows}
    assert list(table) == [str(i) for i in range(12)]
    assert [i for i, row in table.items() if row["not finite"] != "0"] == list("567")
    assert [i for i, row in table.items() if row["rollbacks"] != "0"] == ["7"]
    assert table["6"]["loss"] == "nan"
    assert float(table["11"]["lr"]) == pytest.approx(1e-4, rel=0.1)
    assert table["11"]["scale"] == "32768"


def test_pre_flight_and_report_give_one_learning_rate(page_of):
    page = page_of("hot")
    (line,) = [h.line for h in page.run.having("preflight")]
    assert "high_lr" in line["findings"]
    assert line["remedies"]["lr"] == 0.0025
    (lower,) = [a for a in page.advice if a.title.startswith("Lower")]
    assert lower.title == "Lower the learning rate, to x0.025 (0.1 to 0.0025)"


def test_lost(page_of):
    page = page_of("lost")
    text = text_of(page)
    assert page.judged.status is Status.LOST
    assert text.startswith("Lost: training ended after 1 rollback: weights, buffers")
    assert "max_rollbacks=1 allows no more" in text
    assert "rollback/iter_4.pth" in text.split("What was active")[0]
    assert "to x0.01 (0.001 to 1e-05)" in section(text, "Advice")
    assert "that did not hold" in section(text, "Advice")


def test_ended_by_an_exception(page_of):
    text = text_of(page_of("ended"))
    assert text.startswith(
        "Lost: training ended with ValueError: the disk is full (iteration 5)."
    )
    assert "Nothing to change" not in text
    assert "diverged" not in text


def test_ill_and_finite(page_of):
    page = page_of("ill")
    text = text_of(page)
    assert page.judged.status is Status.LOST
    assert text.startswith("Lost: the run has diverged (iteration ")
    assert {row[page.table()[0].index("not finite")] for row in page.table()[1:]} == {
        "0"
    }
    advice = section(text, "Advice")
    assert "Lower the learning rate, to x0.1 (0.001 to 0.0001)" in advice
    assert "1. Attach StepGuardHook and RollbackHook" in advice


def test_stock_run_without_any_of_our_hooks(page_of):
    page = page_of("stock")
    text = text_of(page)
    assert page.judged.status is Status.LOST
    assert "not finite: state_dict.backbone.conv1.weight" in text
    assert "from iteration 1 to the last one, 7, the run is not finite" in text
    assert "custom_hooks = [dict(type='amp_hooks.StabilityHook')]" in text
    assert "No ledger that can be read" in section(text, "Events", "Likely causes")
    assert "BF16" not in section(text, "Advice")  # it was FP32


def test_killed_and_resumed_is_one_run(page_of):
    page = page_of("resumed")
    text = text_of(page)
    assert page.judged.status is Status.RECOVERED
    assert "1 iteration not finite that a kill took back" in text
    assert "2 starts read as one" in text
    assert page.run.curves["loss"].iters.tolist() == list(range(14))
    lost = [(h.iter, h.event) for h in page.run.happenings if h.lost]
    assert (9, "overflow") in lost
    assert page.run.starts[1].begins == 8
    assert "iteration 9: Injected: images inf, inputs. (lost:" in text
    assert "Resumed, " in section(text, "Events", "Likely causes")


def test_tensorboard_only(page_of):
    page = page_of("tensorboard")
    assert page.judged.status is Status.HEALTHY
    assert page.run.curves["loss_cls"].iters.tolist() == [1, 3, 5]
    # The config is the one that MMEngine dumps into work_dir.
    assert "learning rate 0.001; schedule: CosineAnnealingLR" in text_of(page)


@pytest.mark.parametrize(("name", "status"), [("healthy", 0), ("rescued", 1)])
def test_exit_status(work_dirs, capsys, name, status):
    assert main([str(work_dirs(name))]) == status
    assert main([str(work_dirs(name)), "--no-checkpoint"]) == status


def call(*args, status, **env):
    strict = ["-W", "error::UserWarning", *args]
    return processes.python(*strict, status=status, text=False, cwd=helpers.ROOT, **env)


def test_as_a_program_on_a_terminal_that_knows_ascii_only(work_dirs):
    page = ["-m", "amp_hooks.report", work_dirs("lost")]
    done = call(*page, status=2, PYTHONIOENCODING="ascii")
    assert b"Error" not in done.stderr  # an older torch warns of its own
    assert b"Lost: " in done.stdout
    assert b"within +-100" in done.stdout
    assert b"\033" not in done.stdout  # no colour into a pipe


def test_the_command_is_the_same_program(work_dirs, tmp_path):
    out = tmp_path / "report.html"
    program = ["-m", "amp_hooks", "report", work_dirs("rescued"), "--html", out]
    call(*program, status=1)
    assert out.stat().st_size > 10_000


def test_wrong_arguments_are_none_of_the_three(capsys, tmp_path, work_dirs):
    for arguments in ([], ["--nonsense", "x"]):
        with pytest.raises(SystemExit) as e:
            main(arguments)
        assert e.value.code == 64
    capsys.readouterr()
    assert main([str(tmp_path)]) == 66
    assert str(tmp_path) in capsys.readouterr().err
    out = tmp_path / "missing" / "report.html"
    assert main([str(work_dirs("healthy")), "--html", str(out)]) == 73
    assert str(out) in capsys.readouterr().err


def test_a_failure_of_the_report_itself_is_no_verdict(monkeypatch, work_dirs, capsys):
    monkeypatch.setattr("amp_hooks.report.cli.make_page", lambda run: 1 / 0)
    assert main([str(work_dirs("healthy"))]) == 70
    assert "ZeroDivisionError" in capsys.readouterr().err
