"""The parts of which the trial of the first batch consists."""

import pytest
import torch
from torch import nn

from amp_hooks.engine.preserved import IMPOSSIBLE
from amp_hooks.forensics.replay import dense, in_a_line
from amp_hooks.preflight.batch_findings import _needs_others
from amp_hooks.preflight.first_batch import Layers, count_images, first_images, largest

IMAGE = torch.zeros(3, 8, 8)
IMAGES = torch.zeros(4, 3, 8, 8)


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (dict(inputs=[IMAGE, IMAGE], data_samples=[0, 1]), 2),
        (dict(inputs=IMAGES, data_samples=[0, 1, 2, 3]), 4),
        (dict(inputs=dict(sup=[IMAGE, IMAGE])), 2),
        ([IMAGES, torch.zeros(4)], 4),
        ((IMAGES, [0, 1, 2, 3]), 4),
        ([IMAGES[:2], torch.zeros(2)], 2),
        ([IMAGE, IMAGE], 2),
        ([dict(inputs=IMAGE), dict(inputs=IMAGE)], 2),
        (torch.zeros(()), 0),
        (None, 0),
    ],
)
def test_images_are_counted_and_cut(batch, count):
    assert count_images(batch) == count
    if count > 1:
        cut = first_images(batch, 1, count)
        assert type(cut) is type(batch)
        assert count_images(cut) == 1


def test_boxes_of_each_image_stay_whole():
    boxes = [torch.zeros(3, 4), torch.zeros(3, 4)]
    cut = first_images(dict(inputs=[IMAGE, IMAGE], gt_bboxes=boxes), 1, 2)
    assert [len(b) for b in cut["gt_bboxes"]] == [3]


class Spectrum(nn.Module):
    """A layer whose output is complex."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))

    def forward(self, x):
        return torch.fft.fft(x @ self.weight)


def test_a_complex_output_is_not_measured():
    model = nn.Sequential(Spectrum())
    layers = Layers(model)
    model(torch.ones(1, 2))
    assert layers.close() == {}
    assert layers.failed == ""


def test_what_cannot_be_measured_costs_the_model_nothing(monkeypatch):
    model = nn.Sequential(nn.Linear(2, 2))
    layers = Layers(model)
    monkeypatch.setattr("amp_hooks.preflight.first_batch.peak", lambda *args: 1 / 0)
    model(torch.ones(1, 2))
    layers.close()
    assert layers.failed == "0: ZeroDivisionError: division by zero"


def test_the_largest_of_a_sparse_or_empty_gradient():
    weight = torch.ones(4, 2, requires_grad=True)
    rows = nn.functional.embedding(torch.tensor([1, 1]), weight, sparse=True)
    (grad,) = torch.autograd.grad(rows.sum() * -3, weight)
    assert grad.is_sparse
    assert float(largest(dense(grad))) == 6.0
    assert float(largest(torch.zeros(0, 4))) == 0.0


def test_an_error_in_a_line():
    assert in_a_line(RuntimeError("one\ntwo")) == "RuntimeError: one"
    assert in_a_line(ValueError()) == "ValueError: "


def test_an_error_of_being_alone(monkeypatch):
    one_value = "ValueError: Expected more than 1 value per channel when training"
    assert not _needs_others(one_value, "")
    assert _needs_others("", f"RuntimeError: {IMPOSSIBLE} (alone.py:55)")
    monkeypatch.setattr("mmengine.dist.get_world_size", lambda: 2)
    assert _needs_others(one_value, "")
    assert not _needs_others("KeyError: 'x'", "")
