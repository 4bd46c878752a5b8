"""The house: who imports whom, what is private, what is pure, how long files are."""

import ast
import configparser
import re
import sys

from importlinter import cli

from tests import processes
from tests.helpers import ROOT

PACKAGE = ROOT / "amp_hooks"
FILES = {
    path.relative_to(ROOT).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))
}
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def modules(section):
    return SETUP[f"importlinter:contract:{section}"]["source_modules"].split()


def tree(path):
    return ast.parse(path.read_text(), filename=str(path))


def test_contracts(monkeypatch, capsys):
    """Those of setup.cfg; the output names the arrow that broke one."""
    monkeypatch.syspath_prepend(str(ROOT))
    status = cli.lint_imports(str(ROOT / "setup.cfg"), no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_pure_modules_work_without_mmengine():
    """As they are: with torch and numpy, in a folder that is not the checkout."""
    names = modules("pure") + modules("numpy")
    assert len(names) > 40
    code = f"""
import sys, importlib
for name in ('mmengine', 'mmcv', 'mmdet', 'tensorboard'):
    sys.modules[name] = None
for name in {names}:
    importlib.import_module(name)
"""
    processes.code(code, cwd=ROOT.parent)


def test_pure_modules_import_what_they_may():
    """import-linter knows what is forbidden only; here is what is allowed."""
    # astunparse: ast.unparse for Python 3.8.
    allowed = {"amp_hooks", "astunparse", *sys.stdlib_module_names}
    for section, more in (("pure", "torch"), ("numpy", "numpy")):
        for name in modules(section):
            path = ROOT / f"{name.replace('.', '/')}.py"
            imported = {
                root
                for node in ast.walk(tree(path))
                for root in (
                    [alias.name.split(".")[0] for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [(node.module or "amp_hooks").split(".")[0]]
                    if isinstance(node, ast.ImportFrom) and not node.level
                    else []
                )
            }
            assert imported <= allowed | {more}, name


def test_pure_modules_are_those_that_mypy_holds_to_its_strict_rules():
    (strict,) = [s for s in SETUP.sections() if s.startswith("mypy-amp_hooks")]
    assert sorted(strict[len("mypy-") :].split(",")) == sorted(
        modules("pure") + modules("numpy")
    )


def test_a_report_and_its_help_need_no_training_stack(tmp_path):
    """Nor does the HTML page; a checkpoint does."""
    run = ROOT / "tests/data/run_0.1.0"
    code = f"""
import sys
from amp_hooks.report.cli import main
main([{str(run)!r}, '--no-checkpoint', '--html', {str(tmp_path / "r.html")!r}])
found = sorted({{'torch', 'mmengine', 'mmcv', 'mmdet'}} & set(sys.modules))
assert not found, found
try:
    main(['--help'])
except SystemExit as e:
    assert e.code == 0
assert 'torch' not in sys.modules
"""
    done = processes.code(code)
    assert "Recovered: 3 iterations not finite" in done.stdout
    assert "exit status" in done.stdout
    assert (tmp_path / "r.html").stat().st_size > 10_000


def test_files_are_of_one_idea():
    lengths = {name: len(p.read_text().splitlines()) for name, p in FILES.items()}
    assert {name: n for name, n in lengths.items() if n > 300} == {}
    assert sum(n < 200 for n in lengths.values()) > 0.75 * len(lengths)


# What takes long to import, and is needed for a part of the work only.
LATE = {
    "amp_hooks/__init__.py": {"import_module"},
    "amp_hooks/cli.py": {"import_module"},
    "amp_hooks/doctor/check_versions.py": {"import_module"},  # of others, if they load
    "amp_hooks/doctor/child.py": {"import_module"},
    "amp_hooks/doctor/cli.py": {"show"},  # there may be no rich
    "amp_hooks/engine/installed.py": {"import_module"},
    "amp_hooks/forensics/dump.py": {"import_module"},  # of what a batch is made of
    "amp_hooks/report/cli.py": {"show.html_page"},
    "amp_hooks/report/read/work_dir.py": {"checkpoint"},
}


def late_imports(path):
    """Modules of this package that are imported within a function."""
    for function in ast.walk(tree(path)):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.ImportFrom):
                name = node.module or ""
                if node.level or name.startswith("amp_hooks"):
                    yield name
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
                yield from (n for n in names if n.startswith("amp_hooks"))
            elif isinstance(node, ast.Name) and node.id == "import_module":
                yield node.id


def test_no_import_hides_in_a_function_because_that_one_imports_us():
    found = {name: set(late_imports(path)) for name, path in FILES.items()}
    assert {name: late for name, late in found.items() if late} == LATE


def private_names(path):
    """Attributes of others, imports and strings that begin with an underscore."""
    nodes = list(ast.walk(tree(path)))
    own = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    } | {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    for node in nodes:
        if isinstance(node, ast.Attribute):
            mine = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not (mine and node.attr in own):
                yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"\A_[a-z]\w+\Z", node.value)


ALLOWED = {
    # Keys of configs and of GradScaler's state dict, which are files' formats.
    "amp_hooks/config_check/old_keys.py": {"_delete_"},
    "amp_hooks/engine/config_syntax.py": {"_delete_"},
    "amp_hooks/engine/paste.py": {"_scope_"},
    "amp_hooks/guard/scale_policy.py": {"_growth_tracker"},
    "amp_hooks/report/read/checkpoint.py": {"_growth_tracker"},
    # Of the standard library.
    "amp_hooks/doctor/child.py": {"_asdict"},
    "amp_hooks/doctor/cli.py": {"_asdict"},
    "amp_hooks/engine/restricted_unpickler.py": {"_Unpickler"},
    "amp_hooks/engine/tensors.py": {"_fields"},
    "amp_hooks/forensics/first_operation.py": {"_getframe"},
    "amp_hooks/forensics/report.py": {"_asdict"},
    # Of the module's own classes.
    "amp_hooks/clamp/head_clamp_hook.py": {"_layers"},
    "amp_hooks/inject/fault_injection_hook.py": {"_stepping"},
    "amp_hooks/rollback/save_attempt.py": {"_thing", "_folder"},
}


def test_private_names_of_others_are_in_three_modules():
    """What an upgrade of MMEngine or torch can break is found in one place."""
    found = {
        name: {n for n in private_names(path) if re.match(r"_[^_]", n)}
        for name, path in FILES.items()
    }
    assert {"_inner_count", "_resume"} <= found.pop("amp_hooks/engine/private.py")
    assert {"_scale", "_foreach_norm"} <= found.pop("amp_hooks/engine/torch_api.py")
    assert {"_handle"} <= found.pop("amp_hooks/engine/torch_fsdp.py")
    assert {name: names for name, names in found.items() if names} == ALLOWED


def test_tests_are_a_mirror_of_the_folders():
    folders = {p.parent.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py")}
    for folder in folders:
        tests = ROOT / "tests" / folder
        assert list(tests.glob("test_*.py")), f"{tests} has no test"


def test_few_modules_lie_at_the_root():
    flat = {path.name for path in PACKAGE.glob("*.py")}
    assert flat == {
        "__init__.py",
        "__main__.py",
        "cli.py",
        "errors.py",
        "hooks.py",
        "members.py",
        "registry.py",
        "suite.py",
        "version.py",
    }
