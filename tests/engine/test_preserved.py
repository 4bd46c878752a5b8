"""A second run of a forward pass leaves nothing in the model."""

import numpy as np
import pytest
import torch
from torch import nn

from amp_hooks.engine.preserved import preserved


class Assigner:
    """A plain object that a head holds, in a list."""

    def __init__(self):
        self.threshold, self.seen = 0.5, []
        self.costs = torch.zeros(2)


class Counting(nn.Module):
    """Keeps books in every way that mmdet's heads do."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(2)
        self.register_buffer("average", torch.zeros(1))
        self.register_buffer("expanded", torch.zeros(1).expand(4))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.beta, self.pair, self.last = np.float64(1.0), (1, 2), torch.zeros(2)
        self.steps, self.history, self.by_name = 0, [], {"a": [1]}
        self.assigners = [Assigner()]
        self.table, self.counts = torch.ones(3), np.zeros(4)
        self.generator = torch.Generator()

    def forward(self, x):
        self.steps += 1
        self.history.append(float(x.mean()))
        self.by_name["a"].append(2)
        self.beta, self.pair, self.last = np.float64(2.0), (3, 4), x
        self.assigners[0].threshold *= 0.5
        self.assigners[0].seen.append(1)
        self.new_one = 1
        self.table[1:].add_(1)
        self.assigners[0].costs[0] = 7.0
        self.counts += 1
        torch.rand(1, generator=self.generator)
        with torch.no_grad():
            self.frozen.mul_(0.9)
        self.average = self.average * 0.9 + 1
        self.eval()
        self.train()
        return self.bn(x)


def test_nothing_of_a_second_run_stays_in_the_model():
    model = Counting().train()
    model(torch.randn(4, 2))
    del model.new_one
    # As autograd would see it, were the model in the middle of an iteration.
    tensors = {n: (t, t.clone(), t._version) for n, t in both(model)}
    before = public(model)
    history, inner = model.history, model.by_name["a"]
    rng = model.generator.get_state()
    with pytest.raises(ValueError, match="more than 1 value"), preserved(model):
        model(torch.randn(1, 2))  # BatchNorm refuses it, after all the books were kept
    for name, t in both(model):
        original, value, version = tensors[name]
        assert t is original, name
        assert torch.equal(t, value), name
        assert t._version == version, name
    assert before.keys() == public(model).keys()
    assert all(value is before[name] for name, value in public(model).items())
    assert model.history is history
    assert model.by_name["a"] is inner
    assert (model.steps, len(history), model.by_name) == (1, 1, {"a": [1, 2]})
    assert (model.assigners[0].threshold, model.assigners[0].seen) == (0.25, [1])
    assert model.table.tolist() == [1.0, 2.0, 2.0]
    assert model.counts.tolist() == [1.0] * 4
    assert model.assigners[0].costs.tolist() == [7.0, 0.0]
    assert torch.equal(model.generator.get_state(), rng)
    assert model.bn.training


def test_what_has_been_exchanged_comes_back_if_the_rest_cannot_be_copied(monkeypatch):
    """Memory may run out in the middle of it."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].requires_grad_(False)
    model[1].weight = model[0].weight  # tied
    before = {name: id(t) for name, t in both(model)}
    calls = []

    def clone(tensor):
        calls.append(1)
        if len(calls) == 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return nn.Parameter(tensor.detach().clone(), requires_grad=False)

    monkeypatch.setattr("amp_hooks.engine.preserved._copy", clone)
    with pytest.raises(torch.cuda.OutOfMemoryError), preserved(model):
        raise AssertionError("not reached")
    assert {name: id(t) for name, t in both(model)} == before


def public(model):
    return {k: v for k, v in vars(model).items() if not k.startswith("_")}


def both(model):
    return [*model.named_parameters(), *model.named_buffers()]
