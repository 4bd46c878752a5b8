"""Train from a config, as MMDetection's tools/train.py does.

    python scripts/train.py CONFIG [--work-dir DIR] [--resume [PATH]]
        [--cfg-options K=V ...]

Nothing here is needed for amp_hooks: any script that builds a Runner from a config
trains with our hooks.
"""

from __future__ import annotations

import argparse
import os
import os.path as osp
import sys

from mmengine.config import Config, DictAction
from mmengine.runner import Runner


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("config", help="path of the config file")
    parser.add_argument("--work-dir", help="where logs and checkpoints go")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH",
        help="continue from that checkpoint, or from the newest one in the work dir",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override settings of the config",
    )
    parser.add_argument(
        "--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Build the Runner and train."""
    args = parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    if not osp.isfile(args.config):
        sys.exit(f"error: config {args.config!r} is not a file")
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    stem = osp.splitext(osp.basename(args.config))[0]
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or osp.join("work_dirs", stem)
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    try:
        os.makedirs(cfg.work_dir, exist_ok=True)
    except OSError as e:
        sys.exit(
            f"error: cannot write work_dir {cfg.work_dir!r} ({e}); give a "
            "writable folder with --work-dir"
        )
    Runner.from_cfg(cfg).train()


if __name__ == "__main__":
    main()
