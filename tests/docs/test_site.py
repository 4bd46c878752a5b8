"""The site is built in both languages without a warning, as `nox -s docs` does."""

import sys

import pytest

from tests import helpers, processes


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "zh_cn"])
def test_it_is_built_without_a_warning(tmp_path, language):
    docs = helpers.ROOT / "docs"
    options = ["-q", "-W", "--keep-going", "-c", docs, "-d", tmp_path / "doctrees"]
    processes.run(
        *[sys.executable, "-m", "sphinx", *options],
        *["-D", f"language={language}", docs / language, tmp_path / "site"],
    )
    reference = (tmp_path / "site/reference.html").read_text()
    assert "amp_hooks.RollbackHook" in reference
    assert "max_rollbacks" in reference
