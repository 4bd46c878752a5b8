"""Run a kept fault again and say with which precision and remedy it is finite."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from ..clamp.head_clamp_hook import HeadClampHook
from ..clamp.head_guard import HeadGuard
from ..engine.command_line import Parser, UserError, or_failed
from ..engine.progress import progress
from ..engine.recorder import FlightRecorder
from ..precision.cpu_amp import CpuAmpOptimWrapper
from .dump import WEIGHTS, load_call, load_report, load_weights, to_device
from .replay import Call, Replay, run_call
from .report import brief

_DESCRIPTION = """\
Run a kept fault again and say in which precision, with which remedy, it is finite.

FOLDER is ForensicsHook's; CONFIG is the run's. Without --fp32 and --clamp all of them
are tried: the run's precision, FP32 and BF16, each without and with the classifier
layers clamped as HeadClampHook does. A fault that was injected does not repeat here.
"""
_EPILOG = """\
example:
  amp-hooks replay work_dirs/RUN/TIMESTAMP/faults/iter_N CONFIG

exit status:
  0   what was asked for is finite (of several: one is)
  1   it is not
  64  wrong arguments
  66  FOLDER, CONFIG or weights are not there, or cannot be used
  70  the replay itself failed
"""


def wrapper_for(model: nn.Module, dtype: str) -> OptimWrapper:
    """Something with the precision of a run; its optimizer takes no step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    if dtype == "float32":
        return OptimWrapper(optimizer)
    on_cpu = next(model.parameters()).device.type == "cpu"
    wrapper = CpuAmpOptimWrapper if on_cpu else AmpOptimWrapper
    return wrapper(optimizer=optimizer, dtype=dtype, loss_scale=1.0)


def run(
    model: nn.Module, call: Call, dtype: str, layers: list[str], limit: float
) -> Replay:
    """Run the batch in one precision, with these layers clamped."""
    guard = HeadGuard(FlightRecorder(), limit, soft=False)
    for layer in layers:
        guard.add(model, layer)
    guard.on = bool(layers)
    try:
        return run_call(model, wrapper_for(model, dtype), call, 1.0, frames=21)
    finally:
        guard.remove()


def main(arguments: Sequence[str] | None = None, prog: str = "amp-hooks replay") -> int:
    """Load the fault, try what was asked for; returns the exit status."""
    parser = Parser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="of ForensicsHook: faults/iter_N"
    )
    parser.add_argument(
        "config", type=Path, metavar="CONFIG", help="the run's config file"
    )
    parser.add_argument("--fp32", action="store_true", help="only in FP32")
    parser.add_argument("--clamp", action="store_true", help="only with the head clamp")
    parser.add_argument(
        "--weights",
        type=Path,
        help="a checkpoint to use in place of the weights that were kept",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="the batch holds classes of your own; reading it may run code",
    )
    args = parser.parse_args(arguments)
    return or_failed(lambda: replay(parser, args))


def replay(parser: Parser, args: argparse.Namespace) -> int:
    """The same, of arguments that are in order; prints a line for each try."""
    report, model, call = load(args)
    call = to_device(call, next(model.parameters()).device)
    print(f"iteration {report['iter']}, {report['verdict']}: {report['finding']}")
    layers = report["layers"]
    if args.clamp and not layers:
        parser.error("the run had found no classifier layers to clamp")
    precisions = ["float32"] if args.fp32 else [report["dtype"]]
    clamps = [args.clamp]
    if not (args.fp32 or args.clamp):
        precisions += [d for d in ("float32", "bfloat16") if d != report["dtype"]]
        clamps = [False, True] if layers else [False]
    finite = []
    for dtype in precisions:
        for clamp in clamps:
            # Without more, as it was: a clamp may have been on already.
            guarded = layers if clamp else report["clamped"]
            limit = report["clamp_limit"] or HeadClampHook().limit
            name = dtype + (" with the head clamp" if clamp else "")
            with progress(name):
                result = run(model, call, dtype, guarded, limit)
            finite.append(result.finite)
            print(f"{name:30} {brief(result)}")
    return 0 if any(finite) else 1


def load(args: argparse.Namespace) -> tuple[dict[str, Any], nn.Module, Call]:
    """What was kept of the fault: its report, its weights in a model, its batch."""
    if not args.config.is_file():
        raise UserError(f"there is no config {args.config}")
    try:
        report = load_report(str(args.folder))
    except OSError as e:
        raise UserError(
            f"{args.folder} holds no report.json: name a folder that ForensicsHook "
            "has written, WORK_DIR/TIMESTAMP/faults/iter_N"
        ) from e
    except ValueError as e:
        raise UserError(f"{args.folder}: report.json is damaged: {e}") from e
    model = load_model(args, args.folder)
    try:
        call = load_call(str(args.folder), args.trust)
    except FileNotFoundError as e:
        notes = report.get("notes")
        raise UserError(f"{args.folder} was written without its batch: {notes}") from e
    except pickle.UnpicklingError as e:
        trust = "--trust reads it all the same, if you know who wrote it"
        raise UserError(f"{e}\n{trust}") from e
    return report, model, call


def load_model(args: argparse.Namespace, folder: Path) -> nn.Module:
    """The run's model with the weights of the fault, in training mode."""
    try:
        cfg = Config.fromfile(args.config)
    except Exception as e:  # a config is a program
        raise UserError(
            f"config {args.config} cannot be read: {type(e).__name__}: {e}"
        ) from e
    init_default_scope(cfg.get("default_scope", "mmdet"))
    model = MODELS.build(cfg.model)
    try:
        if args.weights is None:
            load_weights(model, str(folder))
        else:
            kept = torch.load(args.weights, map_location="cpu", weights_only=True)
            model.load_state_dict(kept["state_dict"])
    except FileNotFoundError as e:
        raise UserError(
            f"{e}. The weights of the fault were not kept ({WEIGHTS}); name a "
            "checkpoint: --weights WORK_DIR/rollback/iter_N.pth"
        ) from e
    except RuntimeError as e:
        raise UserError(f"{args.config} is not the config of that run: {e}") from e
    return model.cuda().train() if torch.cuda.is_available() else model.train()
