"""NaN is kept out of the losses, where it raises, asserts or leaves ranks waiting."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from amp_hooks.engine.torch_api import TORCH
from amp_hooks.guard import head_inputs
from amp_hooks.guard.head_inputs import hardy, make_finite
from tests import helpers, processes

# Raises on a CPU where it is given NaN: Hungarian assigners, SimOTA, asserts.
RAISES = ["yolox", "detr", "atss"]


@pytest.fixture
def family(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(helpers.ROOT / "scripts"))
    import sweep_detectors

    def make(name, hooks, iters=4):
        family = sweep_detectors.FAMILIES[name]
        return sweep_detectors.build_runner(family, str(tmp_path), hooks, iters)

    return make


NAN_IMAGES = helpers.fault("images", 2, value="nan")
GUARD = dict(type="amp_hooks.StepGuardHook")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # of mmdet, told by torch
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("name", [*RAISES, "rtmdet"])
def test_nan_reaches_no_loss(family, name):
    runner = family(name, [GUARD, NAN_IMAGES])
    runner.train()
    assert runner.iter == 4
    (line,) = helpers.ledger(runner, "overflow")
    assert (line["iter"], line["verdict"]) == (2, "FORWARD_NONFINITE")
    assert line["heads"] == ["bbox_head"]
    assert helpers.records(runner)[3].stepped


class Launches(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and "detach" not in str(func):
            self.names.append(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


def predictions(dtype=torch.float32):
    """Of three levels, as convolutions hand them on, in three layouts."""
    g = torch.Generator().manual_seed(0)
    found = []
    for i, size in enumerate((8, 4, 2)):
        x = torch.randn(2, 5, size, size, generator=g).to(dtype)
        x = x.to(memory_format=torch.channels_last) if i == 1 else x
        found.append(x.transpose(2, 3) if i == 2 else x)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("together", [2**20, 0])
def test_finite_values_stay_what_and_where_they_are(monkeypatch, dtype, together):
    monkeypatch.setattr(head_inputs, "_TOGETHER", together)
    given = predictions(dtype)
    kept = [x.clone() for x in given]
    pointers = [(x.data_ptr(), x.stride()) for x in given]
    peak = make_finite(given)
    assert [(x.data_ptr(), x.stride()) for x in given] == pointers
    assert all(torch.equal(a, b) for a, b in zip(given, kept))
    assert float(peak) == max(float(x.abs().max()) for x in kept)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("together", [2**20, 0])
def test_others_become_zero_and_show(monkeypatch, value, together):
    monkeypatch.setattr(head_inputs, "_TOGETHER", together)
    given = predictions()
    kept = [x.clone() for x in given]
    given[1][0, 3, 1, 1] = float(value)
    peak = make_finite(given)
    assert not peak.isfinite()
    kept[1][0, 3, 1, 1] = 0
    assert all(torch.equal(a, b) for a, b in zip(given, kept))


def test_autograd_takes_no_notice():
    """What it has saved for the backward pass does not count as changed."""
    x = torch.randn(4, 3, requires_grad=True)
    y = x.sigmoid()
    make_finite([y])
    y.sum().backward()
    s = x.detach().sigmoid()
    assert torch.equal(x.grad, s * (1 - s))


def test_few_launches_however_many_tensors():
    for n in (3, 15):
        given = predictions() * (n // 3)
        with Launches() as seen:
            make_finite(given)
        # Those of another layout are copied first.
        rest = [n for n in seen.names if "clone" not in n and "view" not in n]
        # Before torch 2.1 there is no launch that copies many.
        assert len(rest) <= (4 if TORCH >= (2, 1) else 3 + n), rest


def test_which_heads_can_neither_raise_nor_assert():
    from mmdet.models.dense_heads import ATSSHead, FCOSHead, RetinaHead, YOLOXHead
    from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead

    def made(cls, assigner=None):
        head = cls.__new__(cls)
        nn.Module.__init__(head)
        head.assigner = assigner
        return head

    class MaxIoUAssigner:
        pass

    class Mine(RetinaHead):
        def loss_by_feat(self, *args):
            pass

    assert hardy(made(RetinaHead, MaxIoUAssigner()), "loss_by_feat")
    assert hardy(made(FCOSHead), "loss_by_feat")
    assert hardy(made(Shared2FCBBoxHead), "loss_and_target")
    assert not hardy(made(RetinaHead, object()), "loss_by_feat")
    assert not hardy(made(Mine, MaxIoUAssigner()), "loss_by_feat")
    assert not hardy(made(YOLOXHead), "loss_by_feat")
    assert not hardy(made(ATSSHead), "loss_by_feat")


def test_a_head_that_is_never_finite_is_left_alone(tmp_path):
    """Predictions with NaN where there is nothing to predict, which its loss skips."""
    from tests import small

    class Padded(small.Head):
        def loss_by_feat(self, scores, y):
            return self.loss_cls(scores[:, :4].float(), y)

    class Model(small.Small):
        def __init__(self):
            super().__init__()
            self.bbox_head = Padded()

        def losses(self, features, logits, y):
            pad = torch.full_like(logits, float("nan"))
            scores = torch.cat([logits, pad], 1)
            return dict(loss_cls=self.bbox_head.loss_by_feat(scores, y))

    stock = small.build(tmp_path, model=Model, iters=30)
    stock.train()
    runner = small.build(tmp_path, [GUARD], Model, iters=30)
    runner.train()
    assert small.same(small.state(stock), small.state(runner))
    assert small.ledger(runner, "overflow", "veto", "nan_term") == []
    assert "loss_by_feat" not in runner.model.bbox_head.__dict__


@pytest.mark.slow
def test_detr_on_two_ranks_refuses_on_both(tmp_path):
    """Its loss averages over the ranks: one that raised would leave the other there."""
    program = helpers.ROOT / "tests/guard/detr_two_ranks.py"
    done = processes.two_ranks(program, tmp_path, timeout=300)
    lines = sorted(x for x in done.stdout.splitlines() if x.startswith("rank"))
    assert lines == ["rank 0 ended at 6 same [2]", "rank 1 ended at 6 same [2]"]
