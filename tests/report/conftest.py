"""Real runs to report on, each made once."""

import os
import time
import warnings

import pytest
import torch
from mmengine.hooks import Hook

from amp_hooks import TrainingDivergedError
from amp_hooks.report.read.work_dir import read_run
from amp_hooks.report.show.page import make_page
from tests import helpers

LOGGED = {"default_hooks.logger.interval": 2, "log_processor.window_size": 2}
CLS = "bbox_head.retina_cls.weight"


class Stop(Hook):
    """Ends the process's training in the middle, as a kill does for the files."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 10:
            raise KeyboardInterrupt


def train(data, work_dir, hooks, options=None, stop=False, ends=None, **kwargs):
    """Train in ``work_dir``; returns it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    second = time.strftime("%Y%m%d_%H%M%S")
    while (work_dir / second).exists():  # MMEngine names a start's folder so
        time.sleep(0.1)
        second = time.strftime("%Y%m%d_%H%M%S")
    runner = helpers.build_runner(
        "retinanet",
        data,
        work_dir,
        hooks=hooks,
        options={**LOGGED, **(options or {})},
        **kwargs,
    )
    if stop:
        runner.register_hook(Stop())
    try:
        if ends or stop:
            with pytest.raises(ends or KeyboardInterrupt):
                runner.train()
        else:
            runner.train()
    finally:
        runner.visualizer.close()
    return work_dir


@pytest.fixture(scope="session")
def work_dirs(digits, tmp_path_factory):
    """``work_dirs('rescued')`` trains that run when it is first asked for."""
    made = {}
    root = tmp_path_factory.mktemp("reported")

    def make(name):
        if name not in made:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[name] = _RUNS[name](digits, root / name)
        return made[name]

    return make


@pytest.fixture(scope="session")
def page_of(work_dirs):
    """``page_of('rescued')`` reads it, once."""
    pages = {}

    def make(name):
        if name not in pages:
            pages[name] = make_page(read_run(work_dirs(name)))
        return pages[name]

    return make


def _healthy(data, work_dir):
    return train(data, work_dir, helpers.SUITE, iters=12)


def _rescued(data, work_dir):
    fault = helpers.infinite_images([5, 6, 7])
    return train(data, work_dir, [fault, *helpers.SUITE], iters=12)


def _hot(data, work_dir):
    """A learning rate that pre-flight finds too high, and that fails as well."""
    sgd = dict(_delete_=True, type="SGD", lr=0.1, momentum=0.9)
    hooks = [helpers.fault("loss", [5, 6, 7], value="inf"), *helpers.SUITE]
    hooks += [dict(type="amp_hooks.AmpPreflightHook")]
    return train(data, work_dir, hooks, {"optim_wrapper.optimizer": sgd}, iters=12)


def _lost(data, work_dir):
    # Infinite, as training could make it: that lowers the learning rate.
    fault = helpers.fault("parameter", list(range(3, 12)), where=CLS, value="inf")
    rollback = dict(helpers.SUITE[6], max_rollbacks=1)
    hooks = [fault, *helpers.SUITE[:6], rollback, helpers.SUITE[7]]
    return train(data, work_dir, hooks, iters=12, ends=TrainingDivergedError)


def _ended(data, work_dir):
    """An exception that has nothing to do with numbers."""
    fault = helpers.fault("raise", 5, value="the disk is full")
    return train(data, work_dir, [fault, *helpers.SUITE], iters=12, ends=ValueError)


def _ill(data, work_dir):
    """A loss a thousand times too high, to the end; nothing that could go back."""
    fault = helpers.fault("loss", 12, iters=100, value="x1000")
    health = dict(type="amp_hooks.HealthHook")
    hooks = [fault, *helpers.MONITORS, health, helpers.SUITE[-1]]
    return train(data, work_dir, hooks, iters=40)


def _stock(data, work_dir):
    """A learning rate far too high, and nothing of this package."""
    options = {"optim_wrapper.optimizer.lr": 1e20, "optim_wrapper.clip_grad": None}
    return train(data, work_dir, [], options, iters=8, precision="float32", ema=False)


def _resumed(data, work_dir):
    """Killed at iteration 10, two after the checkpoint it goes on from."""
    save = {"default_hooks.checkpoint.interval": 4}
    fault = helpers.infinite_images([9])
    hooks = [*helpers.SUITE[:6], dict(helpers.SUITE[6], interval=100), helpers.SUITE[7]]
    train(data, work_dir, [fault, *hooks], save, stop=True, iters=14)
    return train(data, work_dir, hooks, {**save, "resume": True}, iters=14)


def _tensorboard(data, work_dir):
    """No LocalVisBackend, no hooks, and an evaluation."""
    options = {"visualizer.vis_backends": [dict(type="TensorboardVisBackend")]}
    return train(data, work_dir, [], options, iters=6, validate=True)


_RUNS = {
    "healthy": _healthy,
    "rescued": _rescued,
    "hot": _hot,
    "lost": _lost,
    "ended": _ended,
    "ill": _ill,
    "stock": _stock,
    "resumed": _resumed,
    "tensorboard": _tensorboard,
}
os.environ.setdefault("OMP_NUM_THREADS", "1")
