"""Runners for bench_overhead.py that stand still between two iterations."""

from __future__ import annotations

import copy
import time
import uuid
from operator import itemgetter

import mmengine.device.utils
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from amp_hooks.engine.runtime import Runtime

DETECTORS = {
    "classifier": ("classifier of five levels behind 6 BatchNorms, all tiny", ""),
    "faster_rcnn": ("Faster R-CNN R50-FPN", "faster-rcnn_r50_fpn"),
    "retinanet": ("RetinaNet R50-FPN", "retinanet_r50_fpn"),
}


class Classifier(BaseModel):
    """So small that an iteration is nothing but Python and launches."""

    def __init__(self):
        super().__init__()
        layers = [(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)) for _ in range(6)]
        self.backbone = nn.Sequential(*[layer for pair in layers for layer in pair])
        self.bbox_head = nn.Module()
        self.bbox_head.fc_cls = nn.Linear(8, 4)
        self.bbox_head.loss_cls = nn.CrossEntropyLoss()

    def forward(self, inputs, data_samples=None, mode="loss"):
        """The losses of a batch."""
        head, features = self.bbox_head, self.backbone(inputs)
        levels = [head.fc_cls(features).float() for _ in range(5)]
        return dict(loss_cls=[head.loss_cls(x, data_samples) for x in levels])


def prepare(args):
    """The process, for all that is measured in it."""
    if args.threads:
        torch.set_num_threads(args.threads)
    mmengine.device.utils.DEVICE = args.device  # where Runner puts the model
    register_all_modules()
    # Or it tells how each of the parameters was initialised.
    MMLogger.get_current_instance().setLevel("ERROR")


def build_batch(detector, args):
    """What the data loader gives, in each iteration."""
    if detector == "classifier":
        seed(0)
        return dict(inputs=torch.randn(8, 8), data_samples=torch.randint(4, (8,)))
    shape = (3, args.size, args.size)
    return demo_mm_inputs(args.batch_size, [shape] * args.batch_size, num_classes=80)


def build_model(detector, args):
    """The detector of mmdet's own config, not pretrained; or the classifier."""
    if detector == "classifier":
        seed(0)
        return Classifier().to(args.device)
    cfg = Config.fromstring(
        f"_base_ = 'mmdet::_base_/models/{DETECTORS[detector][1]}.py'", ".py"
    )
    cfg.model.backbone.init_cfg = None
    if args.tiny:
        tiny = {
            "backbone.depth": 18,
            "backbone.base_channels": 8,
            "neck.in_channels": [8, 16, 32, 64],
            "neck.out_channels": 16,
        }
        if detector == "retinanet":
            tiny.update({"bbox_head.in_channels": 16, "bbox_head.feat_channels": 16})
        else:
            tiny.update(
                {
                    "rpn_head.in_channels": 16,
                    "rpn_head.feat_channels": 16,
                    "roi_head.bbox_roi_extractor.out_channels": 16,
                    "roi_head.bbox_head.in_channels": 16,
                    "roi_head.bbox_head.fc_out_channels": 32,
                    "train_cfg.rpn_proposal.nms_pre": 50,
                    "train_cfg.rpn_proposal.max_per_img": 20,
                    "train_cfg.rcnn.sampler.num": 16,
                }
            )
        cfg.merge_from_dict({f"model.{key}": value for key, value in tiny.items()})
    seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.to(args.device)


def seed(number):
    """Make all that samples (proposals, anchors) do the same again."""
    torch.manual_seed(number)


def build_runner(model, hooks, batches, args, iterations=10**8):
    """With MMEngine's default hooks, and nothing that it does now and then."""
    name = uuid.uuid4().hex  # the message hub and the visualizer are global by it
    wrapper = dict(type="OptimWrapper")
    if args.precision != "float32":
        kind = "AmpOptimWrapper"
        if args.device == "cpu":
            kind = "amp_hooks.CpuAmpOptimWrapper"
        wrapper = dict(type=kind, dtype=args.precision)
        # A scale that neither overflows nor grows here: a skipped step is cheaper.
        wrapper["loss_scale"] = dict(init_scale=1024.0)
    # With a learning rate of 0 the weights stay, and with them what RPN proposes,
    # what is sampled and what all that costs.
    sgd = dict(type="SGD", lr=0.0, momentum=0.9, weight_decay=1e-4)
    return Runner(
        model=model,
        work_dir=args.work_dir,
        train_dataloader=DataLoader(batches, collate_fn=itemgetter(0)),
        train_cfg=dict(by_epoch=False, max_iters=iterations, val_interval=10**8),
        optim_wrapper=dict(**wrapper, optimizer=sgd),
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=10**8),
            checkpoint=dict(type="CheckpointHook", interval=10**8, by_epoch=False),
        ),
        custom_hooks=copy.deepcopy(hooks),
        visualizer=dict(
            type="Visualizer",
            vis_backends=[
                dict(type="LocalVisBackend"),
                dict(type="TensorboardVisBackend"),
            ],
        ),
        log_processor=dict(by_epoch=False),
        log_level="ERROR",
        experiment_name=name,
    )


class Live:
    """A runner that stands between two iterations."""

    def __init__(self, model, hooks, batch, args, optimizer=None):
        self.batch, self.device = batch, args.device
        cuda = self.device == "cuda"
        self._clock = time.perf_counter if cuda else time.process_time
        # A module tree of its own, for the module hooks, around the same parameters:
        # other weights, or the same ones elsewhere in memory, would cost other times.
        memo = {id(p): p for p in model.parameters()}
        own = copy.deepcopy(model, memo)
        self.runner = runner = build_runner(own, hooks, [batch], args)
        # What Runner.train does before its loop.
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        if optimizer is not None:
            runner.optim_wrapper.optimizer = optimizer
        runner.call_hook("before_run")
        runner.optim_wrapper.initialize_count_status(runner.model, 0, 10**8)
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        runner.model.train()
        self.run(args.warmup)

    def run(self, iterations):
        """Train; seconds of each iteration.

        On a CPU it is the process's own time, so that other programs do not count.
        """
        times = []
        # They share an optimizer, and what its steps are to the others is no step.
        recorder = Runtime.of(self.runner).recorder
        recorder.muted = False
        for i in range(iterations):
            seed(i)
            self._wait()
            start = self._clock()
            self.runner.train_loop.run_iter(self.batch)
            self._wait()
            times.append(self._clock() - start)
        recorder.muted = True
        return times

    def block(self, iterations):
        """Train; seconds an iteration, of which none waits but for its own reasons."""
        recorder = Runtime.of(self.runner).recorder
        recorder.muted = False
        self._wait()
        start = self._clock()
        for i in range(iterations):
            seed(i)
            self.runner.train_loop.run_iter(self.batch)
        self._wait()
        recorder.muted = True
        return (self._clock() - start) / iterations

    @property
    def loss(self):
        """Of the last iteration."""
        return self.runner.message_hub.get_scalar("train/loss").current()

    @property
    def transfers(self):
        """Copies that the recorder has made."""
        return Runtime.of(self.runner).recorder.transfers

    def _wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def grow_to(self, iteration, leave=()):
        """Make the run that old without training so long.

        ``leave`` names scalars of the message hub whose history stays short.
        """
        loop, hub = self.runner.train_loop, self.runner.message_hub
        Runtime.of(self.runner).recorder.muted = False
        # More iterations than any hook remembers, of which only the end takes place.
        for _ in range(min(iteration, 500)):
            outputs = dict(loss=torch.tensor(self.loss, device=self.device))
            at = loop.iter
            self.runner.call_hook("after_train_iter", batch_idx=at, outputs=outputs)
            loop._iter += 1
        loop._iter = iteration
        for name, history in hub.log_scalars.items():
            if name not in leave:
                history._log_history = np.full(iteration, history.current())
                history._count_history = np.ones(iteration)
