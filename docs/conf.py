"""Sphinx's configuration of both languages; `nox -s docs` builds them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from amp_hooks.version import __version__ as release  # noqa: F401

project = "amp_hooks"
author = "amp_hooks contributors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
autodoc_typehints = "none"  # the docstrings give them
html_theme = "sphinx_rtd_theme"
html_theme_options = {"navigation_depth": 3}
html_show_copyright = False
myst_heading_anchors = 4
