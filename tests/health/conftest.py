"""Fixtures of the tests of health."""

import pytest

from tests import small


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The state of a model that has learned what it can."""
    runner = small.build(tmp_path_factory.mktemp("trained"), iters=300)
    runner.train()
    return runner.model.state_dict()
