"""setup_env.sh from its first line to its last, offline, and the GPU hidden by mmcv.

The environment that it makes is a new one that finds the packages of this one; the
wheel of mmcv that it takes from the cache is this environment's mmcv, packed again.
"""

import shutil
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata

import pytest
import torch

from tests.helpers import ROOT
from tests.machines import CUDA, Machine

HIDE = ". scripts/hide_gpu.sh; echo \"${CUDA_VISIBLE_DEVICES-unset} '$HIDDEN'\""


@pytest.mark.parametrize(
    ("card", "environ", "said", "sees"),
    [
        (True, {}, "the GPU is hidden", " 'CUDA_VISIBLE_DEVICES= '"),
        (False, {}, "none is used", "unset ''"),
        (True, dict(MMCV_BUILT_WITH=CUDA), "used: mmcv has operators", "unset ''"),
        (
            True,
            dict(MMCV_BUILT_WITH=CUDA, CUDA_VISIBLE_DEVICES=""),
            "none is visible",
            " ''",
        ),
    ],
)
def test_what_demo_and_tests_see(tmp_path, card, environ, said, sees):
    machine = Machine(tmp_path, card=card, **environ)
    done = machine.run("bash", "-ec", HIDE, cwd=ROOT, PY=sys.executable)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.rstrip("\n").split("\n")
    assert first.startswith("[gpu] ")
    assert said in first
    assert last == sees


def pack_mmcv(folder):
    """This environment's mmcv as a wheel."""
    folder.mkdir(parents=True)
    dist = metadata.distribution("mmcv")
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    name = f"mmcv-{dist.version}-{tag}-{tag}-linux_{sysconfig.get_platform()[6:]}.whl"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        for file in dist.files:
            path = dist.locate_file(file)
            if path.exists() and ".." not in file.parts and path.suffix != ".pyc":
                wheel.write(path, str(file))
    return folder / name


@pytest.fixture
def checkout(tmp_path):
    """With an environment that is empty, but for a path to the packages of this one."""
    checkout = tmp_path / "a checkout"
    checkout.mkdir()
    for name in ("amp_hooks", "scripts"):
        shutil.copytree(ROOT / name, checkout / name)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    venv.create(checkout / ".venv", symlinks=True)
    (site,) = (checkout / ".venv/lib").glob("python*/site-packages")
    (site / "here.pth").write_text(sysconfig.get_paths()["purelib"])
    return checkout


@pytest.mark.slow
def test_a_gpu_without_nvcc_from_the_first_line_to_the_last(tmp_path, checkout):
    pins = (ROOT / "scripts/constraints.txt").read_text()
    if f"torch=={torch.__version__.split('+')[0]}\n" not in pins:
        pytest.skip("these are not the packages that set-up installs")
    machine = Machine(tmp_path / "machine", sdist=tmp_path, PYTHON=sys.executable)
    wheels = tmp_path / "machine/cache/wheels" / f"torch-{torch.__version__}"
    # In the place of set-ups that knew no kinds, and of another kind: none is taken.
    kept = pack_mmcv(wheels / "cpu")
    for place in (wheels, wheels / "cuda-13.0-sm-9.0"):
        place.mkdir(exist_ok=True)
        (place / kept.name).write_text("of another kind")
    setup = ["bash", "scripts/setup_env.sh"]

    first = machine.run(*setup, cwd=checkout)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "mmcv 2.1.0: operators for the CPU (torch is built with CUDA" in first.stderr
    assert f"mmcv (from {kept})" in first.stdout
    assert "operators are for the CPU; the GPU is hidden from demo" in first.stdout
    assert first.stdout.rstrip().endswith("done")
    installed = checkout.glob(".venv/lib/python*/site-packages/mmcv/ops/nms.py")
    assert len(list(installed)) == 1

    again = machine.run(*setup, cwd=checkout)
    assert again.returncode == 0
    assert "environment is up to date" in again.stdout
    assert again.stdout.count("\n") == 1

    impossible = machine.run(*setup, cwd=checkout, AMP_HOOKS_CUDA="1")
    assert impossible.returncode == 1
    assert "AMP_HOOKS_CUDA=1, but torch is built with CUDA" in impossible.stderr
    assert "environment is up to date" in machine.run(*setup, cwd=checkout).stdout

    # The first that demo.sh runs sees no card, and no more does what test.sh runs.
    tell = (
        "import os; raise SystemExit(f'sees {os.environ[\"CUDA_VISIBLE_DEVICES\"]}.')"
    )
    (checkout / "scripts/make_digits.py").write_text(tell)
    ruff = checkout / ".venv/bin/ruff"
    ruff.unlink(missing_ok=True)
    ruff.write_text(f"#!{sys.executable}\n{tell}\n")
    ruff.chmod(0o755)
    for script in ("demo.sh", "test.sh"):
        done = machine.run("bash", f"scripts/{script}", cwd=checkout)
        assert "the GPU is hidden" in done.stdout
        assert done.stderr.rstrip().endswith("sees .")
