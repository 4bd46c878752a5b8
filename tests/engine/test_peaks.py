"""Many tensors are measured at once, and each is told its own."""

import math

import pytest
import torch

from amp_hooks.engine.peaks import Peaks, Seen
from amp_hooks.engine.recorder import FlightRecorder
from tests.count_launches import CountLaunches
from tests.count_reads import CountReads

INF, NAN = math.inf, math.nan


class Told(dict):
    def of(self, name):
        return lambda record, peaks: self.setdefault(name, []).extend(peaks)


def measure(given, counts=lambda one: True, harmless=lambda one: False):
    """Whether each group is as it must be, and what everyone was told."""
    recorder, told = FlightRecorder(), Told()
    peaks = Peaks(recorder)
    seen = [
        Seen(name, [torch.as_tensor(t) for t in tensors], told.of(name))
        for name, tensors in given.items()
    ]
    with CountReads() as reads:
        flags = peaks.measure(seen, counts, harmless)
    assert reads.reads == 0
    peaks.tell(recorder.close(0))
    return [flag.item() == 0 for flag in flags], told


def test_each_is_told_its_own_in_its_own_order():
    given = {"a": [[1.0, -3.0], [[2.0]]], "b": [[0.0, 0.5]], "": [[7.0]]}
    assert measure(given) == ([True], {"a": [3.0, 2.0], "b": [0.5], "": [7.0]})
    # What counts comes first on the device, and nobody is mixed up with another.
    found = measure(given, counts=lambda one: one.name == "b")
    assert found == ([True], {"a": [3.0, 2.0], "b": [0.5], "": [7.0]})


def test_dtypes_are_measured_apart():
    half = torch.tensor([65504.0, -1.0], dtype=torch.float16)
    wide = torch.tensor([1e30])
    flags, told = measure({"a": [half, half / 2], "b": [wide]})
    assert flags == [True, True]
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
        seen = [Seen("a", [torch.ones(5) for _ in range(n)], lambda *args: None)]
        peaks.measure(seen, lambda s: True, lambda s: False)  # makes its zeros
        with CountLaunches() as count:
            peaks.measure(seen, lambda s: True, lambda s: False)
        assert dict(count.names) == {"_foreach_norm": 1, "stack": 1, "dot": 1}
