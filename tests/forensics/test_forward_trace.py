"""Where values stop being finite, in models small enough to see through."""

import math

import pytest
import torch
from torch import nn

from amp_hooks.engine.tensors import named_tensors
from amp_hooks.forensics.forward_trace import ForwardTrace
from amp_hooks.precision.half_rehearsal import half_rehearsal


def trace(model, *args, frames=21):
    model.train()
    hooks = [len(m._forward_hooks) for m in model.modules()]
    with ForwardTrace(model, frames, named_tensors) as t:
        model(*args)
    assert hooks == [len(m._forward_hooks) for m in model.modules()]
    assert not any(m._forward_pre_hooks for m in model.modules())
    return t


class Block(nn.Module):
    """A residual block with code of its own."""

    def __init__(self, own=lambda x: x, before=lambda x: x):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.relu = nn.ReLU(inplace=True)
        self.own, self.before = own, before
        nn.init.ones_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x):
        return self.own(self.relu(self.conv(self.before(x))) + x)


class Head(nn.Module):
    """Its losses are computed in a method that is no module call, as mmdet's are."""

    def __init__(self, target=lambda x: x):
        super().__init__()
        self.fc = nn.Conv2d(1, 1, 1)
        self.loss_cls = nn.L1Loss()
        self.target = target
        nn.init.ones_(self.fc.weight)

    def loss(self, x):
        return self.loss_cls(self.fc(x), self.target(x))


class Detector(nn.Module):
    def __init__(self, *blocks, head=None):
        super().__init__()
        self.backbone = nn.Sequential(*blocks)
        self.head = head or Head()

    def forward(self, x):
        return self.head.loss(self.backbone(x))


def images(value=1.0):
    return torch.full((1, 1, 2, 2), value)


def test_a_finite_pass_is_finite_and_keeps_the_last_frames():
    t = trace(Detector(Block(), Block()), images(), frames=3)
    assert t.origin is None
    assert [f.module for f in t.frames] == ["head.fc", "head.loss_cls", ""]
    fc = t.frames[0]
    assert [row.name for row in fc.rows] == ["weight", "bias", "input[0]", "output"]
    assert fc.rows[2].absmax == 4.0  # doubled by each block


def test_the_innermost_module_is_named_not_those_around_it():
    model = Detector(Block(), Block(), Block())
    model.backbone[1].conv.register_forward_hook(lambda m, i, out: out * math.nan)
    origin = trace(model, images()).origin
    assert (origin.kind, origin.module) == ("nan", "backbone.1.conv")


def test_code_of_a_module_after_its_children():
    model = Detector(Block(), Block(own=lambda x: x / 0.0))
    origin = trace(model, images()).origin
    assert (origin.kind, origin.module) == ("overflow", "backbone.1")
    assert origin.operation.name in ("__truediv__", "div", "true_divide")
    assert "test_forward_trace.py" in origin.operation.where
    assert "x / 0.0" in origin.operation.code


def test_code_of_a_module_before_its_child():
    model = Detector(Block(), Block(before=lambda x: (x - 2).log()))
    origin = trace(model, images()).origin  # the input is 2 there, so log(0)
    assert (origin.kind, origin.module) == ("code", "backbone.1")
    assert origin.consumer == "backbone.1.conv"
    assert origin.operation.name == "log"


def test_code_of_a_head_between_its_modules():
    model = Detector(head=Head(target=lambda x: (x - 1).sqrt() / (x - 1)))
    origin = trace(model, images()).origin
    assert (origin.kind, origin.module) == ("code", "head")
    assert (origin.consumer, origin.tensors) == ("head.loss_cls", ["input[1]"])


def test_a_weight_that_is_not_finite():
    model = Detector(Block(), Block())
    with torch.no_grad():
        model.backbone[1].conv.weight.fill_(math.inf)
    origin = trace(model, images()).origin
    assert (origin.kind, origin.module) == ("weights", "backbone.1.conv")
    assert origin.tensors == ["weight"]


def test_statistics_that_are_not_finite():
    model = Detector(Block(), nn.BatchNorm2d(1))
    model.backbone[1].running_mean.fill_(math.nan)
    with ForwardTrace(model.eval(), 21, named_tensors) as t:
        model(images())
    assert (t.origin.kind, t.origin.module) == ("weights", "backbone.1")
    assert t.origin.tensors == ["running_mean"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_the_model_is_given(value):
    origin = trace(Detector(Block()), images(value)).origin
    assert (origin.kind, origin.module) == ("input", "")


def test_an_operation_in_place_does_not_hide_its_input():
    """ReLU(inplace=True) maps -inf to 0 and NaN to NaN in its own input."""
    model = Detector(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(inplace=True)))
    with torch.no_grad():
        model.backbone[0][0].weight.fill_(3e38)
    origin = trace(model, images(-100.0)).origin
    assert (origin.kind, origin.module) == ("overflow", "backbone.0.0")


def test_the_call_of_a_shared_module():
    conv = nn.Conv2d(1, 1, 1)
    nn.init.ones_(conv.weight)
    scale = nn.Conv2d(1, 1, 1)
    nn.init.constant_(scale.weight, 1e20)
    origin = trace(Detector(conv, scale, conv, scale, conv), images()).origin
    assert (origin.module, origin.frame.call) == ("backbone.1", 2)


class Mask(nn.Module):
    def forward(self, x):
        return x.masked_fill(x > 0, -math.inf)


def test_masking_on_purpose_is_no_fault():
    model = Detector(Mask(), nn.Softmax(0), Block())
    assert trace(model, images(-1.0)).origin is None
    mixed = torch.tensor([[[[1.0, -1.0]]], [[[-1.0, -1.0]]]])
    assert trace(model, mixed).origin is None


def test_a_mask_that_does_harm_is_named_for_it():
    origin = trace(Detector(Mask(), nn.Softmax(0)), images()).origin
    assert (origin.kind, origin.module) == ("overflow", "backbone.0")


def test_minus_infinity_of_a_convolution_is_overflow():
    model = Detector(nn.Conv2d(1, 1, 1), nn.Softmax(0))
    with torch.no_grad():
        model.backbone[0].weight.fill_(-3e38)
    origin = trace(model, images(100.0)).origin
    assert (origin.kind, origin.module) == ("overflow", "backbone.0")


def test_half_precision_overflows_where_it_is_computed():
    model = Detector(Block(), Block())
    with torch.no_grad():
        model.backbone[1].conv.weight.fill_(40000.0)
    assert trace(model, images()).origin is None
    with half_rehearsal():
        origin = trace(model, images()).origin
    assert (origin.kind, origin.module) == ("overflow", "backbone.1.conv")


def test_a_mask_is_not_blamed_for_what_comes_later():
    """As in Grounding DINO, whose text masks are there in every forward pass."""
    later = Block(before=lambda x: (x - x).log() * 0)
    t = trace(Detector(Mask(), nn.Softmax(0), later), images_of_two())
    assert (t.origin.kind, t.origin.module) == ("code", "backbone.2")
    assert t.origin.consumer == "backbone.2.conv"


def images_of_two():
    return torch.tensor([[[[1.0, -1.0]]], [[[-1.0, -1.0]]]])


class Neck(nn.Module):
    """Sums between the calls of what it keeps in lists, as FPN does."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)])

    def forward(self, x):
        return self.convs[1](self.convs[0](x) / 0.0)


def test_a_list_of_modules_has_no_code():
    origin = trace(Detector(Neck()), images()).origin
    assert (origin.kind, origin.module) == ("code", "backbone.0")


class Shifted(Detector):
    def forward(self, x):
        return self.head.loss(self.backbone(x) / 0.0)


def test_code_of_the_detector_between_its_parts():
    origin = trace(Shifted(Block()), images()).origin
    assert (origin.kind, origin.module, origin.consumer) == ("code", "", "head.fc")


class Averaging(nn.Module):
    """Spoils a buffer with what it computes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        y = (x - 2).log()
        self.mean += y.detach().mean()
        return y


def test_a_buffer_that_the_fault_spoils_is_not_its_cause():
    origin = trace(Detector(Averaging()), images()).origin
    assert (origin.kind, origin.module) == ("nan", "backbone.0")
    assert origin.operation.name == "log"


class Trying(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Block(own=self.fail), Block(own=lambda x: x / 0.0)

    def fail(self, x):
        raise KeyError(x)

    def forward(self, x):
        try:
            return self.a(x)
        except KeyError:
            return self.b(x)


def test_an_exception_that_the_model_bears():
    origin = trace(Detector(Trying()), images()).origin
    assert (origin.kind, origin.module) == ("overflow", "backbone.0.b")


class Odd(nn.Module):
    """Hands on what can hold NaN and is no ordinary tensor."""

    def __init__(self, convert):
        super().__init__()
        self.convert = convert

    def forward(self, x):
        self.kept = self.convert(x)
        return self.kept


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.to_sparse(),
        lambda x: x.flatten(1).to_sparse_csr(),
        lambda x: x.to(getattr(torch, "float8_e4m3fn", torch.int8)),
        lambda x: x.to("meta"),
        lambda x: None,
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_what_cannot_be_measured_stops_nothing(convert):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd = Odd(convert)

        def forward(self, x):
            self.odd(x)
            return x

    origin = trace(Detector(Aside(), Block(own=lambda x: x / 0.0)), images()).origin
    assert (origin.kind, origin.module) == ("overflow", "backbone.1")


def test_a_complex_output():
    spectrum = Odd(lambda x: torch.fft.fft(x * 1e38 * 10))
    back = Odd(lambda x: x.abs())
    origin = trace(Detector(spectrum, back), images()).origin
    assert (origin.kind, origin.module) == ("overflow", "backbone.0")


def test_an_exception_leaves_no_hook():
    def fail(x):
        raise ValueError("matrix contains invalid numeric entries")

    model = Detector(Block(), Block(own=fail))
    t = ForwardTrace(model, 21, named_tensors)
    with pytest.raises(ValueError, match="invalid numeric"), t:
        model(images())
    assert t.origin is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
