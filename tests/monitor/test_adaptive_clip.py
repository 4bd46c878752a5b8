import math

import pytest
import torch

from amp_hooks.monitor.gradnorm import AdaptiveClip, multiply_gradients
from tests.count_reads import CountReads


def feed(clip, norms):
    return [clip.coefficient(torch.tensor(float(n))).item() for n in norms]


def reference(norms, z_threshold=2.5, alpha=0.97, warmup=25):
    """The same in plain Python, with the paper's z-score and reciprocal clip."""
    mean = var = count = 0.0
    factors = []
    for g in norms:
        if not math.isfinite(g):
            factors.append(1.0)
            continue
        std, factor = math.sqrt(var), 1.0
        if count >= warmup and std and (g - mean) / std > z_threshold:
            z = (g - mean) / std
            factor = (mean + z_threshold**2 / z * std) / g
        factors.append(factor)
        weight = 1 / (count + 1) if count < warmup else 1 - alpha
        delta = g * factor - mean
        mean, var = mean + weight * delta, (1 - weight) * (var + weight * delta**2)
        count += 1
    return factors


def test_clips_spikes_only_and_equals_the_reference():
    torch.manual_seed(0)
    norms = (2.0 + 0.3 * torch.randn(200)).abs().tolist()
    norms[10] = 50.0  # in the warm-up: nothing is clipped
    norms[100], norms[101], norms[150] = 60.0, 80.0, math.inf
    norms[160] = math.nan
    got, want = feed(AdaptiveClip(), norms), reference(norms)
    assert got == pytest.approx(want, rel=1e-4)
    assert got[10] == got[150] == got[160] == 1.0
    assert 0.0 < got[100] < 0.5
    assert 0.0 < got[101] < 0.5
    assert sum(f < 1.0 for f in got) < 20


def test_a_nan_does_not_stick():
    clip, clean = AdaptiveClip(), AdaptiveClip()
    for i in range(60):
        feed(clean, [1.0 + i % 5])
        feed(clip, [1.0 + i % 5, math.nan, math.inf])
    assert clip.state() == clean.state()


def test_stays_on_the_device_and_state_goes_round():
    clip, other = AdaptiveClip(), AdaptiveClip()
    norms = [torch.tensor(1.0 + i % 3) for i in range(40)]
    with CountReads() as count:
        for norm in norms:
            clip.coefficient(norm)
    assert count.reads == 0
    other.load_state(clip.state())
    assert feed(other, [30.0, 2.0]) == feed(clip, [30.0, 2.0])


def test_multiplies_dense_sparse_and_missing_gradients():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1, 1, 2])).sum().backward()
    dense, missing = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    dense.grad = torch.tensor([4.0, -math.inf])
    multiply_gradients([embedding.weight, dense, missing], torch.tensor(0.5))
    assert embedding.weight.grad.to_dense()[:, 0].tolist() == [0.0, 1.0, 0.5, 0.0]
    assert dense.grad.tolist() == [2.0, -math.inf]
    assert missing.grad is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(dict(alpha=1.5), "alpha"), (dict(z_threshold=0), "z_thr"), (dict(warmup=0), "2")],
)
def test_wrong_values(wrong, words):
    with pytest.raises(ValueError, match=words):
        AdaptiveClip(**wrong)
