"""Check that runs resume under the versions of torch and MMEngine installed here.

    python scripts/check_resume.py

A small convolutional network trains in processes of their own, with EMA, a loss scale
and our hooks; mmcv and mmdet are not needed. Prints a line for each check and exits
with status 1 if one fails. See check_versions.sh.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import os.path as osp
import pickle
import shutil
import subprocess
import sys
import tempfile
import warnings
from importlib import metadata
from typing import Any

import mmengine
import numpy
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner, find_latest_checkpoint
from torch import Tensor, nn

from amp_hooks.engine.safe_load import allow_mmengine_checkpoints
from amp_hooks.rollback.checkpoint_file import damage
from amp_hooks.rollback.disk import RollbackFiles

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
FACTOR = 0.1
SCHEDULES: dict[str, list[dict[str, Any]]] = {
    "onecycle": [dict(type="OneCycleLR", eta_max=0.05, total_steps=40)],
    "cosine": [
        dict(type="LinearLR", start_factor=0.1, begin=0, end=3),
        dict(type="CosineAnnealingLR", T_max=40, begin=3, eta_min=1e-5),
    ],
}


@MODELS.register_module()
class ToyNet(BaseModel):
    """Two convolutions with BatchNorm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.cls = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor, y: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        """The loss; nothing else is asked for."""
        logits = self.cls(self.norm(self.conv(x)).relu()).mean((2, 3))
        return dict(loss_cls=nn.functional.cross_entropy(logits, y))


@HOOKS.register_module()
class CompareHook(Hook):
    """Compares the run that goes on with the file that it goes on from."""

    priority = "LOWEST"

    def before_train(self, runner: Runner) -> None:
        """Leave what differs in the work_dir."""
        if not runner._resume:
            return
        allow_mmengine_checkpoints()
        # RollbackHook has named it; a plain run takes what the pointer names.
        path = runner._load_from or find_latest_checkpoint(runner.work_dir)
        saved = torch.load(path, map_location="cpu", weights_only=True)
        ours = [h for h in runner.hooks if type(h).__name__ == "RollbackHook"]
        seen = dict(
            file=osp.relpath(path, runner.work_dir),
            iter=runner.iter,
            rollbacks=ours[0].attempts.done if ours else None,
            lr_factor=ours[0].total_lr_factor if ours else None,
            differs=[k for k, same in agreement(runner, saved).items() if not same],
        )
        with open(osp.join(runner.work_dir, "compared.json"), "w") as f:
            json.dump(seen, f)


def agreement(runner: Runner, saved: dict[str, Any]) -> dict[str, bool]:
    """Whether the run is what the file says, by part."""
    (ema,) = [h.ema_model for h in runner.hooks if type(h).__name__ == "EMAHook"]
    optim, theirs = runner.optim_wrapper.state_dict(), saved["optimizer"]
    # MMEngine writes the averaged weights as state_dict, the live ones as the EMA's.
    averaged = dict(saved["state_dict"], steps=saved["ema_state_dict"]["steps"])
    live = {f"module.{k}": v for k, v in runner.model.state_dict().items()}
    live["steps"] = ema.steps
    own = saved.get("amp_hooks", {}).get("RollbackHook", {})
    mine = [h for h in runner.hooks if type(h).__name__ == "RollbackHook"]
    schedulers = [s.state_dict() for s in runner.param_schedulers]
    return {
        "iteration": runner.iter == saved["meta"]["iter"],
        "weights": same(live, saved["ema_state_dict"]),
        "EMA": same(dict(ema.module.state_dict(), steps=ema.steps), averaged),
        "optimizer": same(optim["state"], theirs["state"]),
        "learning rate": same(
            optim["param_groups"], saved["optimizer"]["param_groups"]
        ),
        "schedules": [s["base_values"] for s in schedulers]
        == [s["base_values"] for s in saved["param_schedulers"]],
        "loss scale": optim["loss_scaler"] == theirs["loss_scaler"],
        "policy": not own or all(hook.state() == own for hook in mine),
    }


def same(a: Any, b: Any) -> bool:
    """Bit for bit."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def train(args: argparse.Namespace) -> None:
    """A run; what the other processes of this program do."""
    torch.set_num_threads(1)
    if args.fault is not None:
        # As after a kill: a good end leaves only the file that last_checkpoint names.
        RollbackFiles.clear = lambda self, named: None  # type: ignore[method-assign]
    hooks: list[dict[str, Any]] = [dict(type="CompareHook")]
    rollback = dict(interval=4, probation=2, warmup_iters=2, cooldown=100)
    if args.hooks == "list":
        hooks += [dict(type="amp_hooks.StepGuardHook")]
        hooks += [dict(type="amp_hooks.RollbackHook", lr_factor=FACTOR, **rollback)]
    elif args.hooks == "suite":
        hooks += [dict(type="amp_hooks.StabilityHook", rollback=rollback)]
    if args.fault is not None:
        # Not NaN, of which the learning rate is not to blame.
        fault = dict(what="parameter", at=args.fault, where="cls.weight", value="inf")
        hooks += [dict(type="amp_hooks.FaultInjectionHook", faults=[fault])]
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 8, 8, generator=generator)
    data = [dict(x=image, y=i % 2) for i, image in enumerate(images)]
    schedule = [dict(s, by_epoch=False) for s in SCHEDULES[args.schedule]]
    runner = Runner(
        model=dict(type="ToyNet"),
        work_dir=args.train,
        train_dataloader=dict(
            dataset=data,
            batch_size=2,
            num_workers=0,
            sampler=dict(type="InfiniteSampler", shuffle=True),
            collate_fn=dict(type="default_collate"),
        ),
        train_cfg=dict(by_epoch=False, max_iters=args.iters),
        optim_wrapper=dict(
            type="amp_hooks.CpuAmpOptimWrapper",
            dtype="float16",
            loss_scale=dict(init_scale=1024.0),
            optimizer=dict(type="AdamW", lr=0.01),
        ),
        param_scheduler=schedule,
        default_hooks=dict(
            checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=5)
        ),
        custom_hooks=[dict(type="EMAHook", momentum=0.1), *hooks],
        log_processor=dict(by_epoch=False),
        randomness=dict(seed=0),
        resume=args.resume,
        load_from=args.load_from,
    )
    runner.train()


class Checks:
    """Runs processes and prints what they did right or wrong.

    Args:
        folder: Where they work.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.failed = folder, 0

    def path(self, *parts: str) -> str:
        """In the folder."""
        return osp.join(self.folder, *parts)

    def check(self, what: str, good: bool, otherwise: object = "") -> None:
        """Print a line."""
        self.failed += not good
        print(f"{'ok  ' if good else 'FAIL'}  {what}", flush=True)
        if not good:
            print(f"      {otherwise}", flush=True)

    def run(self, work: str, *options: str, status: int = 0, **env: str) -> str:
        """Train in a process of its own; its output."""
        command = [sys.executable, osp.abspath(__file__), "--train", self.path(work)]
        done = subprocess.run(
            [*command, *options],
            env=dict(os.environ, PYTHONPATH=ROOT, OMP_NUM_THREADS="1", **env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != status:
            self.check(
                f"{work}: training ends with status {status}",
                False,
                done.stdout[-3000:],
            )
        return done.stdout

    def compared(self, work: str) -> dict[str, Any]:
        """What a resumed process found."""
        path = self.path(work, "compared.json")
        if not osp.exists(path):
            return dict.fromkeys(("file", "iter", "rollbacks", "lr_factor", "differs"))
        with open(path) as f:
            return json.load(f)

    def events(self, work: str, event: str) -> list[dict[str, Any]]:
        """Of all ledgers of a run, in order of time."""
        found = []
        for folder in sorted(os.listdir(self.path(work))):
            ledger = self.path(work, folder, "stability.jsonl")
            if osp.exists(ledger):
                with open(ledger) as f:
                    found += [json.loads(line) for line in f]
        return [line for line in found if line["event"] == event]

    def copy(self, work: str, name: str) -> None:
        """A run's folder, for a continuation of its own."""
        shutil.copytree(self.path(work), self.path(name))
        with open(self.path(name, "last_checkpoint"), "w") as f:
            f.write(self.path(name, "iter_10.pth"))


class Foreign:
    """Pickles as a call of a function that no checkpoint needs."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def run_with_a_rollback(checks: Checks) -> None:
    """A NaN weight, and what it leaves on the disk."""
    checks.run("ours", "--iters", "10", "--fault", "6")
    rollbacks = [
        (e["iter"], e["target_iter"]) for e in checks.events("ours", "rollback")
    ]
    checks.check("NaN is rolled back", rollbacks == [(6, 4)], rollbacks)
    allow_mmengine_checkpoints()
    files = ["iter_5.pth", "iter_10.pth", "rollback/iter_7.pth", "rollback/iter_8.pth"]
    words = {f: damage(checks.path("ours", f)) for f in files}
    checks.check("every checkpoint is good", not any(words.values()), words)


def resumed(checks: Checks) -> None:
    """Everything comes back, snapshots of the process before included."""
    checks.copy("ours", "resumed")
    checks.run("resumed", "--iters", "12", "--resume", "--fault", "10")
    seen = checks.compared("resumed")
    checks.check("it resumes at iteration 10", seen["iter"] == 10, seen)
    checks.check(
        "iteration, weights, EMA, optimizer, learning rate, loss scale as saved",
        seen["differs"] == [],
        seen,
    )
    policy = seen["rollbacks"], seen["lr_factor"]
    expected = [[6, 4, "STATE_NONFINITE", 0]], FACTOR
    checks.check("rollback count and LR factor as saved", policy == expected, policy)
    targets = [e["target_iter"] for e in checks.events("resumed", "rollback")]
    checks.check(
        "it goes back to a file of the process before", targets == [4, 8], targets
    )


def damaged(checks: Checks) -> None:
    """Newer files that are no good; foreign ones must not get to do anything."""
    checks.copy("ours", "damaged")
    good, marker = checks.path("damaged", "iter_10.pth"), checks.path("executed")
    whole = torch.load(good, map_location="cpu", weights_only=True)
    whole["meta"]["iter"] = 11  # newer than the good one
    weight = whole["state_dict"]["cls.weight"]
    buffer = io.BytesIO()
    torch.save(whole, buffer)
    data = buffer.getvalue()
    at = data.index(weight.numpy().tobytes())
    flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    nan = dict(
        whole, state_dict=dict(whole["state_dict"], **{"cls.weight": weight / 0})
    )
    foreign = dict(nan, message_hub=Foreign(os.system, f"touch '{marker}'"))
    gadget = dict(nan, message_hub=Foreign(getattr, pickle.Unpickler, "load"))
    # The words that tell why; the last one is the newest.
    cases: dict[str, tuple[Any, str]] = {
        "truncated": (data[: len(data) // 2], "it is truncated or damaged"),
        "bit-flipped": (flipped, "it is damaged: the checksum of"),
        "NaN-bearing": (nan, "it is not finite: state_dict.cls.weight"),
        "foreign (getattr)": (gadget, "protection refuses it"),
        "foreign, not a zip archive": (foreign, "protection refuses it"),
        "foreign": (foreign, "protection refuses it: it asks for posix.system"),
    }
    for number, (name, (content, _)) in enumerate(cases.items(), 11):
        path = checks.path("damaged", f"iter_{number}.pth")
        if isinstance(content, bytes):
            with open(path, "wb") as f:
                f.write(content)
        else:
            zipped = "not a zip" not in name
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with open(checks.path("damaged", "last_checkpoint"), "w") as f:
        f.write(path)
    out = checks.run("damaged", "--iters", "11", "--resume")
    for number, (name, (_, words)) in enumerate(cases.items(), 11):
        said = f"resume passes over {checks.path('damaged', f'iter_{number}.pth')}: "
        line = next((x for x in out.splitlines() if said in x), "not mentioned")
        checks.check(f"{name} file is passed over", words in line, line)
    seen = checks.compared("damaged")
    checks.check("the newest good file is taken", seen["file"] == "iter_10.pth", seen)
    os.remove(checks.path("damaged", "compared.json"))
    named = ["--iters", "11", "--resume", "--load-from", path]
    out = checks.run("damaged", *named, status=1)
    checks.check("a foreign file by name is refused", "Name another checkpoint" in out)
    checks.check("nothing foreign was executed", not osp.exists(marker))


def without_the_hooks(checks: Checks) -> None:
    """Our checkpoints in a plain run, and a plain run's with our hooks."""
    # From torch 2.6 on plain MMEngine reads no checkpoint, its own included.
    plain = dict(TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")
    checks.copy("ours", "without")
    checks.run("without", "--iters", "11", "--resume", "--hooks", "none", **plain)
    seen = checks.compared("without")
    checks.check(
        "a run without the hooks resumes from ours",
        (seen["iter"], seen["differs"]) == (10, []),
        seen,
    )
    cosine = ["--schedule", "cosine"]
    checks.run("plain", "--iters", "5", "--hooks", "none", *cosine)
    checks.run("plain", "--iters", "9", "--resume", "--hooks", "suite", *cosine)
    seen = checks.compared("plain")
    checks.check(
        "a run with StabilityHook resumes from a plain one's",
        list(seen.values()) == ["iter_5.pth", 5, [], 1.0, []],
        seen,
    )


def main() -> None:
    """Check, or train if asked to by itself."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", metavar="WORK_DIR", help=argparse.SUPPRESS)
    for name, kind in dict(iters=int, fault=int, load_from=str).items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--hooks", default="list", help=argparse.SUPPRESS)
    parser.add_argument("--schedule", default="onecycle", help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train is not None:
        train(args)
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(
        f"torch {torch.__version__}, mmengine {mmengine.__version__} "
        f"({engine()}), numpy {numpy.__version__}, "
        f"Python {sys.version.split()[0]}"
    )
    with tempfile.TemporaryDirectory() as folder:
        checks = Checks(folder)
        for part in (run_with_a_rollback, resumed, damaged, without_the_hooks):
            part(checks)
    print("all checks passed" if not checks.failed else f"{checks.failed} failed")
    sys.exit(bool(checks.failed))


def engine() -> str:
    """The distribution that ``mmengine`` is of: MMEngine's own or a fork's."""
    return ", ".join(sorted(set(metadata.packages_distributions()["mmengine"])))


if __name__ == "__main__":
    main()
