"""What mmcv is built with, on machines of six kinds: mmcv's own setup.py is run.

The facts it is about: setup.py takes CUDA wherever torch sees a card, FORCE_CUDA=0 or
not, and then fails where there is no nvcc of torch's CUDA.
"""

import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.machines import CUDA, Machine, make_sdist

pytestmark = pytest.mark.slow

BUILD = ROOT / "scripts/mmcv_build.py"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return make_sdist(tmp_path_factory.mktemp("sdist") / "links")


@pytest.fixture
def machine(tmp_path, sdist):
    return lambda **kind: Machine(tmp_path / "machine", sdist=sdist, **kind)


def build(machine, **environ):
    """Build as a user's set-up does; the wheel, what it was built with, the output."""
    done = machine.python(BUILD, "--mmcv", "2.1.0", **environ)
    assert done.returncode == 0, done.stderr
    wheel = Path(done.stdout.strip())
    site = wheel.parent / "unpacked"
    zipfile.ZipFile(wheel).extractall(site)
    asked = machine.python(
        "-c",
        "import mmcv._ext; print(mmcv._ext.built())",
        cwd=site,
        PYTHONPATH=str(site),
        LD_LIBRARY_PATH=str(machine.home / "lib64"),
    )
    assert asked.returncode == 0, asked.stderr
    assert not list(wheel.parent.glob("building.*"))
    return wheel, asked.stdout.strip(), done.stderr


def pip_wheel(machine, folder, **environ):
    """The same without us: what set-up did before."""
    return machine.python(
        *["-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps"],
        *["--no-binary", "mmcv", "--no-cache-dir", "-w", folder, "mmcv==2.1.0"],
        MMCV_WITH_OPS="1",
        **environ,
    )


@pytest.mark.long
def test_a_gpu_without_nvcc(machine, tmp_path):
    here = machine()
    alone = pip_wheel(here, tmp_path, FORCE_CUDA="0", PATH="/usr/bin:/bin")
    assert alone.returncode != 0  # FORCE_CUDA=0 is ignored there
    wheel, built, said = build(here)
    assert built == "not available"
    assert wheel.parent.name == "cpu"
    assert "operators for the CPU" in said


@pytest.mark.long
def test_nvcc_of_another_major(machine, tmp_path):
    here = machine(cuda="98.6")
    alone = pip_wheel(here, tmp_path, FORCE_CUDA="0")
    assert (
        "mismatches the version that was used to compile" in alone.stdout + alone.stderr
    )
    _, built, said = build(here)
    assert built == "not available"
    assert f"torch is built with CUDA {CUDA} and nvcc is 98.6" in said
    assert not here.nvcc_calls()


@pytest.mark.long
def test_nvcc_that_fits_builds_for_this_card(machine):
    here = machine(cuda="99.0")
    wheel, built, said = build(here)
    assert built == "CUDA"
    assert wheel.parent.name == "cuda-99.0-sm-9.0"
    assert "operators for CUDA on sm 9.0" in said
    assert here.nvcc_calls()
    for call in here.nvcc_calls():  # several, where torch finds a ccache
        assert "arch=compute_90,code=sm_90" in call
        assert call.count("-gencode") == 1


@pytest.mark.long
def test_a_hidden_gpu(machine):
    here = machine(cuda="99.0", CUDA_VISIBLE_DEVICES="")
    _, built, said = build(here)
    assert built == "not available"
    assert "torch sees no GPU" in said
    assert not here.nvcc_calls()


@pytest.mark.long
def test_a_hidden_gpu_that_is_named(machine):
    here = machine(cuda="99.0", CUDA_VISIBLE_DEVICES="", AMP_HOOKS_CUDA="1")
    done = here.python(BUILD)
    assert done.returncode == 1
    assert "TORCH_CUDA_ARCH_LIST=8.6" in done.stderr
    wheel, built, _ = build(here, TORCH_CUDA_ARCH_LIST="8.0;8.6")
    assert built == "CUDA"
    assert wheel.parent.name == "cuda-99.0-sm-8.0_8.6"
    assert "arch=compute_80" in here.nvcc_calls()[0]


def test_no_gpu_and_what_a_user_left_in_the_environment(machine):
    _, built, said = build(machine(card=False, FORCE_CUDA="1", FORCE_NPU="1"))
    assert built == "not available"
    assert "2 C++ files compiled, 2 of them with torch's headers precompiled" in said


@pytest.mark.long
def test_a_kept_wheel_of_another_kind_is_not_taken(machine):
    here = machine(cuda="99.0")
    for_card, built, _ = build(here)
    assert built == "CUDA"
    calls = here.nvcc_calls()
    for_cpu, built, _ = build(here, AMP_HOOKS_CUDA="0")
    assert built == "not available"
    assert for_cpu != for_card
    again = here.python(BUILD)
    assert again.stdout.strip() == str(for_card)
    assert "built before" in again.stderr
    assert here.nvcc_calls() == calls


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        (dict(cuda="98.6"), "install CUDA toolkit 99 and name its folder: CUDA_HOME="),
        (dict(card=False), "install one with CUDA"),
    ],
)
def test_asked_for_what_cannot_be_done(machine, kind, remedy):
    done = machine(**kind).python(BUILD, AMP_HOOKS_CUDA="1")
    assert done.returncode == 1
    assert not done.stdout
    assert done.stderr.startswith("[mmcv] error: AMP_HOOKS_CUDA=1, but ")
    assert remedy in done.stderr


@pytest.mark.long
def test_cuda_that_does_not_compile(machine):
    """What fits by its number may not know the card: operators for the CPU then."""
    here = machine(cuda="99.0")
    nvcc = here.home / "bin/nvcc"
    nvcc.write_text(nvcc.read_text().replace("g++ -fPIC", "exit 1 #"))
    wheel, built, said = build(here)
    assert built == "not available"
    assert wheel.parent.name == "cpu"
    assert "operators for CUDA did not build" in said
    done = here.python(BUILD, AMP_HOOKS_CUDA="1")
    assert done.returncode == 1
    assert "whole log" in done.stderr


def test_without_a_compiler_it_says_what_to_install(machine):
    done = machine(card=False).python(BUILD, CXX="no-such-g++")
    assert done.returncode == 1
    assert "mmcv needs a C++ compiler, and no-such-g++ is not on PATH" in done.stderr


def test_an_interpreter_without_torch(machine, tmp_path):
    done = machine(card=False).python(BUILD, "--python", tmp_path / "python")
    assert done.returncode == 1
    assert "does not import torch" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_ccache_that_torch_finds_stays_out(machine, tmp_path):
    ccache = tmp_path / "bin/ccache"
    ccache.parent.mkdir()
    ccache.write_text("#!/bin/sh\nexit 1\n")
    ccache.chmod(0o755)
    here = machine(card=False)
    _, built, _ = build(here, PATH=f"{ccache.parent}:{here.environ['PATH']}")
    assert built == "not available"


@pytest.mark.skipif(sys.platform != "linux", reason="g++ by its name")
def test_folders_with_spaces_and_a_compiler_with_arguments(machine, tmp_path):
    here = machine(card=False, CXX="env LC_ALL=C g++")
    _, built, said = build(here, AMP_HOOKS_CACHE=str(tmp_path / "a cache"))
    assert built == "not available"
    assert "2 of them with torch's headers precompiled" in said


@pytest.mark.long
def test_without_ninja(machine, tmp_path):
    """In an environment whose programs have none, on a machine whose ninja fails."""
    venv.create(tmp_path / "env", symlinks=True)
    (site,) = (tmp_path / "env/lib").glob("python*/site-packages")
    (site / "here.pth").write_text(sysconfig.get_paths()["purelib"])
    ninja = tmp_path / "bin/ninja"
    ninja.parent.mkdir()
    ninja.write_text("#!/bin/sh\nexit 1\n")
    ninja.chmod(0o755)
    here = machine(card=False)
    path = f"{ninja.parent}:{here.environ['PATH']}"
    done = here.python(BUILD, "--python", tmp_path / "env/bin/python", PATH=path)
    assert done.returncode == 0, done.stderr
    assert "2 C++ files compiled, 2 of them with torch's headers" in done.stderr
    (log,) = Path(done.stdout.strip()).parent.glob("*.log")
    assert "could not find ninja" in log.read_text()
