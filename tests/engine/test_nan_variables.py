"""What was raised of NaN, whatever it says."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from amp_hooks.engine.nan_variables import among_nan

NAN = torch.full((3,), math.nan)


def raised(call):
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        call()
    return caught.value


def one_hot(scores=NAN):
    F.one_hot(scores.round().long(), 3)


def index(scores=NAN):
    torch.arange(3)[scores.long()]


def svd(costs=NAN):
    torch.linalg.svd(costs.outer(costs))


def own_words(loss=math.nan):
    raise Exception(f"loss={loss}")  # noqa: TRY002


def in_an_array():
    costs = np.array([1.0, np.nan])
    raise ValueError(f"{len(costs)} costs are of no use")


def in_a_list():
    levels = dict(logits=[torch.zeros(2), (NAN,)])
    raise RuntimeError(f"{len(levels)} level")


def detr(loss=NAN):
    raise SystemExit(1)


def mask():
    costs = torch.tensor([-math.inf, math.inf])
    raise ValueError(f"{len(costs)} costs")


def slip(scores=NAN):
    return scores.no_such_method()


def memory(scores=NAN):
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


def lacking(scores=NAN):
    raise RuntimeError("\"nms\" not implemented for 'BFloat16'")


def stopped(scores=NAN):
    raise KeyboardInterrupt


def end_of_it(scores=NAN):
    raise SystemExit(0)


@pytest.mark.parametrize("call", [one_hot, index, svd, own_words, in_an_array])
def test_functions_that_were_given_nan(call):
    assert among_nan(raised(call))


@pytest.mark.parametrize("call", [in_a_list, detr])
def test_where_nan_is_looked_for(call):
    assert among_nan(raised(call))


@pytest.mark.parametrize(
    "call", [mask, slip, memory, lacking, stopped, end_of_it, lambda: [].index(1)]
)
def test_what_has_another_cause(call):
    assert not among_nan(raised(call))


def test_what_cannot_be_looked_at_is_no_nan():
    def lazy():
        kinds = [torch.empty(3, device="meta"), torch.zeros(2, 2).to_sparse()]
        raise ValueError(f"{len(kinds)} of theirs")

    assert not among_nan(raised(lazy))
