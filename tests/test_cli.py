"""``python -m amp_hooks COMMAND``: the same programs, with the same exit status."""

import pytest

from amp_hooks.cli import COMMANDS, main
from tests import helpers, processes


def test_check_config_is_the_same_program(capsys):
    config = "configs/digits/faster-rcnn_r18_fpn_fp16_hot.py"
    assert main(["check-config", str(helpers.ROOT / config)]) == 1
    assert capsys.readouterr().out.startswith("1. optim_wrapper.optimizer.lr=0.15")


def test_report_is_the_same_program(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 66
    assert "holds no training run" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["repotr"]])
def test_what_is_no_command_is_an_error_of_use(arguments, capsys):
    assert main(arguments) == 64
    text = capsys.readouterr().err
    assert all(command in text for command in COMMANDS)
    assert (arguments or ["name a command"])[0] in text


def test_help_needs_no_training_stack():
    shown = processes.python("-X", "importtime", "-m", "amp_hooks", "--help")
    assert "report" in shown.stdout
    # Nested imports are indented.
    imported = {line.split("|")[-1].strip() for line in shown.stderr.splitlines()}
    assert "amp_hooks.cli" in imported
    assert not {"torch", "mmengine"} & imported
