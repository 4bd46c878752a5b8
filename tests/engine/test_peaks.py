"""Many tensors are measured at once, and each is told its own."""

import math

import pytest
import torch

from amp_hooks.engine.peaks import Peaks, Seen
from amp_hooks.engine.recorder import FlightRecorder
from amp_hooks.engine.tensors import peak_of
from tests.count_launches import CountLaunches
from tests.count_reads import CountReads

INF, NAN = math.inf, math.nan


def measure(given, counts=lambda one: True, harmless=lambda one: False):
    """Whether all is as it must be, and what everyone was told."""
    recorder, told = FlightRecorder(), {}
    peaks = Peaks(recorder)

    def of(name):
        return lambda record, peak: told.setdefault(name, []).append(peak)

    seen = [
        Seen(name, peak_of(torch.as_tensor(values)), of(name))
        for name, tensors in given.items()
        for values in tensors
    ]
    with CountReads() as reads:
        flags = peaks.note(seen, counts, harmless)
    assert reads.reads == 0
    peaks.tell(recorder.close(0))
    return [flag.item() == 0 for flag in flags], told


def test_each_is_told_its_own_in_its_own_order():
    given = {"a": [[1.0, -3.0], [[2.0]]], "b": [[0.0, 0.5]], "": [[7.0]]}
    assert measure(given) == ([True], {"a": [3.0, 2.0], "b": [0.5], "": [7.0]})
    # What counts comes first on the device, and nobody is mixed up with another.
    found = measure(given, counts=lambda one: one.name == "b")
    assert found == ([True], {"a": [3.0, 2.0], "b": [0.5], "": [7.0]})


def test_of_any_dtype():
    half = torch.tensor([65504.0, -1.0], dtype=torch.float16)
    wide = torch.tensor([1e30])
    flags, told = measure({"a": [half, half / 2], "b": [wide]})
    assert flags == [True]
    assert told == {"a": [65504.0, 32752.0], "b": [pytest.approx(1e30)]}


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_value_is_enough(bad):
    flags, told = measure({"a": [[1.0, 2.0]], "b": [[3.0, bad, 1.0]]})
    assert flags == [False]
    assert told["a"] == [2.0]
    assert not math.isfinite(told["b"][0])
    flags, _ = measure({"a": [[1.0]], "b": [[bad]]}, counts=lambda s: s.name == "a")
    assert flags == [True]
    assert measure({"b": [[bad]]}, counts=lambda s: False)[0] == []


@pytest.mark.parametrize(("bad", "fine"), [(NAN, False), (INF, True), (-INF, True)])
def test_where_infinities_do_no_harm_nan_does(bad, fine):
    flags, _ = measure(
        {"a": [[1.0, bad]], "b": [[2.0]]}, harmless=lambda s: s.name == "a"
    )
    assert flags == [fine]
    flags, _ = measure({"a": [[1.0]], "b": [[bad]]}, harmless=lambda s: s.name == "a")
    assert flags == [False]


def test_few_launches_however_many():
    recorder = FlightRecorder()
    peaks = Peaks(recorder)
    for n in (3, 300):
        seen = [Seen("a", torch.ones(()), lambda *args: None) for _ in range(n)]
        peaks.note(seen, lambda s: True, lambda s: False)  # makes its zeros
        with CountLaunches() as count:
            peaks.note(seen, lambda s: True, lambda s: False)
        assert dict(count.names) == {"stack": 1, "dot": 1}
