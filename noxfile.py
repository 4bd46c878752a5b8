"""The tests under the versions that people have, each in an environment of its own.

    pip install nox
    nox --list
    nox -s torch-2.1            # or several; all of them take hours and 30 GB
    nox -s torch-2.1 -- -k resume
    nox -s siblings             # MMYOLO, MMSegmentation, ...: 20 minutes
    nox -s siblings-onedl       # the maintained forks of three of them
    nox -s docs                 # the site, in build/site

A session downloads its torch (3 to 5 GB, for PyPI's have CUDA in them; 200 MB with an
index of CPU wheels in PIP_EXTRA_INDEX_URL), compiles mmcv's operators for it (3 minutes
on 2 cores, kept in AMP_HOOKS_CACHE), installs the package as a user does, sees that
this has changed neither torch nor mmcv, and runs the tests: all but those of our own
development tools, scripts and pages. The interpreters must be on PATH.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import nox

nox.options.reuse_venv = "yes"
nox.options.sessions = []

# What is pinned so that a new release of a tool turns no green commit red.
TOOLS = ["pytest==8.3.5", "pytest-xdist==3.6.1", "scikit-learn", "tqdm", "pycocotools"]
TESTS = [
    "tests",
    *("--ignore=tests/docs", "--ignore=tests/scripts", "--ignore=tests/test_house.py"),
    *("--ignore=tests/test_wheel.py", "--ignore=tests/panel/test_backends.py"),
    "--short",
]
VERSIONS = """
from importlib import metadata
print({n: metadata.version(n) for n in sys.argv[1:]})
"""


@dataclass(frozen=True)
class Stack:
    """Versions that belong together."""

    python: str
    torch: str
    numpy: str
    opencv: str
    mmengine: str
    mmcv: str
    mmdet: str
    others: tuple[str, ...] = ("tensorboard==2.21.0", "setuptools<81")
    prefix: str = ""


STACKS = {
    "torch-2.0": Stack(
        *("3.8", "2.0.1", "1.24.4", "4.8.1.78", "0.8.0", "2.0.0", "3.0.0"),
        # yapf 0.40 took away an argument that MMEngine 0.8 gives.
        ("tensorboard==2.14.0", "setuptools<70", "yapf==0.33.0"),
    ),
    "torch-2.1": Stack(
        *("3.9", "2.1.2", "1.26.4", "4.10.0.84", "0.9.1", "2.1.0", "3.2.0"),
        ("tensorboard==2.18.0", "setuptools<81"),
    ),
    "torch-2.3": Stack(
        *("3.10", "2.3.1", "1.26.4", "4.10.0.84", "0.10.3", "2.1.0", "3.3.0")
    ),
    "torch-2.5": Stack(
        *("3.11", "2.5.1", "1.26.4", "4.10.0.84", "0.10.5", "2.1.0", "3.3.0")
    ),
    "torch-2.8": Stack(
        *("3.12", "2.8.0", "2.2.6", "4.12.0.88", "0.10.7", "2.1.0", "3.3.0")
    ),
    "torch-2.13": Stack(
        *("3.11", "2.13.0", "2.2.6", "4.12.0.88", "0.10.7", "2.1.0", "3.3.0")
    ),
    # The maintained forks.
    "onedl": Stack(
        *("3.11", "2.13.0", "2.2.6", "4.12.0.88", "0.10.12", "2.3.6", "3.5.1"),
        prefix="onedl-",
    ),
}


def without_windows(session: nox.Session, opencv: str) -> None:
    """Put OpenCV's headless build in the place of the one that MMEngine asks for.

    A machine without libGL cannot load the one with windows; both lie in one folder.
    Not earlier than all else: pip would bring the newest, and NumPy's.
    """
    session.run("python", "-m", "pip", "uninstall", "-q", "-y", "opencv-python")
    headless = f"opencv-python-headless=={opencv}"
    session.install("--force-reinstall", "--no-deps", headless)


# The last versions that go together, and what of their requirements is needed here:
# MMYOLO and MMRotate want mmcv before 2.1, MMRotate also mmdet before 3.1, and e2cnn,
# which it imports, Python before 3.10. From PyPI mmaction2 1.2.0 cannot be imported.
SIBLINGS = {
    "siblings": Stack(
        *("3.9", "2.3.1", "1.26.4", "4.10.0.84", "0.10.5", "2.0.1", "3.0.0"),
        ("tensorboard==2.18.0", "setuptools<81", "torchvision==0.18.1"),
    ),
    "siblings-onedl": Stack(
        *("3.11", "2.8.0", "2.2.6", "4.12.0.88", "0.10.12", "2.3.6", "3.5.1"),
        # The forks' licenses are written in a way that setuptools reads since 77.
        ("tensorboard==2.21.0", "setuptools>=77,<81", "torchvision==0.23.0"),
        prefix="onedl-",
    ),
}
SIBLING_PACKAGES = {
    "siblings": [
        *("mmyolo==0.6.0", "mmsegmentation==1.2.2", "mmpretrain==1.2.0"),
        *("mmpose==1.3.2", "mmrotate==1.0.0rc1", "mmdet3d==1.4.0"),
        *("mmaction2==1.1.0", "mmocr==1.0.1", "e2cnn==0.2.3", "xtcocotools==1.14.3"),
        *("nuscenes-devkit==1.1.11", "lyft_dataset_sdk==0.0.8"),  # mmdet3d imports
    ],
    # All that there are.
    "siblings-onedl": [
        *("onedl-mmsegmentation==1.4.2", "onedl-mmpretrain==1.3.6"),
        "onedl-mmrotate==1.2.1",
    ],
}
THEIR_REQUIREMENTS = {
    "siblings": (
        "prettytable ftfy regex einops json_tricks munkres rich modelindex mat4py "
        "scipy imgaug lmdb pyclipper rapidfuzz trimesh scikit-image numba plyfile "
        "networkx decord importlib_metadata pymanopt autograd pyquaternion cachetools "
        "fire"
    ).split(),
    "siblings-onedl": (
        "prettytable ftfy regex einops rich modelindex mat4py faster-coco-eval"
    ).split(),
}


def install(session: nox.Session, stack: Stack) -> dict[str, str]:
    """Install a stack and then the package; returns the variables to run it with."""
    engine, mmcv = f"{stack.prefix}mmengine", f"{stack.prefix}mmcv"
    mmdet = "onedl-mmdetection" if stack.prefix else "mmdet"
    pinned = [f"numpy=={stack.numpy}", *stack.others]
    session.install(f"torch=={stack.torch}", "wheel", "ninja", "psutil", *pinned)
    session.install(f"{engine}=={stack.mmengine}", *TOOLS, *pinned)
    build = ["scripts/mmcv_build.py", "--name", mmcv, "--mmcv", stack.mmcv]
    python = str(Path(session.bin, "python"))
    cpu = {"AMP_HOOKS_CUDA": "0", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    wheel = session.run(
        "python", *build, "--python", python, silent=True, stderr=None, env=cpu
    )
    session.install(str(wheel).strip().splitlines()[-1], *pinned)
    session.install("--no-build-isolation", f"{mmdet}=={stack.mmdet}", *pinned)

    names = ["torch", "numpy", mmcv, engine]
    versions = ["python", "-c", f"import sys{VERSIONS}", *names]
    before = session.run(*versions, silent=True)
    # As a user does; the forks have other names than what it asks for.
    session.install(*(["--no-deps"] if stack.prefix else []), "-e", ".")
    after = session.run(*versions, silent=True)
    if before != after:
        session.error(f"installing amp_hooks changed {before} to {after}")
    session.log(f"{after}")
    without_windows(session, stack.opencv)
    return cpu


def tests(session: nox.Session, stack: Stack) -> None:
    """Install a stack, then the package, then run the tests."""
    cpu = install(session, stack)
    workers = str(min(8, os.cpu_count() or 1))
    # Warnings are errors under the versions of scripts/constraints.txt only.
    pytest = ["-m", "pytest", "-W", "default", "-p", "no:cacheprovider", "-n", workers]
    session.run("python", *pytest, *TESTS, *session.posargs, env=cpu)


def session_of(name: str, stack: Stack) -> None:
    """A session by the name of its stack."""

    # virtualenv has given up Python 3.8.
    @nox.session(name=name, python=stack.python, venv_backend="venv")
    def run(session: nox.Session) -> None:
        tests(session, stack)


for name, stack in STACKS.items():
    session_of(name, stack)


def siblings_of(name: str, stack: Stack) -> None:
    """A session with the packages beside MMDetection."""

    @nox.session(name=name, python=stack.python, venv_backend="venv")
    def run(session: nox.Session) -> None:
        """Their tests, then the table of the docs."""
        cpu = install(session, stack)
        session.install(*THEIR_REQUIREMENTS[name], f"numpy=={stack.numpy}")
        packages = SIBLING_PACKAGES[name]
        session.install("--no-deps", "--no-build-isolation", *packages)
        without_windows(session, stack.opencv)
        pytest = ["-m", "pytest", "-W", "default", "-p", "no:cacheprovider"]
        session.run("python", *pytest, "tests/siblings", *session.posargs, env=cpu)
        if not session.posargs:
            session.run("python", "scripts/sweep_siblings.py", env=cpu)


for name, stack in SIBLINGS.items():
    siblings_of(name, stack)


@nox.session(name="docs", python="3.11", venv_backend="venv")
def site(session: nox.Session) -> None:
    """The site in both languages, in build/site; a warning is an error."""
    session.install("torch", ".[docs]", "--constraint", "scripts/constraints.txt")
    without_windows(session, STACKS["torch-2.13"].opencv)
    for language in ("en", "zh_cn"):
        options = ["-q", "-W", "--keep-going", "-c", "docs", "-D"]
        where = [f"docs/{language}", f"build/site/{language}"]
        session.run("sphinx-build", *options, f"language={language}", *where)
