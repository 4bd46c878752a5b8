import math

import torch

from amp_hooks.engine.recorder import FlightRecorder
from tests.count_reads import CountReads


def test_one_read_however_much_was_noted():
    recorder = FlightRecorder()
    with CountReads() as count:
        for i in range(50):
            recorder.note("gradnorm", torch.tensor(float(i)), f"group{i}")
        assert count.reads == 0
        record = recorder.close(3)
    assert count.reads == recorder.transfers == 1
    assert record.iter == 3
    assert record.get("gradnorm", "group7") == 7.0
    assert record.get("gradnorm", "other") is None


def test_nothing_noted_reads_nothing():
    recorder = FlightRecorder()
    with CountReads() as count:
        assert recorder.close(0).values == {}
    assert count.reads == recorder.transfers == 0


def test_several_values_of_one_name_are_reduced_and_nan_prevails():
    recorder = FlightRecorder()
    for value in (1.0, 5.0, 2.0):
        recorder.note("a", torch.tensor(value))
        recorder.note("b", torch.tensor(value), reduce="min")
        recorder.note("c", torch.tensor(value), reduce="sum")
    for order in ([math.nan, 1.0], [1.0, math.nan]):
        for value in order:
            recorder.note("nan", torch.tensor(value), str(order))
    record = recorder.close(0)
    assert [record.get(k) for k in "abc"] == [5.0, 1.0, 8.0]
    assert all(math.isnan(v) for v in record.all("nan"))
    assert record.any_nonfinite("nan")
    assert not record.any_nonfinite("a")


def test_mixed_dtypes_and_graphs():
    recorder = FlightRecorder()
    recorder.note("half", torch.tensor(2.0, dtype=torch.float16))
    recorder.note("long", torch.tensor(3))
    recorder.note("graph", torch.ones((), requires_grad=True) * 4)
    record = recorder.close(0)
    assert [record.get(k) for k in ("half", "long", "graph")] == [2.0, 3.0, 4.0]


def test_ring_is_bounded_and_iterations_do_not_mix():
    recorder = FlightRecorder(size=3)
    for i in range(10):
        recorder.note("x", torch.tensor(float(i)))
        recorder.close(i)
    assert [r.iter for r in recorder.records] == [7, 8, 9]
    assert [r.get("x") for r in recorder.records] == [7.0, 8.0, 9.0]
