import math

import pytest
import torch

from amp_hooks.clamp.head_guard import clamp_logits

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("soft", [False, True])
def test_clamp_inside_the_limit_is_bit_identical_forward_and_backward(soft):
    torch.manual_seed(0)
    x = torch.randn(1000, requires_grad=True)
    weight = torch.randn(1000)
    (plain,) = torch.autograd.grad((x * weight).sum(), x)
    clamped, fraction = clamp_logits(x, 100.0, soft)
    (through,) = torch.autograd.grad((clamped * weight).sum(), x)
    assert torch.equal(clamped, x)
    assert torch.equal(plain, through)
    assert fraction.item() == 0.0


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_clamp_keeps_the_layout_of_the_gradient(soft, keep):
    """A convolution's bias gradient is summed in the order of its memory."""
    conv = torch.nn.Conv2d(3, 9, 1)
    x = torch.randn(2, 3, 5, 7)
    seen = []

    def loss(y):
        y.register_hook(lambda g: seen.append(g.stride()))
        return y.permute(0, 2, 3, 1).reshape(2, -1, 3).square().sum()

    loss(conv(x)).backward()
    plain = conv.bias.grad.clone()
    conv.bias.grad = None
    y = conv(x)
    y.register_hook(lambda g: seen.append(g.stride()))
    clamped = clamp_logits(y, 100.0, soft, keep)[0]
    assert clamped.stride() == y.stride()
    loss(clamped).backward()
    assert seen[0] == seen[1] == seen[2]
    assert torch.equal(conv.bias.grad, plain)


def test_clamp_outside_the_limit():
    x = torch.tensor([INF, -INF, 150.0, 5.0, NAN], requires_grad=True)
    clamped, fraction = clamp_logits(x, 100.0)
    assert clamped[:4].tolist() == [100.0, -100.0, 100.0, 5.0]
    assert math.isnan(clamped[4].item())  # NaN is not hidden
    assert fraction.item() == pytest.approx(3 / 5)
    (grad,) = torch.autograd.grad(clamped[:4].sum(), x)
    assert grad[:4].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_soft_lets_the_gradient_pass_that_leads_back():
    """Gradient descent subtracts it: x beyond +limit comes back by a positive one."""
    values = [200.0, 200.0, -200.0, -200.0, INF, -INF, 5.0]
    grads = torch.tensor([3.0, -3.0, 3.0, -3.0, 2.0, -2.0, -1.0])
    for soft, expected in (
        (False, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]),
        (True, [3.0, 0.0, 0.0, -3.0, 2.0, -2.0, -1.0]),
    ):
        x = torch.tensor(values, requires_grad=True)
        clamped, _ = clamp_logits(x, 100.0, soft)
        assert clamped.tolist() == [100.0, 100.0, -100.0, -100.0, 100.0, -100.0, 5.0]
        (grad,) = torch.autograd.grad(clamped, x, grads)
        assert grad.tolist() == expected


def test_soft_finds_its_way_back_and_hard_does_not():
    ends = {}
    for soft in (False, True):
        x = torch.tensor([150.0], requires_grad=True)
        for _ in range(100):
            loss = clamp_logits(x, 100.0, soft)[0].square().sum()
            (grad,) = torch.autograd.grad(loss, x)
            x = (x - 0.01 * grad).detach().requires_grad_()
        ends[soft] = x.item()
    assert ends[False] == 150.0
    assert abs(ends[True]) < 100.0


@pytest.mark.parametrize("soft", [False, True])
def test_minus_infinity_by_design_stays_with_its_gradient(soft):
    x = torch.tensor([-INF, INF, -200.0, 5.0], requires_grad=True)
    clamped, fraction = clamp_logits(x, 100.0, soft, keep_neg_inf=True)
    assert clamped.tolist() == [-INF, 100.0, -100.0, 5.0]
    assert fraction.item() == 0.5
    (grad,) = torch.autograd.grad(clamped, x, torch.tensor([2.0, -1.0, 1.0, 4.0]))
    assert grad.tolist() == [2.0, 0.0, 0.0, 4.0]


def test_nothing_to_clamp():
    clamped, fraction = clamp_logits(torch.zeros(0, 3), 100.0)
    assert clamped.shape == (0, 3)
    assert fraction.item() == 0.0


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_one_byte_a_value_is_kept(soft, keep):
    """A detector's logits may be a tenth of what a card holds."""
    kept = []

    def keeps(tensor):
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    x = torch.randn(1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keeps, lambda t: t):
        clamp_logits(x, 1.0, soft, keep)
    assert kept == [1000]
