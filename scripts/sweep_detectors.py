"""Train every detector family of mmdet for two iterations; are its classifiers found?

    python scripts/sweep_detectors.py                # all families
    python scripts/sweep_detectors.py --families retinanet yolox detr

Each family is trained on a CPU by an ordinary Runner, from mmdet's own config, without
pretrained weights and on random images. ClsScoreMonitorHook must find exactly the
layers of sweep_families.py and read their logits, and HeadClampHook must reach them.
Exit status 1 if it does not hold in a family that runs.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os.path as osp
import signal
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import mmdet
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from sweep_families import FAMILIES, Family
from torch.utils.data import Dataset

from amp_hooks.engine.runtime import Runtime

CONFIGS = osp.join(osp.dirname(mmdet.__file__), ".mim", "configs")
HOOKS = [
    dict(type="amp_hooks.ClsScoreMonitorHook"),
    # Small enough to change every head's logits.
    dict(type="amp_hooks.HeadClampHook", when="always", limit=1e-6),
]


@dataclass
class Result:
    """What two iterations of one family showed.

    Attributes:
        status: 'ok', 'failed' or 'cannot run'.
        reason: Why it is not ok.
        found: The layers, in the order of their losses.
        absmax: Largest |logit| by layer, over both iterations.
        clamped: Fraction of the logits that the clamp changed, by layer.
        seconds: Time that building and training took.
    """

    status: str
    reason: str = ""
    found: list[str] = field(default_factory=list)
    absmax: dict[str, float] = field(default_factory=dict)
    clamped: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class RandomImages(Dataset):
    """Random images with random boxes and, if asked for, masks and semantic maps."""

    def __init__(self, family: Family, num_classes: int, with_mask: bool) -> None:
        self.family, self.num_classes, self.with_mask = family, num_classes, with_mask

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self._item(index)
        if self.family.data == "branches":  # of semi-supervised training
            names = ("sup", "unsup_teacher", "unsup_student")
            return {
                key: {name: self._item(index)[key] for name in names} for key in item
            }
        return item

    def _item(self, index: int) -> dict[str, Any]:
        rng, size = np.random.default_rng(index), self.family.size
        low = rng.uniform(0, 0.5, (4, 2))
        corners = np.concatenate([low, low + rng.uniform(0.2, 0.5, (4, 2))], 1) * size
        boxes = torch.tensor(corners, dtype=torch.float32)
        labels = torch.tensor(rng.integers(self.num_classes, size=len(boxes)))
        sample = DetDataSample(
            metainfo=dict(
                img_id=index,
                img_shape=(size, size),
                ori_shape=(size, size),
                pad_shape=(size, size),
                batch_input_shape=(size, size),
                scale_factor=(1.0, 1.0),
                flip=False,
                flip_direction=None,
                homography_matrix=np.eye(3, dtype=np.float32),
                border=(0, 0, 0, 0),
            ),
            gt_instances=InstanceData(bboxes=boxes, labels=labels),
            ignored_instances=InstanceData(bboxes=boxes[:0], labels=labels[:0]),
        )
        if self.with_mask:
            masks = np.zeros((len(boxes), size, size), np.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, corners.astype(int)):
                mask[y1:y2, x1:x2] = 1
            sample.gt_instances.masks = BitmapMasks(masks, size, size)
            sample.ignored_instances.masks = BitmapMasks(masks[:0], size, size)
        if self.family.semantic:
            cells = size // self.family.semantic
            semantic = rng.integers(self.num_classes, size=(1, cells, cells))
            sample.gt_sem_seg = PixelData(sem_seg=torch.tensor(semantic))
        if self.family.data == "proposals":
            sample.proposals = InstanceData(
                bboxes=boxes + 2, scores=torch.ones(len(boxes))
            )
        image = torch.tensor(rng.integers(256, size=(3, size, size)), dtype=torch.uint8)
        return dict(inputs=image, data_samples=sample)


def strip(node: Any) -> Any:
    """Leave out what needs a download, several GPUs or full-size images."""
    if isinstance(node, (list, tuple)):
        return type(node)(strip(value) for value in node)
    if not isinstance(node, dict):
        return "BN" if node in ("SyncBN", "MMSyncBN") else node
    init = node.get("init_cfg")
    if isinstance(init, dict) and "checkpoint" in init:
        node["init_cfg"] = None
    for key in ("pretrained", "batch_augments"):
        if node.get(key):
            node[key] = None
    for key, most in (("num", 64), ("nms_pre", 200), ("max_per_img", 200)):
        if isinstance(node.get(key), int):  # regions of an image
            node[key] = min(node[key], most)
    for key, value in node.items():
        node[key] = strip(value)
    return node


def num_classes(node: Any) -> list[int]:
    """Every number of classes that a config names."""
    if isinstance(node, (list, tuple)):
        return [n for value in node for n in num_classes(value)]
    if not isinstance(node, dict):
        return []
    counts = [v for k, v in node.items() if k.endswith("_classes") and v]
    return [n for n in counts if isinstance(n, int)] + num_classes(list(node.values()))


def build_runner(
    family: Family, work_dir: str, hooks: list | None = None, iters: int = 2
) -> Runner:
    """An ordinary Runner, by default with the monitor and the clamp."""
    cfg = Config.fromfile(osp.join(CONFIGS, f"{family.config}.py"))
    cfg.merge_from_dict(family.options)
    model = ConfigDict(strip(cfg.model.to_dict()))
    if "teacher_config" in model:
        model["teacher_config"] = osp.join(
            CONFIGS, model["teacher_config"].split("configs/")[-1]
        )
    text = str(cfg.to_dict())
    with_mask = "'with_mask': True" in text or "LoadPanopticAnnotations" in text
    dataset = RandomImages(family, min(num_classes(model), default=1), with_mask)
    return Runner(
        model,
        work_dir,
        train_dataloader=dict(
            dataset=dataset,
            batch_size=2,
            num_workers=0,
            sampler=dict(type="InfiniteSampler", shuffle=False),
            collate_fn=dict(type="pseudo_collate"),
        ),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=iters),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=1e-6)),
        default_hooks=dict(checkpoint=None, logger=None),
        custom_hooks=hooks or HOOKS,
        default_scope="mmdet",
        experiment_name=uuid.uuid4().hex,  # message hub and visualizer are global
        randomness=dict(seed=0),
        log_level="CRITICAL",
    )


def missing(family: Family, runner: Runner, result: Result) -> str:
    """What is promised and did not show; empty if all is well."""
    names = [name for name, _ in runner.model.named_modules()]
    expected = {n for n in names if any(fnmatchcase(n, p) for p in family.layers)}
    found = set(result.found)
    if found != expected or not found:
        more, less = sorted(found - expected), sorted(expected - found)
        return f"not expected: {more}, not found: {less}"
    if set(result.absmax) != found:
        return "logits not read"
    untouched = sorted(name for name in found if not result.clamped.get(name))
    return f"clamp does not reach {untouched}" if untouched else ""


def check(name: str, timeout: int = 120) -> Result:
    """Train one family and compare what was found with what is there.

    Args:
        name: A key of ``FAMILIES``.
        timeout: Seconds after which it is given up; 0 for none.
    """
    family = FAMILIES[name]
    if family.cannot:
        return Result("cannot run", family.cannot)
    begin = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as work_dir, _alarm(timeout):
            runner = build_runner(family, work_dir)
            runner.train()
            runner.visualizer.close()
            records = list(Runtime.of(runner).recorder.records)
    except Exception as e:
        text = (str(e) or "no message").splitlines()[0]
        reason = f"{type(e).__name__}: {text[:160]}"
        return Result("failed", reason, seconds=time.perf_counter() - begin)
    result = Result("ok", seconds=time.perf_counter() - begin)
    for record in records:
        for layer, value in record.values.get("logit_absmax", {}).items():
            result.absmax[layer] = max(value, result.absmax.get(layer, 0.0))
        result.clamped.update(record.values.get("clamped", {}))
    result.found = list(result.absmax)
    result.reason = missing(family, runner, result)
    if result.reason:
        result.status = "failed"
    return result


@contextlib.contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    def stop(*args: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    if not seconds:
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def short(layers: list[str]) -> str:
    """``a.0.b, a.1.b, a.2.b`` as ``a.0-2.b``."""
    groups: dict[tuple[str, ...], list[list[int]]] = {}
    for layer in layers:
        parts = layer.split(".")
        key = tuple("#" if p.isdigit() else p for p in parts)
        groups.setdefault(key, []).append([int(p) for p in parts if p.isdigit()])
    texts = []
    for key, numbers in groups.items():
        text = ".".join(key)
        for column in zip(*numbers):
            low, high = min(column), max(column)
            text = text.replace("#", f"{low}" if low == high else f"{low}-{high}", 1)
        texts.append(text)
    return ", ".join(texts)


def row(name: str, result: Result) -> str:
    """One line of the table, which is also valid Markdown."""
    absmax = f"{max(result.absmax.values()):.3g}" if result.absmax else "-"
    reached = sum(bool(result.clamped.get(n)) for n in result.found)
    cells = (
        name.ljust(25),
        result.status.ljust(10),
        f"{len(result.found):2d}",
        absmax.rjust(8),
        f"{reached} of {len(result.found)}",
        f"{result.seconds:5.1f}",
        short(result.found),
        FAMILIES[name].config,
        result.reason,
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Go through the families, print a line for each, and count."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--families", nargs="+", metavar="NAME", default=list(FAMILIES))
    parser.add_argument("--list", action="store_true", help="print the families' names")
    parser.add_argument(
        "--timeout", type=int, default=120, help="seconds for each family"
    )
    args = parser.parse_args()
    if args.list:
        print("\n".join(FAMILIES))
        return
    if unknown := sorted(set(args.families) - set(FAMILIES)):
        parser.error(f"no such families: {', '.join(unknown)}. See --list.")
    warnings.simplefilter("ignore")  # mmdet's and torch's own; they would bury the rows
    torch.set_num_threads(1)  # two threads gain little on images of this size
    titles = ("family", "status", "layers", "abs(logit)", "clamped", "seconds")
    titles = (*titles, "classifier layers", "config", "reason")
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    count: dict[str, int] = {}
    for name in args.families:
        result = check(name, args.timeout)
        count[result.status] = count.get(result.status, 0) + 1
        print(row(name, result), flush=True)
        gc.collect()
    print("\n" + ", ".join(f"{n} {status}" for status, n in count.items()))
    sys.exit(bool(count.get("failed")))


if __name__ == "__main__":
    main()
