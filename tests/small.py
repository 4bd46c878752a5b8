"""A run of a few milliseconds an iteration: one head, two moons of classes, no files.

Real Runners with real optimizers; what is small is the model. The tests on mmdet's
detectors are beside those that use it.
"""

import json
import uuid
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as F

DTYPES = (None, "bfloat16", "float16")


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc_cls, self.loss_cls = nn.Linear(16, 4), nn.CrossEntropyLoss()


class Small(BaseModel):
    """A backbone with BatchNorm and a classifier; subclasses break it."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.bbox_head = Head()
        self.calls = 0

    def forward(self, x, y, mode="loss"):
        features = self.backbone(x)
        logits = self.bbox_head.fc_cls(features)
        if mode != "loss":
            return logits
        self.calls += 1
        return self.losses(features, logits, y)

    def losses(self, features, logits, y):
        return dict(loss_cls=self.bbox_head.loss_cls(logits.float(), y))


class Scaled(Small):
    """A hook multiplies what a batch costs: ``model.factor``."""

    factor = 1.0

    def losses(self, features, logits, y):
        losses = super().losses(features, logits, y)
        return {name: self.factor * loss for name, loss in losses.items()}


class Wide(Small):
    """Learns it well: a loss near 0.01."""

    def __init__(self):
        super().__init__()
        layers = [nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
        self.backbone = nn.Sequential(*layers, nn.Linear(64, 16), nn.ReLU())


class OwnStep(Wide):
    """The batch cannot be run again by calling the model."""

    def train_step(self, data, optim_wrapper):
        data = self.data_preprocessor(data, True)
        with optim_wrapper.optim_context(self):
            logits = self.bbox_head.fc_cls(self.backbone(data["x"]))
            loss = F.cross_entropy(logits.float(), data["y"])
        optim_wrapper.update_params(loss)
        return dict(loss=loss.detach())


def samples(n=256):
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    return [dict(x=a, y=int(b)) for a, b in zip(x, y)]


class Seen(Hook):
    """Losses and a copy of the state before each iteration, by iteration."""

    priority = "LOWEST"

    def __init__(self, keep=()):
        self.losses, self.keep, self.states = [], keep, {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter in self.keep:
            self.states[runner.iter] = state(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(
            float(torch.as_tensor((outputs or {}).get("loss", float("nan"))).detach())
        )


def state(runner):
    model = runner.model
    model = model.module if hasattr(model, "module") else model
    return {name: value.clone() for name, value in model.state_dict().items()}


class RaiseLR(Hook):
    """Somebody multiplies the learning rate, once."""

    def __init__(self, factor, at=60):
        self.factor, self.at = factor, at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            for group in runner.optim_wrapper.param_groups:
                group["lr"] *= self.factor


class SpoilInputs(Hook):
    """Inputs of a value, in some iterations."""

    priority = 1

    def __init__(self, at, value=float("nan")):
        self.at, self.value = at, value

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter in self.at:
            data_batch["x"][0] = self.value


def build(tmp_path, hooks=(), model=Small, dtype=None, iters=120, epochs=None, **more):
    """A runner; ``epochs`` of 32 iterations in place of ``iters``."""
    torch.manual_seed(0)
    wrapper = dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9))
    if dtype:
        # A scale at which nothing overflows while it is calibrated.
        wrapper.update(type="amp_hooks.CpuAmpOptimWrapper", dtype=dtype)
        wrapper.update(loss_scale=128.0 if dtype == "float16" else "dynamic")
    wrapper.update(more.pop("wrapper", {}))
    wrapper = more.pop("optim_wrapper", wrapper)
    by_epoch, name = epochs is not None, uuid.uuid4().hex
    sampler = "DefaultSampler" if by_epoch else "InfiniteSampler"
    loop = dict(max_epochs=epochs) if by_epoch else dict(max_iters=iters)
    runner = more.pop("kind", Runner)(
        model=model() if isinstance(model, type) else model,
        work_dir=str(more.pop("work_dir", tmp_path / name)),
        experiment_name=name,
        randomness=dict(seed=0),
        optim_wrapper=wrapper,
        train_dataloader=dict(
            dataset=more.pop("dataset", None) or samples(),
            batch_size=8,
            num_workers=0,
            collate_fn=dict(type="default_collate"),
            sampler=dict(type=sampler, shuffle=True),
        ),
        train_cfg=dict(by_epoch=by_epoch, **loop),
        custom_hooks=[h for h in hooks if isinstance(h, dict)],
        log_level=more.pop("log_level", "ERROR"),
        default_hooks=dict(
            checkpoint=dict(
                dict(type="CheckpointHook", by_epoch=False, save_last=False),
                **more.pop("checkpoint", dict(interval=10**9)),
            )
        ),
        visualizer=dict(
            type="Visualizer", name=name, vis_backends=[dict(type="LocalVisBackend")]
        ),
        default_scope="mmengine",
        cfg=Config(more.pop("cfg", {})),
        **more,
    )
    for hook in hooks:
        if isinstance(hook, Hook):
            runner.register_hook(hook)
    return runner


def ledger(runner, *events):
    """Lines of the ledger, of some events or all."""
    path = Path(runner.log_dir) / "stability.jsonl"
    text = path.read_text().splitlines() if path.exists() else []
    lines = [json.loads(line) for line in text]
    return [line for line in lines if not events or line["event"] in events]


def same(a, b):
    """Whether two states are so bit for bit, NaN where NaN is."""
    return a.keys() == b.keys() and all(
        torch.equal(a[k].nan_to_num(7), b[k].nan_to_num(7)) for k in a
    )
