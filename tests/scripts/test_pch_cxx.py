"""The compiler that reads torch's headers once: real compilers, small files."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers import ROOT

PCH = ROOT / "scripts/pch_cxx.py"
NAME = "pytorch_cpp_helper.hpp"
HEADER = """#ifndef HELPER
#define HELPER
#include <vector>
#ifdef SEVEN
inline int number() { return 7; }
#else
inline int number() { return 8; }
#endif
#endif
"""


@pytest.fixture(params=["g++", "clang++"])
def compiler(request):
    if not shutil.which(request.param):
        pytest.skip(f"no {request.param} here")
    return request.param


@pytest.fixture
def folder(tmp_path):
    """With a space in its name, as homes have."""
    folder = tmp_path / "a project"
    (folder / "include").mkdir(parents=True)
    (folder / "state").mkdir()
    (folder / "include" / NAME).write_text(HEADER)
    for number in range(4):
        text = f'#include "{NAME}"\nint f{number}() {{ return number(); }}\n'
        (folder / f"f{number}.cpp").write_text(text)
    return folder


def start(folder, compiler, *arguments):
    """Call the wrapper as a build does."""
    command = [sys.executable, "-I", "-S", PCH, folder / "state"]
    command += [*compiler.split(), "--", *arguments]
    return subprocess.Popen(
        list(map(str, command)), cwd=folder, stderr=subprocess.PIPE, text=True
    )


def compile_file(folder, compiler, number, *flags):
    """To an object with a list of what it depends on, with torch's kind of flags."""
    name = f"f{number}"
    own = ["-MMD", "-MF", f"{name}.o.d", "-c", f"{name}.cpp", "-o", f"{name}.o"]
    return start(folder, compiler, *own, "-g", "-O2", "-fPIC", "-Iinclude", *flags)


def finish(running):
    """Its exit status and what it said."""
    said = running.communicate(timeout=300)[1]
    return running.returncode, said


def compiled(folder):
    """How many files went which way."""
    record = folder / "state/compiled"
    how = record.read_text() if record.exists() else ""
    return how.count("precompiled "), how.count("plain ")


def test_files_at_once_take_one_precompiled_header(folder, compiler):
    running = [compile_file(folder, compiler, number) for number in range(4)]
    assert [finish(process)[0] for process in running] == [0] * 4
    assert compiled(folder) == (4, 0)
    assert len(list(folder.glob(f"state/*/{NAME}.gch"))) == 1
    assert NAME in (folder / "f0.o.d").read_text()
    # They link to something that works, by the same program.
    (folder / "main.cpp").write_text(
        "int f0(); int f3(); int main() { return f0() + f3() != 16; }"
    )
    objects = ["main.cpp", "f0.o", "f3.o", "-o", "main"]
    assert finish(start(folder, compiler, *objects))[0] == 0
    assert subprocess.run([folder / "main"]).returncode == 0


def test_other_flags_have_a_header_of_their_own(folder, compiler):
    assert finish(compile_file(folder, compiler, 0))[0] == 0
    assert finish(compile_file(folder, compiler, 1, "-DSEVEN"))[0] == 0
    assert compiled(folder) == (2, 0)
    (folder / "main.cpp").write_text(
        "int f0(); int f1(); int main() { return f0() * 10 + f1() != 87; }"
    )
    objects = ["main.cpp", "f0.o", "f1.o", "-o", "main"]
    assert finish(start(folder, compiler, *objects))[0] == 0
    assert subprocess.run([folder / "main"]).returncode == 0


def test_a_header_that_is_refused_costs_speed_only(folder, compiler):
    assert finish(compile_file(folder, compiler, 0))[0] == 0
    (made,) = folder.glob(f"state/*/{NAME}.gch")
    made.write_bytes(b"of another compiler" * 1000)
    for number in (1, 2):
        assert finish(compile_file(folder, compiler, number))[0] == 0
        assert (folder / f"f{number}.o").exists()
    assert compiled(folder) == (1, 2)


def test_a_header_that_cannot_be_precompiled(folder, compiler):
    """Such as one that is right only where it is included."""
    (folder / "include" / NAME).write_text("#ifndef READY\n#error\n#endif\n" + HEADER)
    source = folder / "f0.cpp"
    source.write_text("#define READY\n" + source.read_text())
    assert finish(compile_file(folder, compiler, 0))[0] == 0
    assert compiled(folder) == (0, 1)


def test_an_error_in_a_file_is_told_as_ever(folder, compiler):
    (folder / "f0.cpp").write_text(f'#include "{NAME}"\nint f0() {{ return nothing; }}')
    status, said = finish(compile_file(folder, compiler, 0))
    assert status != 0
    assert "nothing" in said
    assert compiled(folder) == (0, 0)


@pytest.mark.skipif(not shutil.which("ccache"), reason="no ccache here")
def test_ccache(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CCACHE_DIR", str(tmp_path / "ccache"))
    for number in range(2):
        assert finish(compile_file(folder, "ccache g++", number))[0] == 0
    assert sum(compiled(folder)) == 2


@pytest.mark.long
@pytest.mark.slow
def test_mmcv_itself(tmp_path):
    """Files of mmcv against this torch: its real header, and what setup.py passes."""
    from torch.utils.cpp_extension import include_paths

    csrc = Path(find_spec("mmcv").origin).parent / "ops/csrc"
    if not (csrc / "common" / NAME).exists():
        pytest.skip("this mmcv came without its sources")
    (tmp_path / "state").mkdir()
    flags = ["-O2", "-fPIC", "-std=c++17", f"-I{csrc / 'common'}"]
    flags += [f"-I{path}" for path in include_paths()]
    for name in ("nms.cpp", "cpu/nms.cpp"):
        own = ["-c", csrc / "pytorch" / name, "-o", "x.o"]
        before = os.times().children_user
        status, said = finish(start(tmp_path, "g++", *own, *flags))
        assert status == 0, said
        took = os.times().children_user - before
    assert compiled(tmp_path) == (2, 0)
    assert took < 8  # the second, which parses no torch: 2 s, and 17 without
