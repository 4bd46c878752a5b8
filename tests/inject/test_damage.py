import math
import random

import pytest
import torch

from amp_hooks.inject.damage import (
    BAD_BOXES,
    Change,
    choose,
    damage,
    damage_loss,
    spoil_boxes,
)


def test_places_depend_on_the_seed_alone():
    python, torch_state = random.getstate(), torch.get_rng_state()
    places = choose(1000, 3, "0/5/0/x")
    assert places == choose(1000, 3, "0/5/0/x") != choose(1000, 3, "1/5/0/x")
    assert len(set(places)) == 3
    assert choose(3, 3, "a") is choose(3, None, "a") is None
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (Change(math.nan), math.nan),
        (Change(-math.inf), -math.inf),
        (Change(0.5), 0.5),
        (Change(1e300), 1e300),
        (Change(4.0, multiply=True), 12.0),
    ],
)
def test_damage_changes_the_places_and_no_other(dtype, change, wanted):
    t = torch.full((2, 3), 3.0, dtype=dtype)
    bad = damage(t, change, [1, 5])
    wanted = torch.tensor(wanted, dtype=torch.float64).to(dtype)
    hit = torch.tensor([[False, True, False], [False, False, True]])
    assert torch.equal(bad[~hit], t[~hit])
    assert torch.equal(bad[hit].nan_to_num(7.0), wanted.expand(2).nan_to_num(7.0))
    assert bad.dtype == dtype
    assert (t == 3.0).all()
    everywhere = damage(t, change, None).flatten()
    assert torch.equal(everywhere.nan_to_num(7.0), wanted.expand(6).nan_to_num(7.0))


@pytest.mark.parametrize(
    ("change", "at_place"), [(Change(math.nan), 0.0), (Change(5.0, multiply=True), 5.0)]
)
def test_gradients_pass_the_other_elements(change, at_place):
    t = torch.ones(3, requires_grad=True)
    damage(t, change, [1]).backward(torch.ones(3))
    assert t.grad.tolist() == [1.0, at_place, 1.0]


@pytest.mark.parametrize(
    ("change", "shown", "grad"),
    [
        (Change(math.nan), math.nan, math.nan),
        (Change(math.inf), math.inf, math.inf),
        (Change(-math.inf), -math.inf, -math.inf),
        (Change(24.0), 24.0, 4.0),
        (Change(10.0, multiply=True), 60.0, 10.0),
    ],
)
def test_a_loss_and_its_gradient(change, shown, grad):
    """Of one tensor, and of a list (one loss per level) that mmengine sums."""
    one = torch.tensor(6.0, requires_grad=True)
    bad = damage_loss(one, change)
    bad.backward()
    assert (bad.item(), one.grad.item()) == pytest.approx((shown, grad), nan_ok=True)
    two = [torch.tensor(x, requires_grad=True) for x in (2.0, 4.0)]
    total = sum(damage_loss(two, change))
    total.backward()
    assert total.item() == pytest.approx(shown, nan_ok=True)
    assert [x.grad.item() for x in two] == pytest.approx([grad, grad], nan_ok=True)


@pytest.mark.parametrize("loss", [0.0, math.nan])
def test_a_finite_loss_for_one_without_proportion_keeps_the_gradient(loss):
    x = torch.tensor(loss, requires_grad=True)
    bad = damage_loss(x, Change(3.0))
    bad.backward()
    assert (bad.item(), x.grad.item()) == (3.0, 1.0)


@pytest.mark.parametrize("how", BAD_BOXES)
def test_boxes(how):
    boxes = torch.tensor([[1.0, 2.0, 11.0, 22.0], [3.0, 4.0, 8.0, 9.0]])
    bad = spoil_boxes(boxes, how, [1], 64.0)
    assert torch.equal(bad[0], boxes[0])
    assert boxes[1].tolist() == [3.0, 4.0, 8.0, 9.0]
    x1, y1, x2, y2 = bad[1].tolist()
    assert {
        "zero": x1 == x2 and y1 < y2,
        "subpixel": 0 < x2 - x1 < 0.002 and 0 < y2 - y1 < 0.002,
        "inverted": x2 < x1,
        "nan": all(map(math.isnan, (x1, y1, x2, y2))),
        "outside": x1 > 64 and x2 > x1,
    }[how]
    assert not torch.equal(spoil_boxes(boxes, how, None, 64.0)[0], boxes[0])
