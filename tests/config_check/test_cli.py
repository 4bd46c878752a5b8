"""``amp-hooks check-config``: output and exit status."""

import pytest

from amp_hooks.config_check import check as config_check
from amp_hooks.config_check import cli
from tests import helpers, processes

HEALTHY = str(helpers.ROOT / "configs/digits/faster-rcnn_r18_fpn_fp16.py")
HOT = str(helpers.ROOT / "configs/digits/faster-rcnn_r18_fpn_fp16_hot.py")


def test_silence(capsys):
    assert cli.main([HEALTHY]) == 0
    assert capsys.readouterr().out == ""


def test_findings_as_the_page_shows_them(capsys):
    assert cli.main([HOT]) == 1
    shown = capsys.readouterr().out
    page = (helpers.ROOT / "docs/en/before_training.md").read_text()
    block = page.split("amp-hooks check-config CONFIG", 1)[1].split("```\n", 2)[2]
    assert shown.splitlines() == block.split("```")[0].splitlines()


def test_options_change_the_verdict(capsys):
    lr = "optim_wrapper.optimizer.lr=0.02"
    assert cli.main([HEALTHY, "--cfg-options", lr]) == 1
    assert "lr=0.02 for 4 images a step (1 process x 4)" in capsys.readouterr().out
    assert cli.main([HEALTHY, "--cfg-options", lr, "--gpus", "4"]) == 0
    assert cli.main([HEALTHY, "--cfg-options", "fp16.loss_scale=512.0"]) == 1
    assert "fp16=dict(loss_scale=512.0), which MMDetection 3.x" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 64, "the following arguments are required: CONFIG"),
        ([HEALTHY, "--gpus", "0"], 64, "--gpus: a whole number from 1 on, not '0'"),
        ([HEALTHY, "--gpus", "two"], 64, "--gpus: a whole number from 1 on, not 'two'"),
        ([HEALTHY, "--cfg-options", "foo"], 64, "--cfg-options foo is not KEY=VALUE"),
        ([HEALTHY, "--nonsense"], 64, "unrecognized arguments: --nonsense"),
        (
            [HEALTHY, "--cfg-options", "param_scheduler.7.end=3"],
            64,
            "--cfg-options {'param_scheduler.7.end': 3} do not fit the config",
        ),
        (["no_such.py"], 66, "config 'no_such.py' is not a file"),
        (
            [HEALTHY, "--resume", "no_such.pth"],
            66,
            "checkpoint 'no_such.pth': it does not exist",
        ),
        ([HEALTHY, "--resume", HOT], 66, "it cannot be loaded"),
    ],
)
def test_errors_of_use(arguments, status, says, capsys):
    try:
        code = cli.main(arguments)
    except SystemExit as e:
        code = e.code
    assert code == status
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""


def test_a_config_that_cannot_be_read(tmp_path, capsys):
    (tmp_path / "a.py").write_text("_base_ = './gone.py'\n")
    (tmp_path / "b.py").write_text("a = (\n")
    for name in ("a.py", "b.py"):
        assert cli.main([str(tmp_path / name)]) == 66
        assert f"{name}' cannot be read: " in capsys.readouterr().err


def test_a_bug_of_ours_is_not_a_finding(monkeypatch, capsys):
    monkeypatch.setattr(cli, "check", lambda cfg, facts: 1 / 0)
    assert cli.main([HEALTHY]) == 70
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_rule_that_fails_costs_itself_only(monkeypatch, capsys):
    def broken(cfg, facts):
        raise KeyError("x")

    monkeypatch.setattr(config_check, "RULES", (broken, *config_check.RULES))
    assert cli.main([HOT]) == 1
    shown = capsys.readouterr()
    assert "could not be checked for broken: KeyError('x')" in shown.err
    assert shown.out.startswith("1. optim_wrapper.optimizer.lr=0.15")


@pytest.mark.parametrize(
    "option",
    [
        "optim_wrapper.clip_grad=35",
        "optim_wrapper.accumulative_counts=None",
        "train_cfg.max_iters=many",
        "default_hooks.checkpoint.priority=None",
    ],
)
def test_values_of_odd_types(option, capsys):
    assert cli.main([HEALTHY, "--gpus", "1", "--cfg-options", option]) in (0, 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "line",
    ['custom_hooks = [dict(type="EMAHook", priority="ODD")]', "default_hooks = [1]"],
)
def test_what_the_runner_refuses_by_itself(tmp_path, line, capsys):
    config = tmp_path / "config.py"
    config.write_text(line + "\n")
    assert cli.main([str(config)]) in (0, 1)
    assert "Traceback" not in capsys.readouterr().err


def test_resume(build, tmp_path, capsys):
    runner = build(
        "retinanet",
        iters=2,
        work_dir=tmp_path / "w",
        options={"default_hooks.checkpoint.interval": 2},
    )
    runner.train()
    without = [HEALTHY, "--cfg-options", "default_hooks.ema=None"]
    assert cli.main(without) == 0
    assert cli.main([*without, "--resume", str(tmp_path / "w/iter_2.pth")]) == 1
    assert (
        "written with an EMAHook, and this config has none" in capsys.readouterr().out
    )
    where = ["--work-dir", str(tmp_path / "w"), "--resume"]
    assert cli.main([*without, *where]) == 1
    capsys.readouterr()
    assert cli.main([HEALTHY, *where]) == 0
    # Nothing to resume: the run begins at the beginning.
    assert cli.main([*without, "--work-dir", str(tmp_path / "none"), "--resume"]) == 0


def test_the_script():
    done = processes.fork("-m", "amp_hooks", "check-config", HOT, status=1)
    assert done.stdout.startswith("1. optim_wrapper.optimizer.lr=0.15 for 4 images")


# --- what is assumed, and the options of tools/train.py -------------------------------
@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("mine.py", [], "Checked for 1 GPU; --gpus N for another number."),
        ("mine_8xb4.py", [], "Checked for 8 GPUs, as the file's name tells; --gpus N"),
        ("mine_8x4.py", [], "Checked for 8 GPUs, as the file's name tells"),
        ("mine_8x5.py", [], "Checked for 1 GPU"),
        ("mine_8xb4.py", ["--gpus", "2"], ""),
    ],
)
def test_the_gpus_it_assumes_are_said(name, arguments, says, tmp_path, capsys):
    (tmp_path / name).write_text(f"_base_ = {HEALTHY!r}\n")
    assert cli.main([str(tmp_path / name), *arguments]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith(says)
    assert bool(shown.err) == bool(says)


def test_the_gpus_of_the_name_decide(tmp_path, capsys):
    text = f"_base_ = {HEALTHY!r}\noptim_wrapper = dict(optimizer=dict(lr=0.02))\n"
    for name, status in (("mine.py", 1), ("mine_4xb4.py", 0)):
        (tmp_path / name).write_text(text)
        assert cli.main([str(tmp_path / name)]) == status


FP32 = """
_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
"""


def test_amp_as_tools_train_has_it(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(f"{FP32}optim_wrapper = dict(loss_scale=512.0)\n")
    eight = [str(path), "--gpus", "8"]
    assert cli.main(eight) == 0
    assert cli.main([*eight, "--amp"]) == 1
    shown = capsys.readouterr().out
    assert "computes in float16 without clip_grad" in shown
    assert "is static" not in shown  # --amp makes it dynamic


def test_auto_scale_lr_as_tools_train_has_it(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(FP32)
    assert cli.main([str(path), "--gpus", "8", "--auto-scale-lr"]) == 1
    assert "auto_scale_lr.base_batch_size=16 was inherited" in capsys.readouterr().out
    assert cli.main([HEALTHY, "--gpus", "1", "--auto-scale-lr"]) in (0, 1, 64)


def test_auto_scale_lr_of_a_config_that_has_none(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("optim_wrapper = dict()\n")
    assert cli.main([str(path), "--auto-scale-lr"]) == 64
    assert "the config has no auto_scale_lr with enable" in capsys.readouterr().err
    path.write_text("a = 1\n")
    assert cli.main([str(path), "--amp"]) == 64


def test_lines_may_be_pasted_below_each_other(tmp_path, capsys):
    """Each line of optim_wrapper would take back the one before."""
    path = tmp_path / "mine.py"
    path.write_text(f"_base_ = {HOT!r}\noptim_wrapper = dict(clip_grad=None, "
                    "loss_scale=512.0)\n")  # fmt: skip
    assert cli.main([str(path), "--gpus", "1"]) == 1
    lines = [x.strip() for x in capsys.readouterr().out.splitlines()]
    pasted = [x for x in lines if x.startswith("optim_wrapper = ")]
    assert len(pasted) == 3
    assert "# with what 1 and 2 said of it:" in lines
    made = {}
    exec("\n".join(pasted), {}, made)
    assert made["optim_wrapper"] == dict(
        loss_scale="dynamic",
        clip_grad=dict(max_norm=35, norm_type=2),
        optimizer=dict(lr=0.005),
    )
