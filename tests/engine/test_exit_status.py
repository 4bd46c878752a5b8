"""What ended with an exit status, as raised and as the ledger has it."""

import pytest

from amp_hooks.engine.exit_status import from_text, is_failure


@pytest.mark.parametrize("code", [1, 127, -1 % 128, "loss is nan, stopping"])
def test_a_program_that_failed(code):
    assert is_failure(code)
    assert is_failure(from_text(str(SystemExit(code))))


@pytest.mark.parametrize("code", [0, 128, 143, -15])
def test_a_program_that_is_done_or_was_told_to_stop(code):
    assert not is_failure(code)
    assert not is_failure(from_text(str(SystemExit(code))))


def test_without_a_code():
    assert not is_failure(SystemExit().code)
    assert not is_failure(from_text(str(SystemExit())))
