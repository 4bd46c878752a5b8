import pytest
import torch

from amp_hooks.engine.tensors import named_tensors, nonfinite_names


def test_names_every_bad_tensor_by_its_path():
    tree = {
        "model": {"a": torch.ones(3), "b": torch.tensor([1.0, float("nan")])},
        "optimizer": [{"m": torch.tensor(float("-inf"))}, {"m": torch.zeros(2)}],
        "count": 3,
        "ints": torch.tensor([1, 2]),
    }
    assert nonfinite_names(tree) == ["model.b", "optimizer[0].m"]
    assert nonfinite_names(tree, limit=1) == ["model.b"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_large_finite_values_are_finite(dtype):
    # A check by summing would overflow here.
    large = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    if dtype != torch.float64:
        assert nonfinite_names({"x": large}) == []
    large[7] = float("nan")
    assert nonfinite_names({"x": large}) == ["x"]


def test_plus_and_minus_infinity_do_not_cancel():
    assert nonfinite_names({"x": torch.tensor([float("inf"), float("-inf")])}) == ["x"]


def test_empty_tensors_and_trees():
    assert nonfinite_names({}) == []
    assert nonfinite_names({"x": torch.empty(0)}) == []
    assert list(named_tensors(torch.ones(1)))[0][0] == ""
