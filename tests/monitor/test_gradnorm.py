import math

import pytest
import torch

from amp_hooks.engine.tensors import parameter_grad_norms
from amp_hooks.monitor.gradnorm import group_norms


def params_with_grads(*grads):
    params = []
    for grad in grads:
        p = torch.nn.Parameter(torch.zeros(3))
        p.grad = grad
        params.append(p)
    return params


def test_equals_clip_grad_norm_and_changes_nothing():
    grads = [torch.tensor([1.0, 2.0, 2.0]), None, torch.tensor([0.0, 4.0, 3.0])]
    params = params_with_grads(*grads)
    before = [None if p.grad is None else p.grad.clone() for p in params]
    norms = parameter_grad_norms(params)
    assert norms.tolist() == [3.0, 0.0, 5.0]
    total = group_norms(norms.tolist(), {"a": [0, 1], "b": [2]})
    expected = torch.nn.utils.clip_grad_norm_(params, 1e9)
    assert total == {"": pytest.approx(expected.item()), "a": 3.0, "b": 5.0}
    for p, old in zip(params, before):
        assert p.grad is None if old is None else torch.equal(p.grad, old)


def test_half_precision_gradients_are_summed_in_float32():
    p = torch.nn.Parameter(torch.zeros(4, dtype=torch.float16))
    p.grad = torch.full((4,), 60000.0, dtype=torch.float16)
    assert parameter_grad_norms([p]).tolist() == [pytest.approx(120000.0, rel=1e-3)]


def test_bad_gradients_show_and_sparse_ones_count():
    norms = parameter_grad_norms(
        params_with_grads(torch.tensor([0.0, float("nan"), 0.0]), torch.ones(3))
    )
    assert not math.isfinite(group_norms(norms.tolist(), {})[""])
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1])).sum().backward()
    # Two uses of one row: its gradient is (2, 2).
    norms = parameter_grad_norms([embedding.weight])
    assert math.isclose(norms.item(), math.sqrt(8), rel_tol=1e-6)


def test_no_gradient_at_all():
    assert parameter_grad_norms(params_with_grads(None, None)) is None
