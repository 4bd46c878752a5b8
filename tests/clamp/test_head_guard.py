"""What a guard does to one module at a time; with real runners in
test_head_clamp_hook.py."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from amp_hooks.clamp.head_guard import HeadGuard
from amp_hooks.engine.recorder import FlightRecorder
from amp_hooks.engine.torch_api import is_autocast_enabled

INF = float("inf")


class Masked(nn.Module):
    """Masks a position, as Grounding DINO does with text tokens."""

    def forward(self, x):
        return x.masked_fill(torch.tensor([True, False, False]), -INF)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc_cls = nn.Linear(3, 3)
        self.mask = Masked()
        self.inside = []

    def forward(self, x):
        self.inside.append((is_autocast_enabled("cpu"), x.dtype))
        return dict(scores=[self.mask(self.fc_cls(x))], count=torch.tensor([7]))

    def loss_by_feat(self, x, weight=None):
        return is_autocast_enabled("cpu"), x.dtype, weight


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.bbox_head = Head()


def bf16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.fixture
def guarded():
    made = []

    def make(*names, limit=100.0, soft=False):
        model = Model()
        guard = HeadGuard(FlightRecorder(), limit, soft)
        for name in names:
            guard.add(model, name)
        guard.on = True
        made.append(guard)
        return model, guard

    yield make
    for guard in made:
        guard.remove()


def clamped(guard):
    return guard.recorder.close(0).values.get("clamped", {})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_with_weights_in_half_precision_stays_in_it(guarded, dtype):
    """FSDP's mixed_precision, or model.half(): float inputs would not fit."""
    model, guard = guarded("bbox_head.fc_cls")
    layer = model.bbox_head.fc_cls.to(dtype)
    with torch.no_grad():
        layer.bias.fill_(300.0)
    scores = layer(torch.zeros(2, 3, dtype=dtype))
    assert scores.dtype is dtype
    assert scores.tolist() == [[100.0] * 3] * 2
    assert clamped(guard) == {"bbox_head.fc_cls": 1.0}


def test_minus_infinity_passes_where_it_is_a_mask_only(guarded):
    model, guard = guarded("bbox_head.fc_cls", "bbox_head.mask")
    head = model.bbox_head
    assert head.mask(torch.tensor([1.0, 2.0, 300.0])).tolist() == [-INF, 2.0, 100.0]
    with torch.no_grad():
        head.fc_cls.bias.copy_(torch.tensor([-INF, INF, 0.0]))
    assert head.fc_cls(torch.zeros(3)).tolist() == [-100.0, 100.0, 0.0]
    fractions = clamped(guard)
    assert fractions["bbox_head.mask"] == pytest.approx(1 / 3)
    assert fractions["bbox_head.fc_cls"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("order", [1, -1])
def test_inside_another_guarded_module_only_the_outer_one_is_clamped(guarded, order):
    names = ["bbox_head", "bbox_head.fc_cls", "bbox_head.mask"][::order]
    model, guard = guarded(*names)
    with torch.no_grad():
        model.bbox_head.fc_cls.weight.fill_(1e4)
        model.bbox_head.fc_cls.bias.fill_(0.0)
    with bf16():
        got = model.bbox_head(torch.ones(3, dtype=torch.bfloat16))
        assert is_autocast_enabled("cpu")
    assert got["scores"][0].tolist() == [-INF, 100.0, 100.0]
    assert got["scores"][0].dtype == torch.float32
    assert got["count"].tolist() == [7]
    assert model.bbox_head.inside == [(False, torch.float32)]
    assert clamped(guard) == {"bbox_head": pytest.approx(2 / 3)}
    # Called by itself the inner one is clamped itself.
    assert model.bbox_head.fc_cls(torch.ones(3)).tolist() == [100.0] * 3
    assert list(clamped(guard)) == ["bbox_head.fc_cls"]


def test_two_guards_around_one_module_leave_autocast_as_it_was(guarded):
    model, first = guarded("bbox_head.fc_cls", limit=2.0)
    second = HeadGuard(FlightRecorder(), 1.0, False)
    second.add(model, "bbox_head.fc_cls")
    second.on = True
    head = model.bbox_head
    with torch.no_grad():
        head.fc_cls.weight.fill_(9.0)
    with bf16():
        assert head.fc_cls(torch.ones(3)).tolist() == [1.0] * 3
        assert is_autocast_enabled("cpu")
        assert head.loss_by_feat(torch.ones(1, dtype=torch.bfloat16))[:2] == (
            False,
            torch.float32,
        )
    # In the order in which they came, as MMEngine ends its hooks.
    first.remove()
    second.remove()
    assert "loss_by_feat" not in head.__dict__
    assert not head.fc_cls._forward_hooks
    assert not head.fc_cls._forward_pre_hooks


def test_a_loss_method_of_the_users_own_comes_back(guarded):
    model, guard = guarded()

    def mine(x):
        return x

    model.bbox_head.loss_by_feat = mine
    guard.add(model, "bbox_head.fc_cls")
    assert model.bbox_head.loss_by_feat is not mine
    guard.remove()
    assert model.bbox_head.loss_by_feat is mine


def test_losses_get_float_keywords_too_and_only_while_it_is_on(guarded):
    model, guard = guarded("bbox_head.fc_cls")
    half = torch.ones(1, dtype=torch.bfloat16)
    double = torch.ones(1, dtype=torch.float64)
    with bf16():
        autocast, dtype, weight = model.bbox_head.loss_by_feat(half, weight=[half])
        assert (autocast, dtype, weight[0].dtype) == (False,) + (torch.float32,) * 2
        assert model.bbox_head.loss_by_feat(double)[1] == torch.float64
        guard.on = False
        assert model.bbox_head.loss_by_feat(half)[:2] == (True, torch.bfloat16)


def test_a_module_that_raises_leaves_autocast_as_it_was(guarded):
    model, guard = guarded("bbox_head.fc_cls")
    with bf16():
        with pytest.raises(RuntimeError):
            model.bbox_head.fc_cls(torch.ones(99))
        assert is_autocast_enabled("cpu")
    with torch.no_grad():
        model.bbox_head.fc_cls.weight.fill_(1e4)
    assert model.bbox_head.fc_cls(torch.ones(3)).tolist() == [100.0] * 3


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_is_clamped_in_both_passes(guarded, reentrant):
    model, guard = guarded("bbox_head.fc_cls", soft=True)
    layer = model.bbox_head.fc_cls
    with torch.no_grad():
        layer.weight.fill_(1e4)
    plain, x = layer(torch.ones(3)), torch.ones(3, requires_grad=True)
    plain.sum().backward()
    expected, layer.weight.grad = layer.weight.grad, None
    out = checkpoint(layer, x, use_reentrant=reentrant)
    assert out.tolist() == [100.0] * 3
    out.sum().backward()
    assert expected.abs().sum() > 0
    assert torch.equal(layer.weight.grad, expected)


def test_evaluation_is_left_alone(guarded):
    model, guard = guarded("bbox_head.fc_cls", limit=1e-9)
    model.eval()
    with torch.no_grad():
        assert model.bbox_head.fc_cls(torch.ones(3)).abs().max() > 1e-3
