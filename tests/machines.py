"""Machines that this one is not: with a card that torch sees, with some nvcc.

What is replaced is torch's answers and CUDA's compiler, never code of ours or mmcv's.
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.helpers import ROOT

CUDA = "99.1"  # of torch there: no toolkit of the machine under the tests fits
SETUP = ROOT / "tests/data/mmcv-2.1.0/setup.py.txt"  # mmcv's own, as it is released

# torch as it is built with CUDA; it sees a card, unless that is hidden. mmcv's
# operators say that they were built with what MMCV_BUILT_WITH says, if that is set.
SITE = f'''
import importlib.util
import os
import sys


def card(cuda):
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1")
    cuda.is_available = lambda: seen
    cuda.device_count = lambda: int(seen)
    cuda.get_device_capability = lambda device=None: (9, 0)
    cuda._is_compiled = lambda: True


def version(module):
    module.cuda = "{CUDA}"


def operators(info):
    built = os.environ.get("MMCV_BUILT_WITH")
    if built:
        info.get_compiling_cuda_version = lambda: built


class Finder:
    patches = {{
        "torch.cuda": card,
        "torch.version": version,
        "mmcv.ops.info": operators,
    }}

    def find_spec(self, name, path=None, target=None):
        if name not in self.patches:
            return None
        patch = self.patches.pop(name)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def patched(module):
            execute(module)
            patch(module)

        spec.loader.exec_module = patched
        return spec


sys.meta_path.insert(0, Finder())
'''

# Notes how it was called, and makes an object that links.
NVCC = """#!/bin/sh
[ "$1" = --version ] && {{ echo "CUDA compiler, release {version}, V0"; exit; }}
echo "$@" >> "{home}/calls"
while [ $# -gt 0 ]; do
    case $1 in -o) object=$2 ;; --dependency-output) depends=$2 ;; esac
    shift
done
[ -z "$depends" ] || echo "$object:" > "$depends"
g++ -fPIC -x c++ -c /dev/null -o "$object"
"""

# The parts of mmcv that setup.py looks for, and one that says what it was built with.
HEADER = "#include <Python.h>\n#include <string>\n"
EXTENSION = """
#include "pytorch_cpp_helper.hpp"
static PyObject* built(PyObject*, PyObject*) {
#ifdef MMCV_WITH_CUDA
  return PyUnicode_FromString("CUDA");
#else
  return PyUnicode_FromString("not available");
#endif
}
static PyMethodDef methods[] = {{"built", built, METH_NOARGS, ""}, {0, 0, 0, 0}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ext", "", -1, methods};
PyMODINIT_FUNC PyInit__ext() { return PyModule_Create(&module); }
"""


def make_toolkit(home, version):
    """A CUDA toolkit: nvcc of that version, a header, libraries to link with."""
    for folder in ("bin", "include", "lib64"):
        (home / folder).mkdir(parents=True)
    nvcc = home / "bin/nvcc"
    nvcc.write_text(NVCC.format(version=version, home=home))
    nvcc.chmod(0o755)
    (home / "include/cuda_runtime.h").touch()
    for name in ("cudart", "c10_cuda", "torch_cuda"):
        library = home / f"lib64/lib{name}.so"
        subprocess.run(
            ["g++", "-shared", "-fPIC", "-x", "c++", "/dev/null", "-o", library],
            check=True,
        )
    return home


def make_sdist(folder):
    """A source package of mmcv 2.1.0 that compiles in a second."""
    csrc = "mmcv/ops/csrc"
    files = {
        "setup.py": SETUP.read_text(),
        "requirements/runtime.txt": "",
        "requirements.txt": "",
        "requirements/test.txt": "",
        "requirements/build.txt": "",
        "requirements/optional.txt": "",
        "mmcv/__init__.py": "",
        "mmcv/version.py": "__version__ = '2.1.0'\n",
        f"{csrc}/common/pytorch_cpp_helper.hpp": HEADER,
        f"{csrc}/pytorch/pybind.cpp": EXTENSION,
        f"{csrc}/pytorch/cpu/nms.cpp": '#include "pytorch_cpp_helper.hpp"\n',
        f"{csrc}/pytorch/cuda/nms_cuda.cu": "",
    }
    folder.mkdir()
    with tarfile.open(folder / "mmcv-2.1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            path = folder / "mmcv-2.1.0" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        archive.add(folder / "mmcv-2.1.0", "mmcv-2.1.0")
    return folder


class Machine:
    """A machine in a folder: ``cuda='99.1'`` has an nvcc of that, None has none."""

    def __init__(self, folder, cuda=None, card=True, sdist=None, **environ):
        self.home = folder / "cuda"
        if card:
            (folder / "site").mkdir(parents=True)
            (folder / "site/sitecustomize.py").write_text(SITE)
        self.environ = dict(
            {k: v for k, v in os.environ.items() if not k.startswith(("CUDA", "PIP_"))},
            PYTHONPATH=f"{folder / 'site'}:{ROOT}",
            OMP_NUM_THREADS="1",
            AMP_HOOKS_CACHE=str(folder / "cache"),
            PIP_NO_INDEX="1",
            PIP_DISABLE_PIP_VERSION_CHECK="1",
            PIP_FIND_LINKS=str(sdist),
            **environ,
        )
        if cuda:
            make_toolkit(self.home, cuda)
            self.environ["CUDA_HOME"] = str(self.home)

    def run(self, *command, cwd=None, **environ):
        """Run a command there, whatever its exit status will be."""
        return subprocess.run(
            list(map(str, command)),
            env=dict(self.environ, **environ),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def python(self, *arguments, **options):
        """Run Python there."""
        return self.run(sys.executable, *arguments, **options)

    def nvcc_calls(self):
        """How nvcc was called to compile."""
        path = Path(self.home, "calls")
        return path.read_text().splitlines() if path.exists() else []
