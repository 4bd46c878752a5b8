"""Which operators mmcv is built with on this machine: for the CPU, or for its card.

Decided from what torch was built with, the cards that it sees, and the nvcc that there
is. mmcv's own setup.py takes CUDA wherever torch sees a card, FORCE_CUDA=0 or not, and
then fails without an nvcc of torch's CUDA; so the build is told by its environment.
Runs with Python 3.8 and the standard library.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

# Where a toolkit lies when nothing names it.
TOOLKITS = ("/usr/local/cuda", "/usr/local/cuda-*", "/opt/cuda")
# Would build other operators than those that were decided on.
OTHERS = ("FORCE_MLU", "FORCE_MPS", "FORCE_NPU", "MMCV_WITH_DIOPI", "MMCV_CUDA_ARGS")
# torch's headers include these; a toolkit may lack them where torch brings them.
LIBRARY_HEADERS = ("cublas_v2.h", "cusparse.h", "cusolverDn.h")


class Nvcc(NamedTuple):
    """A CUDA toolkit: its folder, its version as in ``13.0``."""

    home: str
    version: str


class Plan(NamedTuple):
    """What to build and why; without an nvcc, operators for the CPU."""

    nvcc: Nvcc | None
    archs: str
    why: str

    @property
    def key(self) -> str:
        """Names what a wheel holds: ``cpu`` or ``cuda-13.0-sm-8.6``."""
        if self.nvcc is None:
            return "cpu"
        return f"cuda-{self.nvcc.version}-sm-{re.sub('[; ,]+', '_', self.archs)}"


class CannotBuild(Exception):
    """CUDA operators were asked for, and this is what is missing."""


def decide(
    asked: str,
    torch: str,
    cuda: str | None,
    cards: Sequence[str],
    nvccs: Sequence[Nvcc],
    archs: str = "",
) -> Plan:
    """Operators for the card where they can be built, and for the CPU elsewhere.

    Args:
        asked: ``AMP_HOOKS_CUDA``: ``1``, ``0``, or empty, to take what fits.
        torch: Version of torch.
        cuda: The CUDA that torch was built with, as in ``13.0``, or None.
        cards: Compute capabilities of the cards that torch sees, as in ``8.6``.
        nvccs: The toolkits of this machine, the preferred one first.
        archs: ``TORCH_CUDA_ARCH_LIST``, which stands for the cards.

    Raises:
        CannotBuild: CUDA was asked for and cannot be built here.
        ValueError: ``asked`` is something else.
    """
    if asked not in ("", "0", "1"):
        raise ValueError(f"AMP_HOOKS_CUDA is '{asked}'; it may be 0, 1 or empty")
    if asked == "0":
        return Plan(None, "", "AMP_HOOKS_CUDA=0")
    major = (cuda or "").split(".")[0]
    fitting = [nvcc for nvcc in nvccs if nvcc.version.split(".")[0] == major]
    toolkit = f"install CUDA toolkit {major} and name its folder: CUDA_HOME=..."
    if cuda is None:
        missing, remedy = f"torch {torch} is built for the CPU", "install one with CUDA"
    elif not cards and not (asked and archs):
        missing = "torch sees no GPU"
        remedy = "name the card that it is for: TORCH_CUDA_ARCH_LIST=8.6"
    elif not nvccs:
        missing, remedy = "there is no nvcc", toolkit
    elif not fitting:
        found = ", ".join(f"{nvcc.version} in {nvcc.home}" for nvcc in nvccs)
        missing, remedy = (
            f"torch is built with CUDA {cuda} and nvcc is {found}",
            toolkit,
        )
    else:
        archs = archs or ";".join(sorted(set(cards)))
        return Plan(fitting[0], archs, f"nvcc {fitting[0].version} fits torch")
    if asked == "1":
        raise CannotBuild(
            f"AMP_HOOKS_CUDA=1, but {missing}. Either {remedy},\n"
            "or leave AMP_HOOKS_CUDA out, for operators on the CPU"
        )
    return Plan(None, "", missing)


def serves(kept: str, plan: Plan, asked: str, cards: Sequence[str]) -> bool:
    """Whether operators that were built do where the plan is for others.

    Those for CUDA run on the CPU as well: hiding the GPU from one command is no reason
    to compile. Nor is a plan that was tried in vain, unless CUDA is asked for.

    Args:
        kept: The key of their plan; ``cuda-13.0-sm-8.6:cpu`` where the CPU's had to be
            taken in its place.
        plan: What is wanted now.
        asked: ``AMP_HOOKS_CUDA``.
        cards: Those that torch sees.
    """
    wanted, _, built = kept.partition(":")
    built = built or wanted
    if built == plan.key:
        return True
    if built == "cpu":
        return wanted == plan.key and asked != "1"
    return built.startswith("cuda-") and plan.nvcc is None and not (cards or asked)


def find_nvccs(
    environ: Mapping[str, str], toolkits: Sequence[str] = TOOLKITS
) -> list[Nvcc]:
    """The CUDA toolkits of this machine, those that the user names first."""
    homes = [environ.get("CUDA_HOME"), environ.get("CUDA_PATH")]
    on_path = shutil.which("nvcc", path=environ.get("PATH"))
    if on_path:
        both = (on_path, os.path.realpath(on_path))
        homes += [str(Path(nvcc).parent.parent) for nvcc in both]
    for pattern in toolkits:
        homes += sorted(glob.glob(pattern), reverse=True)
    found: dict[str, Nvcc] = {}
    for home in filter(None, homes):
        # An nvcc in /usr/local/bin that only calls another is no toolkit.
        if os.path.realpath(home) not in found and include_folders(home):
            version = nvcc_version(os.path.join(home, "bin", "nvcc"))
            if version:
                found[os.path.realpath(home)] = Nvcc(home, version)
    return list(found.values())


def include_folders(home: str) -> list[str]:
    """Where a toolkit has its headers; in an environment of conda, under targets."""
    folders = [os.path.join(home, "include"), *glob.glob(home + "/targets/*/include")]
    return [f for f in folders if os.path.exists(os.path.join(f, "cuda_runtime.h"))]


def nvcc_version(nvcc: str) -> str | None:
    """As in ``13.0``, or None if it does not run."""
    try:
        said = subprocess.run([nvcc, "--version"], stdout=subprocess.PIPE, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    version = re.search(r"release (\d+\.\d+)", said.stdout.decode(errors="replace"))
    return version.group(1) if version else None


def build_environment(
    plan: Plan, environ: Mapping[str, str], packages: str
) -> dict[str, str]:
    """The environment in which mmcv's setup.py builds what the plan says.

    Args:
        plan: From :func:`decide`.
        environ: That of the caller.
        packages: The folder that torch is installed in.
    """
    env = {k: v for k, v in environ.items() if k not in OTHERS}
    env.update(MMCV_WITH_OPS="1", FORCE_CUDA="0" if plan.nvcc is None else "1")
    if plan.nvcc is None:
        # setup.py asks torch before it looks at FORCE_CUDA.
        env.update(CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")
        # torch puts a ccache, where there is one, around our compiler, which is another
        # at each build: all it does is to preprocess each file. CXX may name one.
        env.setdefault("TORCH_NO_COMPILER_WRAPPER", "1")
        return env
    env.update(CUDA_HOME=plan.nvcc.home, TORCH_CUDA_ARCH_LIST=plan.archs)
    more = [f for f in include_folders(plan.nvcc.home) if "/targets/" in f]
    for folder in sorted(glob.glob(packages + "/nvidia/*/include")):
        lacking = [h for h in LIBRARY_HEADERS if os.path.exists(folder + "/" + h)]
        if any(not os.path.exists(plan.nvcc.home + "/include/" + h) for h in lacking):
            more.append(folder)
    if more:
        env["CPATH"] = ":".join([*more, *filter(None, [environ.get("CPATH")])])
    return env
