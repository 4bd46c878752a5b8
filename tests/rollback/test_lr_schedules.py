"""A changed learning rate stays changed, in every schedule and across a resume."""

import math
import uuid

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from amp_hooks.engine.safe_load import allow_mmengine_checkpoints
from amp_hooks.rollback.learning_rate import TemporaryLR, warmup_factor
from amp_hooks.rollback.lr_policy import all_param_groups, change_lr
from tests.rollback.schedules import CHAINS, EPOCH, EVERY

# Of any parameter, with param_name='lr': the code of the others, tested in
# test_learning_rate.py.
SCHEDULES = [case for case in EVERY if "param_name" not in case.values[0][0]]
EPOCHS = 6


class Toy(BaseModel):
    """As small as a model can be that Runner trains, with one optimizer or two."""

    def __init__(self):
        super().__init__()
        self.layer, self.other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)

    def forward(self, x, mode="loss"):
        if mode == "predict":
            return [dict()]
        return dict(loss=self.layer(x).mean() ** 2 + self.other(x).mean() ** 2)

    def train_step(self, data, optim_wrapper):
        if not isinstance(optim_wrapper, OptimWrapperDict):
            return super().train_step(data, optim_wrapper)
        loss, log_vars = self.parse_losses(self(**data))
        loss.backward()
        for wrapper in optim_wrapper.values():
            wrapper.step()
            wrapper.zero_grad()
        return log_vars


class Stalled(BaseMetric):
    """A loss that does not improve."""

    def process(self, data_batch, data_samples):
        self.results.append(1.0)

    def compute_metrics(self, results):
        return dict(loss=results[0])


class Killed(Exception):
    pass


class Operator(Hook):
    """Records the learning rates, changes them, warms up again, kills the run."""

    priority = 40  # RollbackHook's; ParamSchedulerHook comes later

    def __init__(self, change=None, kill=None, warmup=0):
        self.change, self.kill, self.warmup = change or {}, kill, warmup
        self.seen = {}
        self.temporary = TemporaryLR()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.kill:
            raise Killed
        groups = all_param_groups(runner)
        self.seen[runner.iter] = [float(group["lr"]) for group in groups]
        if self.warmup:
            factor = warmup_factor(runner.iter, self.warmup)
            self.temporary.apply(groups, factor)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.temporary.undo()
        if runner.iter in self.change:
            change_lr(runner, self.change[runner.iter])


def one_optimizer(model, lr=0.1):
    groups = [
        dict(params=model.layer.parameters()),
        dict(params=model.other.parameters(), lr=lr / 5),
    ]
    return OptimWrapper(torch.optim.SGD(groups, lr=lr, momentum=0.9))


def shared_tensor(model):
    lr = torch.tensor(0.1, dtype=torch.float64)
    groups = [dict(params=[p]) for p in model.parameters()]
    return OptimWrapper(torch.optim.SGD(groups, lr=lr))


def two_optimizers(model):
    sgd = torch.optim.SGD([dict(params=[p]) for p in model.layer.parameters()], lr=0.1)
    adam = torch.optim.AdamW(model.other.parameters(), lr=0.02)
    return dict(sgd=OptimWrapper(sgd), adam=OptimWrapper(adam))


def train(work_dir, schedule, wrappers=one_optimizer, resume=False, **actions):
    """Train for real; returns the learning rates of each iteration."""
    data = [dict(x=torch.ones(2))] * EPOCH
    model, operator, name = Toy(), Operator(**actions), uuid.uuid4().hex
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=DataLoader(data),
        val_dataloader=DataLoader(data),
        # The third epoch's checkpoint is written before it is validated, so that no
        # resumed run would ever see that metric: none is taken there.
        train_cfg=dict(by_epoch=True, max_epochs=EPOCHS, val_interval=2),
        val_cfg=dict(),
        val_evaluator=[Stalled()],
        optim_wrapper=wrappers(model),
        param_scheduler=schedule,
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=3)),
        custom_hooks=[operator],
        resume=resume,
        default_scope="mmdet",
        experiment_name=name,  # the message hub is global by name
        visualizer=dict(type="Visualizer", name=name),
        log_level="ERROR",
    )
    if "kill" in actions:
        with pytest.raises(Killed):
            runner.train()
    else:
        runner.train()
    runner.visualizer.close()
    return operator.seen


def assert_scaled(seen, plain, change):
    for t, rates in seen.items():
        factor = math.prod(f for at, f in change.items() if at < t)
        expected = [factor * lr for lr in plain[t]]
        assert rates == pytest.approx(expected, rel=1e-12, abs=0), f"iteration {t}"


def check_resume(tmp_path, schedule, groups, **options):
    plain = train(tmp_path / "plain", schedule, **options)
    assert [len(plain), len(plain[0])] == [EPOCHS * EPOCH, groups]
    allow_mmengine_checkpoints()
    work, change = tmp_path / "work", {5: 0.1, 8: 0.5, 14: 3.0}
    first = train(work, schedule, change=change, kill=13, **options)
    second = train(work, schedule, change=change, resume=True, **options)
    assert list(first) == list(range(13))
    assert list(second) == list(range(12, 24))  # from the end of the third epoch
    assert_scaled(first, plain, change)
    assert_scaled(second, plain, change)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_changed_killed_resumed(tmp_path, schedule):
    check_resume(tmp_path, schedule, groups=3)  # two, and the base learning rate


TWO = {
    "same": CHAINS["rtmdet"],
    "own": dict(sgd=CHAINS["1x"], adam=CHAINS["plateau"]),
}


@pytest.mark.parametrize("schedule", TWO.values(), ids=TWO)
def test_two_optimizers(tmp_path, schedule):
    check_resume(tmp_path, schedule, groups=4, wrappers=two_optimizers)


@pytest.mark.parametrize("chain", ["1x", "yolox"])
def test_a_tensor_that_all_groups_share(tmp_path, chain):
    check_resume(tmp_path, CHAINS[chain], groups=5, wrappers=shared_tensor)


@pytest.mark.parametrize("wrappers", [one_optimizer, two_optimizers, shared_tensor])
def test_a_second_warmup_is_not_seen_by_schedulers(tmp_path, wrappers):
    schedule = CHAINS["rtmdet"]
    plain = train(tmp_path / "plain", schedule, wrappers)
    assert train(tmp_path / "warm", schedule, wrappers, warmup=20) == plain
