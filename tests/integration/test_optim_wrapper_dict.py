"""Two optimizers in an OptimWrapperDict: watched, snapshotted and lowered, each."""

import gc
import weakref

import pytest
import torch
from mmdet.models import RetinaNet
from mmdet.registry import MODELS
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

from amp_hooks import CpuAmpOptimWrapper
from amp_hooks.engine.runtime import Runtime
from amp_hooks.panel.scalars import scalars_of
from tests import helpers


@MODELS.register_module()
class TwoOptimizerRetinaNet(RetinaNet):
    def train_step(self, data, optim_wrapper):
        body, head = optim_wrapper["body"], optim_wrapper["head"]
        with body.optim_context(self):
            data = self.data_preprocessor(data, True)
            loss, log_vars = self.parse_losses(self._run_forward(data, mode="loss"))
        # Two scalers cannot share one backward, so each has its own.
        for wrapper in (body, head):
            params = [p for g in wrapper.optimizer.param_groups for p in g["params"]]
            scaler = getattr(wrapper, "loss_scaler", None)
            scaled = scaler.scale(loss) if scaler else loss
            grads = torch.autograd.grad(
                scaled, params, retain_graph=True, allow_unused=True
            )
            for p, grad in zip(params, grads):
                p.grad = grad
            wrapper.step()
            wrapper.zero_grad()
        return log_vars


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BodyAndHead:
    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.amp = optim_wrapper_cfg["type"] != "OptimWrapper"

    def __call__(self, model):
        groups = dict(body=[], head=[])
        for name, p in model.named_parameters():
            groups["head" if name.startswith("bbox_head") else "body"].append(p)
        cls = CpuAmpOptimWrapper if self.amp else OptimWrapper
        return OptimWrapperDict(
            **{
                name: cls(optimizer=torch.optim.SGD(params, lr=0.01, momentum=0.9))
                for name, params in groups.items()
            }
        )


def options():
    return {
        "model.type": "TwoOptimizerRetinaNet",
        "optim_wrapper.constructor": "BodyAndHead",
    }


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_rollback_takes_both_back(build, precision):
    fault = helpers.fault("parameter", 5, where="bbox_head.retina_cls.weight")
    rollback = dict(type="amp_hooks.RollbackHook", interval=3, probation=0)
    runner = build(
        "retinanet",
        iters=8,
        precision=precision,
        hooks=[fault, *helpers.SUITE[:4], rollback, helpers.SUITE[-1]],
        options=options(),
    )
    runner.train()
    (event,) = helpers.ledger(runner, "rollback")
    assert (event["target_iter"], event["lr_factor"]) == (3, 0.1)
    assert all(torch.isfinite(t).all() for t in helpers.state(runner).values())
    undisturbed = build("retinanet", iters=8, precision=precision, options=options())
    undisturbed.train()
    for name, lr in undisturbed.optim_wrapper.get_lr().items():
        assert runner.optim_wrapper.get_lr()[name] == pytest.approx([0.1 * lr[0]])
    record = Runtime.of(runner).recorder.records[0]
    assert set(record.values["found_inf"]) == {"body", "head"}
    assert {"body.backbone", "head.bbox_head"} <= set(record.values["gradnorm"])
    if precision == "float16":
        counters = helpers.hook_of(runner, "LossScaleMonitorHook").counters
        assert {name: c.steps for name, c in counters.items()} == dict(body=8, head=8)
        assert {"amp/scale_log2/body", "amp/skipped_total/head"} <= set(
            scalars_of(record)
        )


def test_each_optimizer_is_described_and_collapses_under_its_name(build):
    fault = helpers.fault("parameter", 1, where="bbox_head.retina_reg.weight")
    runner = build(
        "retinanet",
        iters=4,
        hooks=[fault, dict(type="amp_hooks.LossScaleMonitorHook", patience=2)],
        options=dict(options(), log_level="INFO"),
    )
    runner.train()
    log = helpers.log(runner)
    for name in ("body", "head"):
        assert f"optimizer {name}: CpuAmpOptimWrapper, SGD, dtype torch.float16" in log
        assert log.count(f"the loss scale of optimizer {name} has collapsed") == 1
    assert helpers.ledger(runner, "overflow")[-1]["skip"] == dict(
        body="forward", head="forward"
    )


def test_watching_changes_nothing(build):
    states = []
    for hooks in ([], helpers.SUITE):
        runner = build("retinanet", iters=5, hooks=hooks, options=options())
        runner.train()
        states.append(helpers.state(runner))
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_a_finished_runner_can_be_freed(build, digits, tmp_path):
    runner = helpers.build_runner(
        "retinanet", digits, tmp_path / "w", iters=2, hooks=helpers.SUITE
    )
    runner.train()
    runner.visualizer.close()
    ref = weakref.ref(runner)
    del runner
    gc.collect()
    assert ref() is None
