"""The command line."""

from __future__ import annotations

import argparse
import os.path as osp
import sys
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.runner import find_latest_checkpoint

from ..engine.command_line import (
    NO_INPUT,
    USAGE,
    Parser,
    UserError,
    or_failed,
    print_out,
)
from ..engine.finding import numbered
from ..engine.safe_load import allow_mmengine_checkpoints
from ..engine.words import count
from ..rollback.checkpoint_file import Header, damage, read_header
from .check import check, lines_of
from .of_config import facts_of_config, gpus_of_name

_EPILOG = """\
examples:
  amp-hooks check-config configs/my_8xb2.py --amp
  amp-hooks check-config configs/my.py --gpus 8 --resume

exit status:
  0   nothing found
  1   findings
  64  wrong arguments
  66  CONFIG, or the checkpoint to be resumed, cannot be read
  70  the check itself failed
"""


class _Options(DictAction):
    """MMEngine's, with an error of use for what it cannot take apart."""

    def __call__(self, parser: Any, namespace: Any, values: Any, *more: Any) -> None:
        try:
            super().__call__(parser, namespace, values, *more)
        except Exception as e:
            given = " ".join(values)
            parser.error(f"--cfg-options {given} is not KEY=VALUE ({e})")


def parse_args(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """The arguments."""
    parser = Parser(
        prog=prog,
        description="Find what is known to hurt training in a config, before it "
        "starts.\nNeeds no GPU and no data set.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="path of the config file")
    parser.add_argument(
        "--gpus",
        type=_positive,
        metavar="N",
        help="processes that will train, for the learning rate; if left out, what the "
        "file's name tells (8xb32: 8), else 1",
    )
    parser.add_argument(
        "--amp",
        action="store_true",
        help="the run will be started with --amp of MMDetection's tools/train.py",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="with its --auto-scale-lr",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH",
        help="the run will continue from that checkpoint, or from the newest one in "
        "the work dir",
    )
    parser.add_argument("--work-dir", help="where the checkpoints are")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_Options,
        metavar="KEY=VALUE",
        help="override settings of the config, as for training",
    )
    return parser.parse_args(arguments)


def main(
    arguments: Sequence[str] | None = None, prog: str = "amp-hooks check-config"
) -> int:
    """Print the findings; returns the exit status."""
    args = parse_args(arguments, prog)
    return or_failed(lambda: _check(args))


def _check(args: argparse.Namespace) -> int:
    cfg = _read(args)
    resume, header = _checkpoint(args, cfg)
    saved_ema = header.ema if header else None
    gpus = args.gpus or _gpus(cfg)
    found = check(cfg, facts_of_config(cfg, gpus, resume, saved_ema))
    if found:
        print_out(f"{numbered(found, lines_of(cfg))}\n")
    return 1 if found else 0


def _read(args: argparse.Namespace) -> Config:
    if not osp.isfile(args.config):
        raise UserError(f"config {args.config!r} is not a file", NO_INPUT)
    try:
        cfg = Config.fromfile(args.config)
    except Exception as e:  # a config is a program
        raise UserError(
            f"config {args.config!r} cannot be read: {type(e).__name__}: {e}", NO_INPUT
        ) from e
    try:
        cfg.merge_from_dict(args.cfg_options or {})
    except Exception as e:
        raise UserError(
            f"--cfg-options {args.cfg_options!r} do not fit the config: "
            f"{type(e).__name__}: {e}",
            USAGE,
        ) from e
    _start_options(args, cfg)
    return cfg


def _start_options(args: argparse.Namespace, cfg: Config) -> None:
    """What MMDetection's tools/train.py makes of its options."""
    if args.amp:
        if "optim_wrapper" not in cfg:
            raise UserError("--amp: the config has no optim_wrapper", USAGE)
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.loss_scale = "dynamic"
    if args.auto_scale_lr:
        given = cfg.get("auto_scale_lr") or {}
        if "enable" not in given or "base_batch_size" not in given:
            raise UserError(
                "--auto-scale-lr: the config has no auto_scale_lr with enable and "
                "base_batch_size, and tools/train.py ends with that",
                USAGE,
            )
        cfg.auto_scale_lr.enable = True


def _gpus(cfg: Config) -> int:
    """What is assumed of the processes, and said: the learning rate depends on it."""
    named = gpus_of_name(cfg)
    gpus = named or 1
    why = ", as the file's name tells" if named else ""
    print(
        f"Checked for {count(gpus, 'GPU')}{why}; --gpus N for another number.",
        file=sys.stderr,
    )
    return gpus


def _checkpoint(args: argparse.Namespace, cfg: Config) -> tuple[bool, Header | None]:
    """Whether the run will be resumed, and the header of its checkpoint."""
    if not args.resume and not cfg.get("resume"):
        return False, None
    path = None if args.resume == "auto" else args.resume or cfg.get("load_from")
    if path is None:
        stem = osp.splitext(osp.basename(args.config))[0]
        work_dir = args.work_dir or cfg.get("work_dir") or osp.join("work_dirs", stem)
        path = find_latest_checkpoint(work_dir) if osp.isdir(work_dir) else None
        if path is None:
            return False, None  # then it begins at the beginning
    allow_mmengine_checkpoints()
    header = read_header(path)
    if header is None and "://" not in path:
        words = damage(path) or "it is not one of MMEngine's"
        raise UserError(f"checkpoint {path!r}: {words}", NO_INPUT)
    return True, header


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, not {text!r}")
    return number
