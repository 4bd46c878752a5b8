"""What was raised of NaN, whatever it says."""

import gc
import math
import weakref
from collections import OrderedDict

import pytest
import torch
from torch.nn import functional as F

from amp_hooks.engine.nan_variables import among_nan
from tests import small

NAN = torch.full((3,), math.nan, requires_grad=True)
LABELS = torch.full((3,), math.nan)


def raised(call):
    """As of a training step."""

    def train_step():
        call()

    with pytest.raises(BaseException) as caught:  # noqa: PT011
        train_step()
    return caught.value


def one_hot(scores=NAN):
    F.one_hot(scores.round().long(), 3)


def index(scores=NAN):
    torch.arange(3)[scores.long()]


def svd(costs=NAN):
    torch.linalg.svd(costs.detach().outer(costs.detach()))


def own_words(loss=NAN):
    raise Exception("loss is of no use")  # noqa: TRY002


def in_a_list():
    levels = OrderedDict(logits=[torch.zeros(2), (NAN,)])
    raise RuntimeError(f"{len(levels)} level")


def detr(loss=NAN):
    raise SystemExit(1)


@pytest.mark.parametrize("call", [one_hot, index, svd, own_words, in_a_list, detr])
def test_functions_that_were_given_nan(call):
    assert among_nan(raised(call))


def mask(costs=torch.tensor([-math.inf, math.inf], requires_grad=True)):  # noqa: B008
    raise ValueError(f"{len(costs)} costs")


def labels_that_are_not_known(labels=LABELS, metrics=math.nan):
    raise ValueError(f"{len(labels)} labels")


def slip(scores=NAN):
    return scores.no_such_method()


def another_slip(scores=NAN):
    return {}["gt_masks"]


def unpacking(scores=NAN):
    _, _ = [scores]


def memory(scores=NAN):
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


def lacking(scores=NAN):
    raise RuntimeError("\"nms\" not implemented for 'BFloat16'")


def another_rank(scores=NAN):
    raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")


def stopped(scores=NAN):
    raise KeyboardInterrupt


def end_of_it(scores=NAN):
    raise SystemExit(0)


def end_by_a_scheduler(scores=NAN):
    raise SystemExit(143)


@pytest.mark.parametrize(
    "call",
    [
        *(mask, labels_that_are_not_known, slip, another_slip, unpacking, memory),
        *(lacking, another_rank, stopped, end_of_it, end_by_a_scheduler),
        lambda: [].index(1),
    ],
)
def test_what_has_another_cause(call):
    assert not among_nan(raised(call))


def test_of_a_hook_nothing_is_looked_at():
    """It has the outputs of the step in its variables."""
    with pytest.raises(RuntimeError) as caught:
        in_a_list()
    assert not among_nan(caught.value)


def test_what_cannot_be_looked_at_is_no_nan():
    def lazy():
        kinds = [torch.empty(3, device="meta", requires_grad=True)]
        kinds.append(torch.zeros(2, 2, requires_grad=True).to_sparse())
        raise ValueError(f"{len(kinds)} of theirs")

    assert not among_nan(raised(lazy))


def test_nothing_of_such_an_iteration_is_kept(tmp_path):
    """Its activations would fill the memory of a GPU."""
    alive = []

    class Raises(small.Small):
        def losses(self, features, logits, y):
            if self.calls % 2:
                logits = logits * math.nan
                alive.append(weakref.ref(logits))
                F.one_hot(logits.softmax(1).sum(1).round().long(), 64)
            return super().losses(features, logits, y)

    guard = dict(type="amp_hooks.StepGuardHook")
    runner = small.build(tmp_path, [guard], Raises, iters=20)
    gc.collect()
    gc.disable()
    try:
        runner.train()
        kept = [logits for logits in alive if logits() is not None]
    finally:
        gc.enable()
    assert len(small.ledger(runner, "veto")) == len(alive) == 10
    assert not kept
