"""A rollback that was of no use: what it did to the rest of the run is taken back."""

import time

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from amp_hooks.health.going_back import AT_ONCE, GoingBack
from tests import small

SUITE = dict(type="amp_hooks.StabilityHook", rollback=dict(interval=50, probation=20))
LENGTHS = [dict(iters=704), dict(epochs=22)]
AT = 500
ADAM = dict(wrapper=dict(optimizer=dict(type="Adam", lr=1e-3)))


class OtherClasses(Hook):
    """0 and 1 at first, 2 and 3 later: what has been learned costs a lot."""

    priority = 2

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        data_batch["y"] = data_batch["y"] % 2 + 2 * (runner.iter >= AT)


class NewHead(Hook):
    """As for classes that are added."""

    priority = 2

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == AT:
            torch.manual_seed(5)
            runner.model.bbox_head.fc_cls = nn.Linear(16, 8)
            group = dict(params=list(runner.model.bbox_head.fc_cls.parameters()))
            runner.optim_wrapper.optimizer.add_param_group(group)
        if runner.iter >= AT:
            data_batch["y"] += 4


class Prune(Hook):
    """Nine of ten weights of each layer are 0 from some iteration on."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        weights = [p for p in runner.model.parameters() if p.dim() > 1]
        if runner.iter == AT:
            least = [
                p.abs().flatten().kthvalue(int(0.9 * p.numel()))[0] for p in weights
            ]
            self.masks = [(p.abs() >= a).float() for p, a in zip(weights, least)]
        if runner.iter >= AT:
            with torch.no_grad():
                for weight, mask in zip(weights, self.masks):
                    weight.mul_(mask)


def train(tmp_path, model, hook, suite, **length):
    seen = small.Seen()
    hooks = [*suite, hook(), seen]
    runner = small.build(tmp_path, hooks, model, **ADAM, **length)
    runner.train()
    return runner, sum(seen.losses[-10:]) / 10


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    ("model", "hook"),
    [(small.OwnStep, OtherClasses), (small.Wide, NewHead), (small.Wide, Prune)],
)
def test_training_goes_on_as_without_us(tmp_path, model, hook, length):
    """At the learning rate of before; one rollback, which does not count."""
    stock, loss_of_stock = train(tmp_path, model, hook, [], **length)
    runner, loss = train(tmp_path, model, hook, [SUITE], **length)
    (rollback,) = small.ledger(runner, "rollback")
    (recover,) = small.ledger(runner, "recover")
    assert rollback["iter"] < recover["iter"] <= rollback["iter"] + 10
    assert "cost far more now than they did then" in recover["why"]
    assert recover["lr_factor"] == 1.0
    lr = [r.optim_wrapper.param_groups[0]["lr"] for r in (stock, runner)]
    assert lr[0] == lr[1]
    (hook,) = [h for h in runner.hooks if type(h).__name__ == "RollbackHook"]
    assert hook.rollbacks == 0
    assert small.ledger(runner, "snapshot")[-1]["iter"] > AT + 100
    assert loss < 1.3 * loss_of_stock + 0.05
    assert small.ledger(runner, "abort") == []


class Kill(Hook):
    priority = "LOWEST"

    def __init__(self, at):
        self.at = at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.at:
            time.sleep(0.5)  # for the writer
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 3, 15])
def test_a_run_that_is_killed_then_knows_it_when_it_is_resumed(tmp_path, after):
    """Before it was looked at, and after."""
    hooks = [SUITE, OtherClasses()]
    whole = small.build(tmp_path, hooks, small.OwnStep, iters=540, **ADAM)
    whole.train()
    at = small.ledger(whole, "rollback")[0]["iter"] + after
    more = dict(ADAM, work_dir=tmp_path / "run", iters=800)
    with pytest.raises(KeyboardInterrupt):
        small.build(tmp_path, [*hooks, Kill(at)], small.OwnStep, **more).train()
    seen = small.Seen()
    runner = small.build(tmp_path, [*hooks, seen], small.OwnStep, resume=True, **more)
    runner.train()
    (hook,) = [h for h in runner.hooks if type(h).__name__ == "RollbackHook"]
    assert hook.rollbacks == 0
    assert runner.optim_wrapper.param_groups[0]["lr"] == 1e-3
    assert sum(seen.losses[-10:]) / 10 < 0.1


class AccuracyOfBefore(BaseMetric):
    """On the first classes, for ever."""

    def process(self, data_batch, data_samples):
        right = torch.stack(list(data_samples)) == data_batch["y"] % 2
        self.results.append((int(right.sum()), len(right)))

    def compute_metrics(self, results):
        right, number = map(sum, zip(*results))
        return dict(accuracy=right / number)


class Predicts(small.Wide):
    def forward(self, x, y, mode="loss"):
        logits = super().forward(x, y, "tensor")
        return self.losses(None, logits, y) if mode == "loss" else logits.argmax(1)


class Validated(Runner):
    def __init__(self, *args, train_cfg=None, **kwargs):
        train_cfg = dict(train_cfg, val_interval=40)
        super().__init__(*args, train_cfg=train_cfg, **kwargs)


def test_a_metric_of_something_else_takes_the_run_back_once(tmp_path):
    val = dict(
        val_dataloader=dict(
            dataset=small.samples(64),
            batch_size=16,
            num_workers=0,
            collate_fn=dict(type="default_collate"),
            sampler=dict(type="DefaultSampler", shuffle=False),
        ),
        val_cfg=dict(),
        val_evaluator=[AccuracyOfBefore()],
        kind=Validated,
    )
    hooks = [SUITE, OtherClasses(), seen := small.Seen()]
    runner = small.build(tmp_path, hooks, Predicts, iters=1000, **ADAM, **val)
    runner.train()
    rollbacks = small.ledger(runner, "rollback")
    assert [line["why"].split()[0] for line in rollbacks] == ["accuracy"]
    assert sum(seen.losses[-10:]) / 10 < 0.1


@pytest.mark.parametrize(
    ("height", "then", "width", "first", "in_vain"),
    [
        (9.0, 0.0, 0.5, [9.1] * AT_ONCE, True),
        (9.0, 0.0, 0.5, [5.0] * AT_ONCE, True),
        (9.0, 0.0, 0.5, [0.1, 9.0, 9.0, 9.0, 9.0], False),  # ruined by the next step
        (9.0, 0.0, 0.5, [9.0, 0.1, 0.1, 0.1, 9.0], False),  # a batch
        (9.0, 0.0, 0.5, [9.0] * (AT_ONCE - 1), False),
        (1.0, 0.0, 0.5, [0.6] * AT_ONCE, True),
        (1.0, 0.0, 2.0, [1.9] * AT_ONCE, False),  # noise
        (4.0, 3.0, 0.5, [4.0] * AT_ONCE, False),  # so much it did cost
        (9.0, None, 0.5, [9.0] * AT_ONCE, False),
        (None, 0.0, 0.5, [9.0] * AT_ONCE, False),
    ],
)
def test_when_it_was_in_vain(height, then, width, first, in_vain):
    back = GoingBack()
    back.begin(height, then, width)
    for each in first:
        back.add(each, inside=False)
    resumed = GoingBack()
    resumed.load_state(back.state())
    assert back.in_vain is resumed.in_vain is in_vain
