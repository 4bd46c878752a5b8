"""Train models of MMYOLO, MMSegmentation and others; is each watched, saved, resumed?

    nox -s siblings                                   # in an environment of its own
    python scripts/sweep_siblings.py --families mmyolo mmseg/fcn

Each family is trained on a CPU by an ordinary Runner with StabilityHook, from its
package's own config, without pretrained weights and on random samples; in FP32, BF16
and rehearsed FP16. In the middle a weight of a classifier becomes NaN. What is to be
seen:

- exactly the layers of sibling_families.py are watched;
- nothing is refused or taken back but for the fault;
- one rollback to a snapshot from before it, and finite weights in the end;
- a resumed run goes on where this one ended.

Exit status 1 if it does not hold in a family that runs.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import json
import math
import os.path as osp
import sys
import tempfile
import time
import uuid
import warnings
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner
from sibling_batches import RandomSamples
from sibling_families import SIBLINGS, Family
from sweep_detectors import num_classes, short, strip

from amp_hooks.engine.run import bare_model
from amp_hooks.engine.runtime import Runtime
from amp_hooks.engine.tensors import nonfinite_names

PRECISIONS = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}
INTERVAL, AFTER, RESUMED = 3, 3, 2  # iterations
BEFORE, BEFORE_PREDICTIONS = 5, 22  # of the fault: these are watched from the 20th on
# Nothing of a scale is calibrated in so few iterations.
SCALE = 16.0
ABORTS = "torch aborts the process, without our hooks as well"
NAN = "its loss is not finite without our hooks either"


@dataclass
class Result:
    """What the runs of one family in one precision showed.

    Attributes:
        status: 'ok', 'failed' or 'cannot run'.
        reason: Why it is not ok.
        found: The layers that are watched.
        seconds: That it took.
    """

    status: str
    reason: str = ""
    found: list[str] = field(default_factory=list)
    seconds: float = 0.0


def configs_of(package: str) -> str:
    """The folder with a package's own configs."""
    module: Any = importlib.import_module(package)
    return osp.join(osp.dirname(module.__file__), ".mim", "configs")


def make_config(package: str, family: Family) -> Config:
    """A family's config, its model small enough for a CPU."""
    path = osp.join(configs_of(package), f"{family.config}.py")
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(copy.deepcopy(family.options))
    return cfg


def make_model(cfg: Config, size: int) -> ConfigDict:
    """Without what needs a download or full-size images."""
    model = strip(cfg.model.to_dict())
    if "data_preprocessor" in cfg:  # as Runner.from_cfg hands it on
        model.setdefault("data_preprocessor", strip(cfg.data_preprocessor.to_dict()))
    prepares = model.get("data_preprocessor") or {}
    augments = (cfg.model.get("data_preprocessor") or {}).get("batch_augments")
    if augments and cfg.get("default_scope") == "mmyolo":  # these make floats of bytes
        prepares["batch_augments"] = augments
    if prepares.get("size") is not None:  # mmseg's
        prepares["size"] = (size, size)
    return ConfigDict(model)


def build_runner(
    package: str,
    family: Family,
    work_dir: str,
    precision: str = "float32",
    hooks: list | None = None,
    iters: int = 2,
    resume: bool = False,
) -> Runner:
    """An ordinary Runner of a family."""
    cfg = make_config(package, family)
    model = make_model(cfg, family.size)
    wrapper: dict[str, Any] = dict(optimizer=dict(type="SGD", lr=1e-5))
    if precision != "float32":
        wrapper.update(type="amp_hooks.CpuAmpOptimWrapper", dtype=precision)
        scale = float(cfg.get("loss_scale", SCALE))
        wrapper["loss_scale"] = scale if precision == "float16" else "dynamic"
    loader = cfg.get("train_dataloader") or {}
    return Runner(
        model,
        work_dir,
        train_dataloader=dict(
            dataset=RandomSamples(
                family.data, cfg, family.size, min(num_classes(model), default=2)
            ),
            batch_size=2,
            num_workers=0,
            sampler=dict(type="InfiniteSampler", shuffle=False),
            collate_fn=loader.get("collate_fn", dict(type="pseudo_collate")),
        ),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=iters),
        optim_wrapper=wrapper,
        default_hooks=dict(
            logger=None, checkpoint=dict(by_epoch=False, type="CheckpointHook")
        ),
        custom_hooks=hooks or [],
        default_scope=package,
        experiment_name=uuid.uuid4().hex,  # message hub and visualizer are global
        randomness=dict(seed=0),
        resume=resume,
        log_level="CRITICAL",
    )


def suite(at: int | None, layer: str | None) -> list[dict[str, Any]]:
    """StabilityHook, and a fault, if there is to be one."""
    rollback = dict(interval=INTERVAL, probation=0, warmup_iters=0)
    hooks = [dict(type="amp_hooks.StabilityHook", rollback=rollback, preflight=None)]
    if layer is not None:
        fault = dict(what="parameter", where=f"{layer}.*", at=at)
        hooks.insert(0, dict(type="amp_hooks.FaultInjectionHook", faults=[fault]))
    return hooks


def expected(runner: Runner, patterns: tuple[str, ...]) -> set[str]:
    """Names of modules that match."""
    names = [name for name, _ in bare_model(runner).named_modules()]
    return {n for n in names if any(fnmatchcase(n, p) for p in patterns)}


def watched(runner: Runner) -> list[str]:
    """The layers whose magnitude was read, in the order of their losses."""
    layers: dict[str, None] = {}
    for record in Runtime.of(runner).recorder.records:
        layers.update(dict.fromkeys(record.values.get("logit_absmax", {})))
    return list(layers)


def events(work_dir: str) -> list[dict[str, Any]]:
    """All lines of the run's ledgers, in order."""
    paths = sorted(Path(work_dir).glob("*/stability.jsonl"))
    return [json.loads(line) for p in paths for line in p.read_text().splitlines()]


def check(package: str, family: Family, precision: str) -> Result:
    """Train, break, go back, end, resume."""
    if precision in family.aborts:
        return Result("cannot run", ABORTS)
    begin = time.perf_counter()
    result = Result("ok")
    try:
        with tempfile.TemporaryDirectory() as work_dir:
            result.reason = _through(package, family, precision, work_dir, result)
    except Exception as e:
        result.reason = _words(e)
    if result.reason:
        result.status = "failed"
        stock = without_us(package, family, precision)
        if stock in (NAN, result.reason):
            result.status, result.reason = "cannot run", stock
    result.seconds = time.perf_counter() - begin
    return result


def without_us(package: str, family: Family, precision: str) -> str:
    """What goes wrong without our hooks, if anything does."""
    try:
        with tempfile.TemporaryDirectory() as work_dir:
            runner = build_runner(package, family, work_dir, precision)
            runner.train()
    except Exception as e:
        return _words(e)
    loss = float(runner.message_hub.get_scalar("train/loss").current())
    return "" if math.isfinite(loss) else NAN


def _words(error: Exception) -> str:
    text = (str(error) or "no message").splitlines()[0]
    return f"{type(error).__name__}: {text[:160]}"


def _through(
    package: str, family: Family, precision: str, work_dir: str, result: Result
) -> str:
    """What does not hold; empty if all does."""
    patterns = family.layers or family.predictions
    at = BEFORE_PREDICTIONS if family.predictions else BEFORE
    bare = build_runner(package, family, work_dir, precision)
    layers = sorted(expected(bare, patterns))
    names = [n for n, p in bare_model(bare).named_parameters() if p.requires_grad]
    broken = [n for n in layers if any(name.startswith(f"{n}.") for name in names)]
    hooks = suite(at, broken[0] if broken else None)
    runner = build_runner(package, family, work_dir, precision, hooks, at + AFTER)
    runner.train()
    result.found = watched(runner)
    (watch,) = [w for w in Runtime.of(runner).forward.watches if w.kind == "layers"]
    if set(result.found) != set(layers):
        more = sorted(set(result.found) - set(layers))
        less = sorted(set(layers) - set(result.found))
        return f"not expected: {more}, not found: {less}"
    if set(watch.predictions) != set(() if family.layers else layers):
        return f"taken for predictions, not classifiers: {watch.predictions}"
    masks = nonfinite_names(bare_model(bare).state_dict(), limit=1000)
    now = nonfinite_names(bare_model(runner).state_dict(), limit=1000)
    if spoiled := sorted(set(now) - set(masks)):
        return f"not finite in the end: {spoiled}"
    lines = [line for line in events(work_dir) if line["event"] not in _ALWAYS]
    kinds = [line["event"] for line in lines]
    if broken:
        wanted = ["overflow", "rollback"]
        if [k for k in kinds if k in wanted] != wanted:
            return f"not one rollback: {kinds}"
        rollback = next(line for line in lines if line["event"] == "rollback")
        if rollback["target_iter"] > at:
            return f"went back to {rollback['target_iter']}, the fault was at {at}"
    if unexpected := sorted(set(kinds) - _EXPECTED):
        return f"not expected in the ledger: {unexpected}"
    ended = runner.iter
    again = build_runner(
        package, family, work_dir, precision, suite(None, None), ended + RESUMED, True
    )
    again.train()
    taken = len(Runtime.of(again).recorder.records)
    if again.iter != ended + RESUMED or taken > RESUMED:
        return f"resumed, it ended at {again.iter}, not at {ended + RESUMED}"
    return ""


_ALWAYS = {"start", "end", "snapshot", "preflight", "resume"}
_EXPECTED = {"overflow", "veto", "rollback", "forensics", "clamp_on", "fault"}
_EXPECTED |= {"bad_batch", "boxes", "nan_term"}


def row(name: str, results: dict[str, Result], family: Family) -> str:
    """One line of the table, which is also valid Markdown."""
    first = next(iter(results.values()))
    reasons = [f"{PRECISIONS[p]}: {r.reason}" for p, r in results.items() if r.reason]
    what = "" if family.layers else " (predictions)"
    cells = (
        name,
        *(r.status for r in results.values()),
        (short(first.found) + what) if first.found else "none",
        family.config,
        "; ".join(dict.fromkeys(reasons)),
    )
    return "| " + " | ".join(cells) + " |"


def chosen(names: list[str]) -> list[tuple[str, str]]:
    """Package and family of each name, ``package`` or ``package/family``."""
    made = []
    for name in names:
        package, _, family = name.partition("/")
        if package not in SIBLINGS or (family and family not in SIBLINGS[package]):
            raise SystemExit(f"error: no such family: {name}. See --list.")
        families = [family] if family else list(SIBLINGS[package])
        made += [(package, f) for f in families]
    return made


def main() -> None:
    """Go through the families, print a line for each, and count."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--families", nargs="+", metavar="NAME", default=list(SIBLINGS))
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS)
    )
    parser.add_argument("--list", action="store_true", help="print the families' names")
    args = parser.parse_args()
    names = chosen(args.families)
    if args.list:
        print("\n".join("/".join(name) for name in names))
        return
    warnings.simplefilter("ignore")  # the packages' and torch's own
    torch.set_num_threads(1)
    titles = ("family", *(PRECISIONS[p] for p in args.precisions), "layers", "config")
    print("| " + " | ".join((*titles, "reason")) + " |")
    print("|---" * (len(titles) + 1) + "|")
    count: dict[str, int] = {}
    for package, name in names:
        family = SIBLINGS[package][name]
        results = {p: check(package, family, p) for p in args.precisions}
        worst = max((r.status for r in results.values()), key=_ORDER.index)
        count[worst] = count.get(worst, 0) + 1
        print(row(f"{package}/{name}", results, family), flush=True)
        gc.collect()
    print("\n" + ", ".join(f"{n} {status}" for status, n in count.items()))
    sys.exit(bool(count.get("failed")))


_ORDER = ["ok", "cannot run", "failed"]

if __name__ == "__main__":
    main()
