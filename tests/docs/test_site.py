"""The site is built in both languages without a warning, as `nox -s docs` does."""

import html
import re
import sys

import pytest

from amp_hooks.config_check.check import RULES
from amp_hooks.data.coco_records import KINDS
from amp_hooks.engine.events import EVENTS
from amp_hooks.engine.verdict import Verdict
from amp_hooks.panel.scalars import SCALARS
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
    other = dict(en="zh_cn", zh_cn="en")[language]
    page = (tmp_path / "site/rollback.html").read_text()
    assert f'href="../{other}/rollback.html"' in page
    reference = (tmp_path / "site/reference.html").read_text()
    assert "amp_hooks.RollbackHook" in reference
    assert "max_rollbacks" in reference
    rows = {
        html.unescape(re.sub("<[^>]+>", "", cell)).strip()
        for cell in re.findall(r"<tr[^>]*>\s*(<td>.*?</td>)", reference, re.DOTALL)
    }
    assert {
        *EVENTS,
        *SCALARS,
        *Verdict,
        *KINDS,
        *(rule.__name__ for rule in RULES),
    } <= rows
