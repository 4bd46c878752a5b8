"""Sphinx's configuration of both languages; `nox -s docs` builds them."""

import inspect
import sys
from pathlib import Path
from typing import Any, Optional, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from amp_hooks.version import __version__ as release  # noqa: F401

project = "amp_hooks"
author = "amp_hooks contributors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "code_tables",  # in this folder
]
autodoc_typehints = "none"  # the docstrings give them
highlight_language = "text"  # of blocks that name none: what commands print
html_theme = "sphinx_rtd_theme"
html_theme_options = {"navigation_depth": 3}
html_show_copyright = False
myst_heading_anchors = 4
html_static_path = ["_static"]
templates_path = ["_templates"]
html_css_files = ["site.css"]


def signature(
    app: Any, what: str, name: str, thing: Any, *about: Any
) -> Optional[Tuple[str, str]]:
    """Of a hook that of its ``__init__``: its ``__new__`` takes whatever comes."""
    if what != "class" or "Hook" not in name:
        return None
    own = inspect.signature(thing.__init__)
    parameters = [
        p.replace(annotation=p.empty) for n, p in own.parameters.items() if n != "self"
    ]
    return str(inspect.Signature(parameters)), ""


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", signature)
