"""What most tests here look at is gone after a good end."""

import pytest

from amp_hooks.rollback.disk import RollbackFiles

CLEAR = RollbackFiles.clear


@pytest.fixture(scope="package", autouse=True)
def _files_stay():
    """The auto-rollback checkpoints, as after a kill; test_good_end.py has the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RollbackFiles, "clear", lambda self, named: None)
        yield


@pytest.fixture
def good_end(monkeypatch):
    """They go, as in a run of users."""
    monkeypatch.setattr(RollbackFiles, "clear", CLEAR)
