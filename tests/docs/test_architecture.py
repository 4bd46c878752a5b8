"""docs/en/architecture.md names what there is."""

import ast
import re

from tests.helpers import ROOT

PACKAGE = ROOT / "amp_hooks"
PAGE = (ROOT / "docs/en/architecture.md").read_text()
QUOTED = re.findall(r"`([^`]+)`", PAGE)
PATHS = sorted({q for q in QUOTED if re.fullmatch(r"[\w/]+(/|\.py|\.cfg)", q)})
NAMES = sorted({q for q in QUOTED if re.fullmatch(r"[A-Za-z_][\w.]*", q)} - set(PATHS))


def defined():
    """Every class, function and method of the package, and names of its modules."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                yield node.name
                for child in node.body:
                    if isinstance(child, ast.FunctionDef):
                        yield f"{node.name}.{child.name}"


def test_every_path_is_there():
    assert [
        path
        for path in PATHS
        if not ((PACKAGE / path).exists() or (ROOT / path).exists())
    ] == []


def test_every_name_is_there():
    foreign = {"OptimWrapper.update_params", "amp_hooks.hooks.X", "last_checkpoint"}
    assert set(NAMES) - foreign <= set(defined())
    assert len(NAMES) > 20


def test_every_folder_is_told():
    folders = {p.parent.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py")}
    assert {f"{folder}/" for folder in folders - {"."}} <= set(PATHS)


def test_most_of_the_house_is_on_the_way_of_something():
    files = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py")}
    assert len(set(PATHS) & files) > 50
