"""How many kernels the suite gives to a device in an iteration in which all is well."""

import pytest
from torch import nn

from amp_hooks.engine.torch_api import TORCH
from tests import small
from tests.count_launches import CountLaunches

pytestmark = pytest.mark.skipif(
    TORCH < (2, 4), reason="not all that is counted as one launch is one"
)
SUITE = dict(type="amp_hooks.StabilityHook")


class Deep(small.Small):
    """24 BatchNorms that train, and one classifier over five levels."""

    def __init__(self):
        super().__init__()
        layers = [(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)) for _ in range(24)]
        self.backbone = nn.Sequential(*[layer for pair in layers for layer in pair])
        self.bbox_head.fc_cls = nn.Linear(8, 4)

    def forward(self, x, y, mode="loss"):
        features = self.backbone(x)
        levels = [self.bbox_head.fc_cls(features) for _ in range(5)]
        return dict(loss_cls=[self.bbox_head.loss_cls(x.float(), y) for x in levels])


class CountAt(small.Hook):
    """Counts the launches of some iterations, hooks and optimizer step included.

    After iteration 10 the run is at 10^6.
    """

    priority = "VERY_HIGH"

    def __init__(self):
        self.counts = {}

    def before_train(self, runner):
        loop = runner.train_loop
        run_iter = loop.run_iter

        def counted(*args):
            if loop._iter == 11:
                loop._iter = 10**6
            with CountLaunches() as count:
                run_iter(*args)
            self.counts[loop._iter - 1] = len(count)

        loop.run_iter = counted


def launches(build, hooks):
    found = []
    for attached in ([], hooks):
        count = CountAt()
        runner = build(attached)
        runner.register_hook(count)
        runner.train()
        found.append(count.counts)
    plain, watched = found
    return {i: watched[i] - plain[i] for i in (10, 10**6 + 1)}


@pytest.mark.parametrize(
    ("dtype", "added"), [(None, 18), ("bfloat16", 21), ("float16", 21)]
)
def test_of_a_model_with_many_batchnorms(tmp_path, dtype, added):
    """Most of them could be copies of BatchNorm's statistics, and counts of logits.
    The logits of each level are measured by themselves: a model may write to them.
    """

    def build(hooks):
        options = dict(model=Deep, iters=10**6 + 3, dtype=dtype)
        return small.build(tmp_path, hooks, **options)

    assert set(launches(build, [SUITE]).values()) == {added}


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_of_a_detector(build, precision):
    """Faster R-CNN, with the frozen BatchNorm that most configs have."""

    def build_with(hooks):
        options = {"optim_wrapper.loss_scale": 128.0} if precision == "float16" else {}
        how = dict(precision=precision, hooks=hooks, options=options)
        return build("faster_rcnn", iters=10**6 + 3, **how)

    added = launches(build_with, [SUITE])
    assert max(added.values()) <= 30
