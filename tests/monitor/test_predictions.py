"""Models without a classifier: their predictions are watched, nothing is clamped."""

import math

import pytest
import torch
from torch import nn

from tests import helpers, small

SUITE = dict(type="amp_hooks.StabilityHook", rollback=dict(interval=10, warmup_iters=0))


class HeatMap(nn.Module):
    def __init__(self):
        super().__init__()
        self.final_layer, self.loss_module = nn.Linear(16, 4), nn.MSELoss()


class Keypoints(small.Small):
    """As mmpose's: a heat map and its squared error."""

    def __init__(self):
        super().__init__()
        del self.bbox_head
        self.head = HeatMap()

    def forward(self, x, y, mode="loss"):
        heat = self.head.final_layer(self.backbone(x))
        wanted = torch.nn.functional.one_hot(y, 4).float()
        return dict(loss_kpt=self.head.loss_module(heat.float(), wanted))


@pytest.mark.parametrize("dtype", small.DTYPES)
@pytest.mark.parametrize(
    "loop", [dict(iters=40), dict(epochs=2)], ids=["iter", "epoch"]
)
def test_the_predictions_are_watched(tmp_path, dtype, loop):
    options = dict(model=Keypoints, dtype=dtype, log_level="INFO", **loop)
    runner = small.build(tmp_path, [SUITE], **options)
    runner.train()
    log = helpers.log(runner)
    (line,) = [text for text in log.splitlines() if "no classification loss" in text]
    assert "INFO" in line
    assert "watched instead: head.final_layer." in line
    assert "a classification layer could not be found" not in log
    read = [r.get("logit_absmax", "head.final_layer") for r in helpers.records(runner)]
    assert all(map(math.isfinite, read[20:]))


@pytest.mark.parametrize("dtype", small.DTYPES)
def test_nothing_is_clamped_for_what_is_not_found(tmp_path, dtype):
    at = list(range(30, 34))
    hooks = [small.SpoilInputs(at), SUITE]
    runner = small.build(tmp_path, hooks, model=Keypoints, dtype=dtype, iters=60)
    runner.train()
    assert not helpers.ledger(runner, "clamp_on")
    assert [e["iter"] for e in helpers.ledger(runner, "overflow")] == at
    assert helpers.ledger(runner, "rollback")
    assert all(map(math.isfinite, small.state(runner)["backbone.0.weight"].flatten()))
