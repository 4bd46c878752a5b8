"""A wheel of mmcv with compiled operators, for any interpreter that has torch.

    python scripts/mmcv_build.py --python PYTHON --mmcv 2.1.0 [--name onedl-mmcv]

prints the path of the wheel; what it does meanwhile goes to stderr. A wheel is compiled
once for each torch, kind of operators (mmcv_plan.py) and Python, with torch's headers
precompiled (pch_cxx.py): 3 to 4 minutes on 2 cores, without that 11. The interpreter's
environment is left as it is.

    --plan [--kept PLAN]   print only what would be built, as in cpu or
                           cuda-13.0-sm-8.6; or PLAN, where that serves as well

    AMP_HOOKS_CUDA        1: operators for CUDA, 0: for the CPU, empty: what fits
    AMP_HOOKS_CACHE       where built wheels are kept (default: ~/.cache/amp_hooks)
    CUDA_HOME             the CUDA toolkit to use
    TORCH_CUDA_ARCH_LIST  the cards to build for (default: those of this machine)
    CXX, MAX_JOBS         the compiler (default: g++), jobs at once (number of cores)

Runs with Python 3.8 and the standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mmcv_plan import (
    CannotBuild,
    Plan,
    build_environment,
    decide,
    find_nvccs,
    serves,
)

# What mmcv's setup.py imports; setuptools 81 dropped its pkg_resources.
TOOLS = {
    "pkg_resources": "setuptools<81",
    "wheel": "wheel",
    "ninja": "ninja",
    "psutil": "psutil",
}
WRAPPER = "amp-hooks-g++"  # torch looks for g++ in the name
PROBE = """
import importlib.util, json, os, sys, warnings
warnings.simplefilter("ignore")
import torch
cuda = torch.cuda
cards = range(cuda.device_count()) if cuda.is_available() else ()
print(json.dumps(dict(
    torch=torch.__version__,
    cuda=torch.version.cuda,
    cards=["%d.%d" % cuda.get_device_capability(card) for card in cards],
    tag="cp%d%d" % sys.version_info[:2],
    packages=os.path.dirname(os.path.dirname(torch.__file__)),
    missing=[name for name in sys.argv[1:] if not importlib.util.find_spec(name)],
)))
"""
STARTED = time.time()


class BuildFailed(Exception):
    """The compiler, or mmcv's setup.py, gave up; the message names the log."""


def say(text: str) -> None:
    """To stderr, with the seconds since the start."""
    print(f"[mmcv {time.time() - STARTED:4.0f}s] {text}", file=sys.stderr, flush=True)


def probe(python: str) -> dict[str, Any]:
    """What torch in that interpreter says of itself and of the machine."""
    try:
        done = subprocess.run(
            [python, "-c", PROBE, *TOOLS], stdout=subprocess.PIPE, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildFailed(f"'{python}' does not import torch: {error}") from None
    facts: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return facts


def find_wheel(folder: Path, name: str, version: str, tag: str) -> Path | None:
    """One that was built for this Python."""
    pattern = f"{name.replace('-', '_')}-{version}-{tag}-*.whl"
    return next(iter(sorted(folder.glob(pattern))), None)


def find_compiler() -> list[str]:
    """The user's ``CXX``, which may be ``ccache g++``, or the first that there is."""
    named = shlex.split(os.environ.get("CXX", ""))
    for compiler in [named] if named else [["g++"], ["c++"], ["clang++"]]:
        path = shutil.which(compiler[0])
        if path:
            return [os.path.abspath(path), *compiler[1:]]
    raise BuildFailed(
        f"mmcv needs a C++ compiler, and {named[0] if named else 'g++'} is not on PATH "
        "(on Debian: apt-get install g++)"
    )


def wrap_compiler(folder: Path) -> str:
    """Make the program that stands for the compiler; it is found by its name.

    A name without a folder, because torch and setuptools split a path at its spaces.
    """
    program = Path(__file__).resolve().with_name("pch_cxx.py")
    words = [sys.executable, "-I", "-S", str(program), str(folder), *find_compiler()]
    path = folder / "bin" / WRAPPER
    path.parent.mkdir()
    command = " ".join(map(shlex.quote, [*words, "--"]))
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    path.chmod(0o755)
    return str(path.parent)


def prepare(
    python: str, plan: Plan, facts: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """The environment of the build: its tools beside it, its compiler wrapped."""
    paths = [wrap_compiler(folder)]
    env = build_environment(plan, os.environ, facts["packages"])
    if facts["missing"]:
        # Not into the interpreter's environment, which is not ours to change.
        wanted = [TOOLS[name] for name in facts["missing"]]
        tools = str(folder / "tools")
        pip = [python, "-m", "pip", "install", "-q", "--target", tools, *wanted]
        if subprocess.run(pip, stdout=sys.stderr).returncode:
            raise BuildFailed(f"could not install {wanted}")
        paths.append(tools + "/bin")
        env["PYTHONPATH"] = ":".join(filter(None, [tools, env.get("PYTHONPATH")]))
    # Ninja is looked for on PATH, where that of an environment is not.
    paths.append(os.path.dirname(python))
    env["PATH"] = ":".join([*paths, env.get("PATH", os.defpath)])
    env["CXX"] = WRAPPER
    if hasattr(os, "sched_getaffinity"):
        env.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))
    return env


def follow(process: subprocess.Popen[bytes], log: Path) -> None:
    """Say how far the build is and how long the rest will take, until it ends."""
    first = None
    told = time.time()
    while process.poll() is None:
        time.sleep(0.5)
        # Ninja prints [done/all] for each file.
        counts = re.findall(rb"^ *\[(\d+)/(\d+)\]", log.read_bytes(), re.MULTILINE)
        if not counts:
            continue
        done, total = map(int, counts[-1])
        # The first files wait for the header, which says nothing of the others.
        first = first or (done, time.time())
        if time.time() - told < 15 or done == first[0]:
            continue
        told = time.time()
        left = (told - first[1]) / (done - first[0]) * (total - done)
        say(f"{done} of {total} files compiled, about {left:.0f} s left")


def build(
    python: str, name: str, version: str, plan: Plan, facts: dict[str, Any], keep: Path
) -> Path:
    """Compile a wheel and keep it in that folder.

    Raises:
        BuildFailed: The message names the whole log.
    """
    keep.mkdir(parents=True, exist_ok=True)
    log = keep / f"{name}-{version}-{facts['tag']}.log"
    with tempfile.TemporaryDirectory(prefix="building.", dir=str(keep)) as place:
        folder = Path(place)
        env = prepare(python, plan, facts, folder)
        command = [python, "-m", "pip", "wheel", "-v", "--no-build-isolation"]
        command += ["--no-deps", "--no-binary", name, "--no-cache-dir"]
        command += ["-w", str(folder / "wheel"), f"{name}=={version}"]
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command,
                env=env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                follow(process, log)
            finally:
                if process.poll() is None:  # interrupted: the compilers as well
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        made = find_wheel(folder / "wheel", name, version, facts["tag"])
        if process.returncode or made is None:
            text = log.read_text(errors="replace").splitlines()
            raise BuildFailed(
                "\n".join([*text[-30:], f"{name} did not build; whole log: {log}"])
            )
        record = folder / "compiled"
        lines = record.read_text().splitlines() if record.exists() else []
        how = [line.split()[0] for line in lines]
        say(
            f"{len(how)} C++ files compiled, "
            f"{how.count('precompiled')} of them with torch's headers precompiled"
        )
        kept = keep / made.name
        os.replace(str(made), str(kept))
    return kept


def wheel_for(
    python: str, name: str, version: str, cache: Path, facts: dict[str, Any], plan: Plan
) -> Path:
    """The kept wheel of this kind, or a new one."""
    keep = cache / "wheels" / ("torch-" + facts["torch"]) / plan.key
    kept = find_wheel(keep, name, version, facts["tag"])
    kind = "the CPU" if plan.nvcc is None else "CUDA on sm " + plan.archs
    say(f"{name} {version}: operators for {kind} ({plan.why})")
    if kept:
        say(f"built before: {kept}")
        return kept
    minutes = "3 to 4 minutes on 2 cores" if plan.nvcc is None else "long with nvcc"
    say(f"compiling for torch {facts['torch']}, its headers first; {minutes}")
    return build(python, name, version, plan, facts, keep)


def plan_for(facts: dict[str, Any], environ: dict[str, str]) -> Plan:
    """Decide for this machine."""
    return decide(
        environ.get("AMP_HOOKS_CUDA", ""),
        facts["torch"],
        facts["cuda"],
        facts["cards"],
        find_nvccs(environ),
        environ.get("TORCH_CUDA_ARCH_LIST", ""),
    )


def main() -> int:
    """Print the path of the wheel, or the plan."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--python", default=sys.executable, help="that has torch")
    parser.add_argument("--mmcv", default="2.1.0", metavar="VERSION")
    parser.add_argument("--name", default="mmcv", help="or onedl-mmcv")
    parser.add_argument("--plan", action="store_true", help="print what would be built")
    parser.add_argument("--kept", default="", help="a plan that was built before")
    args = parser.parse_args()
    # Killed politely it ends the compilers too, and leaves no half of a wheel.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(os.environ.get("AMP_HOOKS_CACHE") or os.path.join(home, "amp_hooks"))
    try:
        # Not resolved: the link in an environment is what makes it one.
        python = os.path.abspath(shutil.which(args.python) or args.python)
        facts = probe(python)
        plan = plan_for(facts, dict(os.environ))
        if args.plan:
            asked = os.environ.get("AMP_HOOKS_CUDA", "")
            serving = serves(args.kept, plan, asked, facts["cards"])
            print(args.kept if serving else plan.key)
            return 0
        result = (python, args.name, args.mmcv, cache.absolute(), facts)
        try:
            wheel = wheel_for(*result, plan)
        except BuildFailed as error:
            if plan.nvcc is None or os.environ.get("AMP_HOOKS_CUDA") == "1":
                raise
            say(f"{error}\noperators for CUDA did not build: taking the CPU's")
            wheel = wheel_for(*result, Plan(None, "", "those for CUDA did not build"))
        print(wheel)
    except (BuildFailed, CannotBuild, ValueError, OSError) as error:
        print(f"[mmcv] error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
