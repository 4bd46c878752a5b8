"""CpuAmpOptimWrapper against real FP16 autocast and against AmpOptimWrapper."""

import functools

import pytest
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn

from amp_hooks import CpuAmpOptimWrapper
from amp_hooks.engine.torch_api import is_autocast_enabled


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.LeakyReLU(0.1),
        nn.Linear(32, 10),
    )


def wrap(model, lr=0.1, **kwargs):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return CpuAmpOptimWrapper(optimizer=optimizer, **kwargs)


def first_overflow(init_scale, growth, rehearsed, seed):
    """First iteration that overflows, and whether its loss was finite.

    The learning rate starts at 0.01 and is multiplied by ``growth`` each iteration.
    """
    model = network()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    wrapper = CpuAmpOptimWrapper(
        optimizer=optimizer, loss_scale=dict(init_scale=init_scale)
    )
    context = (
        functools.partial(wrapper.optim_context, model)
        if rehearsed
        else functools.partial(torch.autocast, "cpu", dtype=torch.float16)
    )
    for i in range(60):
        x = torch.randn(8, 3, 16, 16, generator=generator) * 4
        y = torch.randn(8, 10, generator=generator)
        with context():
            loss = nn.functional.mse_loss(model(x).float(), y)
        wrapper.update_params(loss)  # a real GradScaler in both cases
        optimizer.param_groups[0]["lr"] *= growth
        if wrapper.loss_scaler.get_scale() < init_scale:
            return i, bool(torch.isfinite(loss))
    raise AssertionError("the network never overflowed")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("growth", [1.3, 2.0])
@pytest.mark.parametrize(
    ("init_scale", "finite_loss"),
    [(65536.0, True), (1e-3, False)],
    ids=["backward", "forward"],
)
def test_overflows_within_an_iteration_of_the_real_thing(
    init_scale, finite_loss, growth, seed
):
    """With a high loss scale the gradients overflow first, with a tiny one the logits.

    The network is small and driven up by its learning rate. (A slower growth spends
    dozens of iterations at the edge of stability, where any two roundings part ways.)
    """
    real, rehearsed = (
        first_overflow(init_scale, growth, rehearsed=r, seed=seed)
        for r in (False, True)
    )
    assert 5 < real[0] < 60
    assert abs(real[0] - rehearsed[0]) <= 1
    assert real[1] == rehearsed[1] == finite_loss


def test_it_is_the_rounding_that_overflows():
    x = torch.full((1, 4), 300.0)
    layer = nn.Linear(4, 1, bias=False)
    nn.init.constant_(layer.weight, 100.0)
    wrapper = wrap(layer)
    assert torch.isfinite(layer(x)).all()  # 120000 in FP32
    with wrapper.optim_context(layer):
        assert torch.isinf(layer(x)).all()
        assert layer(x).dtype == torch.float32
        with torch.autocast("cpu", enabled=False):
            assert torch.isfinite(layer(x)).all()
    assert not is_autocast_enabled("cpu")


def test_gradients_overflow_in_half_precision_too():
    layer = nn.Linear(4, 1, bias=False)
    wrapper = wrap(layer, loss_scale=2.0**20)
    x = torch.ones(1, 4)
    with wrapper.optim_context(layer):
        loss = layer(x).sum()
    wrapper.backward(loss)  # the gradient of the output is 2**20, beyond 65504
    assert not torch.isfinite(layer.weight.grad).any()


def test_a_weight_used_twice_is_cast_once_and_keeps_its_gradient():
    layer = nn.Linear(2, 2, bias=False)
    wrapper = wrap(layer, loss_scale=1.0)
    x = torch.ones(1, 2)
    with wrapper.optim_context(layer):
        loss = layer(x).sum() + layer(2 * x).sum()
    loss.backward()
    assert torch.equal(layer.weight.grad, torch.full((2, 2), 3.0))


def test_is_a_drop_in_for_amp_optim_wrapper():
    model = network()
    wrapper = wrap(model, clip_grad=dict(max_norm=35))
    assert isinstance(wrapper, (OptimWrapper, AmpOptimWrapper))
    state = wrapper.state_dict()
    assert set(state) == {"state", "param_groups", "loss_scaler"}
    assert set(state["loss_scaler"]) == set(torch.amp.GradScaler("cpu").state_dict())
    wrapper.loss_scaler.load_state_dict(dict(state["loss_scaler"], scale=8.0))
    other = wrap(network())
    other.load_state_dict(wrapper.state_dict())
    assert other.loss_scaler.get_scale() == wrapper.loss_scaler.get_scale()


@pytest.mark.parametrize(
    ("loss_scale", "expected"),
    [("dynamic", 65536.0), (512.0, 512.0), (dict(init_scale=4.0), 4.0)],
)
def test_loss_scale(loss_scale, expected):
    model = network()
    wrapper = wrap(model, loss_scale=loss_scale)
    assert wrapper.loss_scaler.get_scale() == expected
    static = isinstance(loss_scale, float)
    x = torch.randn(2, 3, 16, 16)
    for _ in range(2):
        with wrapper.optim_context(model):
            loss = model(x * float("inf")).sum()
        wrapper.update_params(loss)
    assert wrapper.loss_scaler.get_scale() == (expected if static else expected / 4)


def test_bfloat16_is_plain_autocast():
    layer = nn.Linear(4, 4)
    wrapper = wrap(layer, dtype="bfloat16")
    with wrapper.optim_context(layer):
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float16", torch.float16, None])
def test_float16_by_name_by_dtype_and_by_default(dtype):
    assert wrap(network(), dtype=dtype).cast_dtype == torch.float16


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        (dict(loss_scale=512), TypeError, "loss_scale.*512.0, not 512"),
        (dict(loss_scale="static"), TypeError, "loss_scale.*'static'"),
        (dict(dtype="float32"), ValueError, "dtype.*'float32'.*use OptimWrapper"),
        (dict(use_fsdp=True), ValueError, "use_fsdp.*AmpOptimWrapper"),
    ],
)
def test_wrong_arguments(kwargs, error, words):
    with pytest.raises(error, match=words):
        wrap(network(), **kwargs)
