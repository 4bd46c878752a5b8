"""Numbers in, findings out."""

import math

import pytest
import torch

from amp_hooks.preflight import batch_rules as preflight
from amp_hooks.preflight import setup_rules as preflight_setup
from amp_hooks.preflight.setup_rules import Images, Predictions

INF, NAN = math.inf, math.nan


def names(findings):
    return {f.name: f.fails for f in findings}


def test_relative_differences():
    one = dict(a=2.0, b=0.01, c=0.0, d=1.0, e=1.0)
    other = dict(a=1.5, b=0.0, c=0.0, d=math.inf)
    shares = preflight.relative_differences(one, other)
    assert math.isnan(shares.pop("d"))
    assert shares == pytest.approx(dict(a=0.25, b=0.2, c=0.0))


@pytest.mark.parametrize(
    ("fp32", "amp", "found"),
    [
        (dict(loss=2.0), dict(loss=2.1), False),
        (dict(loss=2.0), dict(loss=1.4), True),
        (dict(loss=2.0), dict(loss=0.0), True),
        (dict(loss=0.005), dict(loss=0.04), False),  # both next to nothing
        (dict(loss=0.0), dict(loss=0.2), True),
        (dict(loss=2.0), dict(loss=NAN), False),  # told by nonfinite_amp
        (dict(loss=2.0), {}, False),
    ],
)
def test_losses_differ(fp32, amp, found):
    findings = preflight.losses_differ(fp32, amp, "float16")
    assert names(findings) == ({"losses_differ": False} if found else {})


@pytest.mark.parametrize(
    ("peak", "dtype", "fails"),
    [
        (99.0, "float16", None),
        (101.0, "float16", False),
        (65504.0, "float16", False),
        (65505.0, "float16", True),
        (65505.0, "bfloat16", False),
        (65505.0, "float32", False),
        (INF, "bfloat16", True),
    ],
)
def test_large_logits(peak, dtype, fails):
    findings = preflight.large_logits({"head.fc_cls": peak}, dtype)
    assert [f.fails for f in findings] == ([] if fails is None else [fails])
    assert all("head.fc_cls" in f.what for f in findings)


@pytest.mark.parametrize(
    ("peaks", "scale", "fixed", "overflowed", "expected", "fits"),
    [
        ([1.0, 1e-4], 65536.0, False, True, {}, ""),  # GradScaler's own calibration
        ([208.0, 1e-3], 65536.0, False, True, {}, ""),  # DETR's
        ([1.0], 512.0, True, False, {}, ""),
        ([1.0], 65536.0, True, False, {"loss_scale_high": True}, "16384.0"),
        # An activation's gradient, which is not seen, is larger.
        ([1.0], 512.0, True, True, {"loss_scale_high": True}, "=256.0"),
        ([1.0], 2.0**30, False, True, {"loss_scale_high": False}, "16384.0"),
        ([1e5], 65536.0, False, True, {"loss_scale_high": True}, ""),
        ([1.0, 1e-9, 1e-9, 0.0], 1.0, True, False, {"loss_scale_low": False}, "16384"),
        ([1.0] * 9 + [1e-9], 1.0, True, False, {}, ""),
        ([1e-9] * 9, 0.0, False, False, {"loss_scale_low": False}, "65536.0"),
        ([0.0], 1.0, True, False, {}, ""),
        ([], 1.0, True, False, {}, ""),
    ],
)
def test_loss_scale(peaks, scale, fixed, overflowed, expected, fits):
    by_name = {f"p{i}": peak for i, peak in enumerate(peaks)}
    findings = preflight.loss_scale(by_name, scale, fixed, overflowed)
    assert names(findings) == expected
    assert all(fits in f.lines for f in findings)


def test_a_named_scale_leaves_nothing_to_find():
    peaks = {"a": 3.7, "b": 2e-5}
    (finding,) = preflight.loss_scale(peaks, 65536.0, True, True)
    scale = float(finding.lines.split("init_scale=")[1].rstrip(")"))
    assert preflight.loss_scale(peaks, scale, True, False) == []


def test_the_line_of_one_optimizer_of_several():
    (finding,) = preflight.loss_scale({"a": 1.0}, 65536.0, True, True, "body")
    assert finding.lines == (
        "optim_wrapper = dict(body=dict(loss_scale=dict(init_scale=16384.0)))"
    )
    assert "optimizer body" in finding.what


def test_the_switch_for_unused_parameters_stands_where_it_is_read():
    (finding,) = preflight.unused(["a"], 9, True)
    assert finding.lines == "find_unused_parameters = True"
    (finding,) = preflight.unused(["a"], 9, True, by_wrapper=True)
    assert finding.lines == "model_wrapper_cfg = dict(find_unused_parameters=True)"


def test_unused_parameters_fail_under_strict_ddp_only():
    assert preflight.unused([], 9, refused=True) == []
    assert names(preflight.unused(["a"], 9, True)) == {"unused_parameters": True}
    assert names(preflight.unused(["a"], 9, False)) == {"unused_parameters": False}


def test_a_failure_in_fp32_is_none_of_precision():
    for cured in (
        preflight.raises("E", "float16", ""),
        preflight.nonfinite("x", "float16", False),
        preflight.gradients_nonfinite(["a"], "bfloat16"),
    ):
        assert cured.name in preflight.OF_PRECISION
        assert cured.fails
    for lasting in (
        preflight.raises("E", "float16", "E"),
        preflight.raises("E", "float32", ""),
        preflight.nonfinite("x", "float16", True),
        preflight.nonfinite("x", "float32", True),
    ):
        assert lasting.name not in preflight.OF_PRECISION
        assert lasting.fails


@pytest.mark.parametrize(
    ("seen", "by_design", "stored", "expected"),
    [
        (Images("float32", -2.1, 2.6, 1.0), False, True, {}),
        (Images("float32", -123.0, 151.0, 60.0), False, True, {}),  # Caffe's
        (Images("float32", 0.0, 1.0, 0.3), False, True, {}),  # YOLOv3's
        (Images("float32", 0.0, 255.0, 60.0), True, False, {}),  # YOLOX's
        (Images("float32", 0, 255, 60), False, False, {"not_normalized": False}),
        (Images("float32", 0, 255, 60), False, True, {"not_normalized": True}),
        (Images("float32", 2.2, 2.6, 0.2), False, True, {}),  # white paper
        (Images("float32", -2.1, -2.0, 0.017), False, True, {"normalized_twice": 0}),
        (Images("float32", -2.1, -2.1, 0.0), False, True, {}),  # a black image
        (Images("float64", -2.1, 2.6, 1.0), False, True, {"input_dtype": True}),
        (Images("float16", -2.1, 2.6, 1.0), False, True, {"input_dtype": False}),
        (
            Images("uint8", 0, 255, 60),
            False,
            False,
            {"input_dtype": True, "not_normalized": False},
        ),
    ],
)
def test_images(seen, by_design, stored, expected):
    assert names(preflight_setup.images(seen, by_design, stored)) == expected


def test_images_are_measured_by_channel():
    image = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    seen = preflight_setup.measure_images(image)
    assert seen == Images("float32", 1.0, 3.0, 0.0)
    seen = preflight_setup.measure_images((image * 100).byte())
    assert (seen.dtype, seen.low, seen.high) == ("uint8", 44.0, 200.0)


@pytest.mark.parametrize(
    ("dtypes", "has_scaler", "fails"),
    [
        (["float32"], True, []),
        (["float32", "float16"], True, [True]),
        (["float16"], False, [False]),
        (["bfloat16", "float64"], True, [False, False]),
    ],
)
def test_parameter_dtypes(dtypes, has_scaler, fails):
    by_name = {f"p{i}": dtype for i, dtype in enumerate(dtypes)}
    findings = preflight_setup.parameter_dtypes(by_name, has_scaler)
    assert [f.fails for f in findings] == fails


TURING, AMPERE = (7, 5), (8, 6)


@pytest.mark.parametrize(
    ("name", "capability", "bad"),
    [
        ("NVIDIA GeForce GTX 1660 Ti", TURING, True),
        ("NVIDIA GeForce GTX 1660 SUPER", TURING, True),
        ("GeForce GTX 1650", TURING, True),
        ("NVIDIA GeForce GTX 1650 with Max-Q Design", TURING, True),
        ("NVIDIA GeForce GTX 1630", TURING, True),
        ("NVIDIA GeForce MX450", TURING, True),
        ("NVIDIA GeForce MX550", TURING, True),
        ("NVIDIA T400 4GB", TURING, True),
        ("NVIDIA T500", TURING, True),
        ("NVIDIA T550 Laptop GPU", TURING, True),
        ("NVIDIA T600 Laptop GPU", TURING, True),
        ("Quadro T1000 with Max-Q Design", TURING, True),
        ("NVIDIA T1200 Laptop GPU", TURING, True),
        ("Quadro T2000", TURING, True),
        ("NVIDIA CMP 30HX", TURING, True),
        ("Tesla T4", TURING, False),
        ("NVIDIA T4G", TURING, False),
        ("NVIDIA GeForce RTX 2080 Ti", TURING, False),
        ("Quadro RTX 4000", TURING, False),
        ("NVIDIA TITAN RTX", TURING, False),
        ("NVIDIA RTX A1000 Laptop GPU", AMPERE, False),
        ("NVIDIA T1000", AMPERE, False),  # whatever it is, it is no Turing
        ("NVIDIA GeForce GTX 1060 6GB", (6, 1), False),
        ("NVIDIA H200", (9, 0), False),
    ],
)
def test_cards_known_for_nan_in_fp16(name, capability, bad):
    assert preflight_setup.bad_fp16_card(name, capability) is bad
    found = names(preflight_setup.card(name, capability, "float16"))
    assert ("fp16_card" in found) is bad
    assert preflight_setup.card(name, capability, "float32") == []


@pytest.mark.parametrize(
    ("capability", "dtype", "expected"),
    [
        ((7, 5), "bfloat16", {"bf16_card": False}),
        ((8, 0), "bfloat16", {}),
        ((12, 0), "bfloat16", {}),
        ((6, 1), "float16", {"fp16_slow": False}),
        ((7, 0), "float16", {}),
    ],
)
def test_cards_without_the_arithmetic(capability, dtype, expected):
    assert names(preflight_setup.card("NVIDIA X", capability, dtype)) == expected


SOUND = Predictions(100, (), {"fc_cls": 3.0})


@pytest.mark.parametrize(
    ("fp32", "fp16", "expected"),
    [
        (SOUND, Predictions(97, (), {"fc_cls": 3.1}), {}),
        (SOUND, Predictions(0, (), {"fc_cls": 3.0}), {"fp16_validation": True}),
        (SOUND, Predictions(0, (), {"fc_cls": INF}), {"fp16_validation": True}),
        (SOUND, Predictions(9, ("bboxes",), {}), {"fp16_validation": True}),
        (SOUND, Predictions(100, (), {"fc_cls": 0.0}), {"fp16_validation": True}),
        (SOUND, Predictions(error="RuntimeError: x"), {"fp16_validation": True}),
        (Predictions(error="KeyError: x"), SOUND, {"validation_raises": True}),
        # Nothing learned yet: nothing is predicted in any precision.
        (Predictions(0, (), {"a": 4.6}), Predictions(0, (), {"a": 4.6}), {}),
        (Predictions(0, (), {"a": 4.6}), Predictions(0, (), {"a": INF}), {"fp16_": 1}),
        (Predictions(2), Predictions(0), {}),  # two scores at the threshold
        (Predictions(None), Predictions(None), {}),
        (Predictions(9, (), {"a": INF}), Predictions(9, (), {"a": INF}), {}),
    ],
)
def test_validation(fp32, fp16, expected):
    found = names(preflight_setup.validation(fp32, fp16))
    assert len(found) == len(expected)
    for name, fails in expected.items():
        (key,) = [key for key in found if key.startswith(name)]
        assert found[key] == fails
