"""How early does ClsScoreMonitorHook warn, and does it ever warn in vain?

    python scripts/bench_early_warning.py

trains the small digits Faster R-CNN in FP16 with its learning rate multiplied by 1.02
in every iteration until the loss is not finite, once per seed; and healthy runs with
the configs' own schedule, in FP32, FP16 and BF16 (RetinaNet, since mmcv's NMS refuses
bfloat16 on a CPU). It prints a row per run and exits with 1 if a warning came less than
10 iterations before the first non-finite loss, or in a healthy run. About 25 minutes on
one core; make the data first: ``python scripts/make_digits.py``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import uuid
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

ROOT = Path(__file__).resolve().parent.parent
FASTER_RCNN = "configs/digits/faster-rcnn_r18_fpn_fp16.py"
RETINANET = "configs/digits/retinanet_r18_fpn_fp16_stability.py"
# config, precision; each with another seed.
HEALTHY = [
    *[(FASTER_RCNN, "float16"), (RETINANET, "float16")] * 2,
    *[(FASTER_RCNN, "float32"), (FASTER_RCNN, "float32"), (RETINANET, "float32")],
    *[(RETINANET, "bfloat16")] * 3,
]
MARGIN = 10  # iterations


class StopWhenDead(Hook):
    """Ends the training when the loss is not finite."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Look at the loss."""
        if not math.isfinite(outputs["loss"].item()):
            runner.train_loop.stop_training = True


def prepare(config: Path, precision: str, seed: int, iters: int, ramp: bool) -> Config:
    """The config with the monitor as its only custom hook."""
    cfg = Config.fromfile(config)
    cfg.experiment_name = cfg.visualizer.name = uuid.uuid4().hex
    cfg.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    cfg.custom_hooks = [dict(type="amp_hooks.ClsScoreMonitorHook")]
    cfg.randomness = dict(seed=seed)
    cfg.log_level = "ERROR"
    cfg.train_cfg = dict(
        type="IterBasedTrainLoop", max_iters=iters, val_interval=iters + 1
    )
    cfg.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=True)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    cfg.log_processor.by_epoch = False
    cfg.default_hooks.checkpoint = None
    if precision == "float32":
        cfg.optim_wrapper.type = "OptimWrapper"
        for key in ("dtype", "loss_scale"):
            cfg.optim_wrapper.pop(key)
    else:
        cfg.optim_wrapper.dtype = precision
    schedule = dict(type="CosineAnnealingLR", by_epoch=False, begin=50, end=iters)
    if ramp:
        schedule = dict(type="ExponentialLR", gamma=1.02, by_epoch=False)
    cfg.param_scheduler = [*([] if ramp else cfg.param_scheduler[:1]), schedule]
    return cfg


def train(cfg: Config) -> tuple[int | None, int | None]:
    """Train; returns the iterations of the first warning and non-finite loss."""
    with tempfile.TemporaryDirectory() as work_dir:
        cfg.work_dir = work_dir
        runner = Runner.from_cfg(cfg)
        runner.register_hook(StopWhenDead(), priority="LOWEST")
        runner.train()
        losses = runner.message_hub.get_scalar("train/loss").data[0]
        ledger = Path(runner.log_dir) / "stability.jsonl"
        lines = ledger.read_text().splitlines() if ledger.exists() else []
    events = [json.loads(line) for line in lines]
    warned = [e["iter"] for e in events if e["event"] == "early_warning"]
    dead = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
    return next(iter(warned), None), next(iter(dead), None)


def main() -> int:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="runs of rising LR")
    parser.add_argument("--healthy", type=int, default=len(HEALTHY), help="of 10")
    parser.add_argument("--iters", type=int, default=300, help="of a healthy run")
    args = parser.parse_args()
    if not Path("data/digits/train.json").exists():
        parser.error("data/digits is missing: python scripts/make_digits.py")
    print("| run | precision | seed | warned | loss not finite | iterations ahead |")
    print("|---|---|---|---|---|---|")
    missed = 0
    runs = [(FASTER_RCNN, "float16", seed, True) for seed in range(args.seeds)]
    for i, (config, precision) in enumerate(HEALTHY[: args.healthy]):
        runs.append((config, precision, i, False))
    for config, precision, seed, ramp in runs:
        iters = 500 if ramp else args.iters
        warned, dead = train(prepare(ROOT / config, precision, seed, iters, ramp))
        ahead = None if warned is None or dead is None else dead - warned
        missed += (ahead is None or ahead < MARGIN) if ramp else warned is not None
        name = Path(config).name.split("_")[0] + (", LR x1.02" if ramp else "")
        cells = ["-" if x is None else str(x) for x in (warned, dead, ahead)]
        print(f"| {name} | {precision} | {seed} | {' | '.join(cells)} |", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
