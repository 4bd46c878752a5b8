import collections

import pytest
import torch

from amp_hooks.rollback.host_copy import HostCopier, host_bytes


def tree():
    weight = torch.randn(3, 4)
    return dict(
        model=collections.OrderedDict(w=weight, half=weight.half(), i=torch.arange(3)),
        nested=[(weight.t(), 7), dict(empty=torch.zeros(0), text="x")],
        again=weight,
        bf16=weight.bfloat16(),
        counts=collections.defaultdict(int, a=1),
        last=weight.view(1, 3, 2, 2).to(memory_format=torch.channels_last),
    )


def leaves(t):
    return [
        t["model"]["w"],
        t["model"]["half"],
        t["model"]["i"],
        t["nested"][0][0],
        t["nested"][1]["empty"],
        t["again"],
        t["bf16"],
        t["last"],
    ]


def test_bits_dtypes_and_layouts_are_kept():
    original = tree()
    copy = HostCopier().copy(original)
    for a, b in zip(leaves(original), leaves(copy)):
        assert a.dtype == b.dtype
        assert a.stride() == b.stride()
        assert torch.equal(a, b)
        assert not a.numel() or a.data_ptr() != b.data_ptr()
    assert copy["nested"][0][1] == 7
    assert type(copy["model"]) is collections.OrderedDict
    assert type(copy["counts"]) is collections.defaultdict
    assert copy["counts"] == {"a": 1}
    assert copy["counts"] is not original["counts"]


def test_shared_memory_is_copied_once():
    original = tree()
    copy = HostCopier().copy(original)
    assert copy["again"] is copy["model"]["w"]
    w = original["model"]["w"]
    once = 3 * w.numel() * 4  # w, its transpose, last
    assert host_bytes(copy) == once + 2 * w.numel() * 2 + 3 * 8


def test_a_parameter_and_its_entry_in_a_state_dict_are_one():
    layer = torch.nn.Linear(2, 2)
    copy = HostCopier().copy([layer.state_dict(), layer.state_dict()])
    assert copy[0]["weight"] is copy[1]["weight"]
    assert not copy[0]["weight"].requires_grad


def test_recycled_memory_is_used_again():
    copier = HostCopier()
    first = copier.copy(tree())
    where = {t.data_ptr() for t in leaves(first) if t.numel()}
    copier.recycle(first)
    later = tree()
    second = copier.copy(later)
    assert {t.data_ptr() for t in leaves(second) if t.numel()} == where
    assert all(torch.equal(a, b) for a, b in zip(leaves(later), leaves(second)))
    third = copier.copy(later)  # it has been used up
    assert not {t.data_ptr() for t in leaves(third) if t.numel()} & where


@pytest.mark.parametrize("pinned", [False, True])
def test_without_a_gpu_pinning_changes_nothing(pinned):
    copy = HostCopier(pinned).copy(torch.ones(2))
    assert not copy.is_pinned()
    assert torch.equal(copy, torch.ones(2))
