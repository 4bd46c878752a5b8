"""``python -m amp_hooks COMMAND``: the same programs, with the same exit status."""

import re

import pytest

from amp_hooks.cli import COMMANDS, main
from amp_hooks.engine.command_line import STATUSES
from amp_hooks.version import __version__
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


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"amp_hooks {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_every_exit_status(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert re.search(rf"^  amp-hooks {command}( |$)", text, re.MULTILINE)
    _, _, told = text.partition("exit status:\n")
    told = {int(number) for number in re.findall(r"^  (\d+) ", told, re.MULTILINE)}
    assert {0, 1, 64, 70} <= told <= set(STATUSES)


def test_help_tells_examples_and_the_one_table_of_exit_statuses(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  amp-hooks {command}" in text for command in COMMANDS)
    assert all(f"\n  {n:<3} {meaning}\n" in text for n, meaning in STATUSES.items())


def test_help_needs_no_training_stack():
    shown = processes.python("-X", "importtime", "-m", "amp_hooks", "--help")
    assert "report" in shown.stdout
    # Nested imports are indented.
    imported = {line.split("|")[-1].strip() for line in shown.stderr.splitlines()}
    assert "amp_hooks.cli" in imported
    assert not {"torch", "mmengine"} & imported


def test_the_page_has_the_same_table():
    page = (helpers.ROOT / "docs/en/commands.md").read_text()
    assert all(f"| {n} | {meaning} |\n" in page for n, meaning in STATUSES.items())
    assert all(f"| `amp-hooks {command}" in page for command in COMMANDS)
