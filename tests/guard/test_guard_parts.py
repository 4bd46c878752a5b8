import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import binary_cross_entropy

from amp_hooks.engine.live_buffers import LiveBuffers
from amp_hooks.guard.accumulation import FlatCopies, SavedTensors
from amp_hooks.guard.nan_steps import is_nan_error
from amp_hooks.guard.scale_policy import Hysteresis
from amp_hooks.guard.step_gate import has_gradient, why_no_gradient


def raised(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.value


def nan_to_linalg():
    """Its class is of torch._C."""
    raise torch.linalg.LinAlgError("the input matrix contains NaN")


def bare_assert():
    # As mmdet's ATSSHead has it, without a message.
    assert not torch.isnan(torch.tensor(math.nan)).any()


def other_assert():
    assert len([]) == 1, "nothing found"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: linear_sum_assignment([[math.nan, 1.0]]), True),
        (lambda: linear_sum_assignment([[math.inf, math.inf]]), True),
        (lambda: int(math.nan), True),
        (lambda: int(math.inf), True),
        (lambda: binary_cross_entropy(torch.tensor(math.nan), torch.zeros(())), True),
        (nan_to_linalg, True),
        (bare_assert, True),
        (other_assert, False),
        (lambda: [].pop(), False),
        (lambda: torch.zeros(2) @ torch.zeros(3), False),
    ],
)
def test_exceptions_that_are_nan_in_disguise(call, expected):
    assert is_nan_error(raised(call)) is expected


def test_patterns_of_ones_own():
    error = ValueError("my head saw nonsense")
    assert not is_nan_error(error)
    assert is_nan_error(error, ["saw NONSENSE"])


def test_hysteresis_bears_some_overflows_and_recovers():
    """As Megatron-LM: the tolerance returns after `interval` clean steps in a row."""
    hysteresis = Hysteresis(tolerance=3, interval=4)
    assert [hysteresis.overflow() for _ in range(5)] == [False, False, True, True, True]
    for _ in range(3):
        hysteresis.step()
    assert hysteresis.overflow()
    for _ in range(4):
        hysteresis.step()
    assert [hysteresis.overflow() for _ in range(3)] == [False, False, True]


def test_without_tolerance_every_overflow_counts():
    hysteresis = Hysteresis(tolerance=1, interval=10)
    assert [hysteresis.overflow() for _ in range(3)] == [True] * 3


def test_why_there_is_no_gradient():
    model = torch.nn.ModuleDict({n: torch.nn.Linear(1, 1) for n in "abc"})
    params = list(model.parameters())
    names = {id(p): n for n, p in model.named_parameters()}
    assert not has_gradient(params)
    unused = why_no_gradient(params, names, detached=False)
    assert "branches" in unused
    assert "a.weight, a.bias, b.weight, 6 in all" in unused
    assert "detached" in why_no_gradient(params, names, detached=True)
    assert "none of its 6 parameters belongs" in why_no_gradient(params, {}, True)
    for p in params:
        p.requires_grad = False
    assert "frozen" in why_no_gradient(params, names, detached=True)
    params[3].grad = torch.zeros(1)
    assert has_gradient(params)


def test_saved_tensors_come_back_bit_for_bit():
    tensors = [torch.tensor([1.0, -0.0, math.inf]), torch.arange(3), torch.rand(2, 2)]
    originals = [t.clone() for t in tensors]
    saved = SavedTensors()
    saved.save(tensors)
    copies = saved.copies
    for t in tensors:
        t.zero_().sub_(7)
    saved.restore(tensors)
    assert all(torch.equal(t, o) for t, o in zip(tensors, originals))
    assert math.copysign(1, tensors[0][1]) == -1
    tensors[0].mul_(2)
    saved.save(tensors)
    assert saved.copies is copies  # no new memory
    saved.save(tensors[:1])
    assert len(saved.copies) == 1


def test_no_tensors_are_fine():
    saved = SavedTensors()
    saved.save([])
    saved.restore([])


def test_a_buffer_that_became_smaller_in_place():
    """Neither object nor memory are others, only the shape."""
    model = torch.nn.Module()
    model.register_buffer("queue", torch.arange(8.0))
    live = LiveBuffers(model)
    assert live.now() is live.now()
    before = live.now()
    model.queue.resize_(4)
    assert live.now() is not before
    saved = FlatCopies([b.tensor for b in live.now()])
    saved.save()
    model.queue.zero_()
    saved.restore([model.queue])
    assert model.queue.tolist() == [0.0, 1.0, 2.0, 3.0]
