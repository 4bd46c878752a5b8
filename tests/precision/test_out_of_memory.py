"""Memory runs out because of a change of ours: the change goes, training goes on."""

import pytest
import torch

from amp_hooks.engine import torch_api
from amp_hooks.engine.out_of_memory import is_out_of_memory
from amp_hooks.engine.runtime import Runtime
from tests import helpers, small

MESSAGE = "CUDA out of memory. Tried to allocate 1.20 GiB"
NAN = dict(
    type="amp_hooks.FaultInjectionHook",
    faults=[dict(what="loss", value="nan", at=[5, 6, 7, 8, 12, 13])],
)
ROLLBACK = dict(type="amp_hooks.RollbackHook", patience=2, interval=2, probation=1)
FALLBACK = dict(type="amp_hooks.PrecisionFallbackHook", to="float32")


class NoRoomForFloats(small.Small):
    """FP32 does not fit; what is asked is how it computes, and never a hook of ours."""

    def losses(self, features, logits, y):
        if self.in_fp32(features, logits):
            raise torch.cuda.OutOfMemoryError(MESSAGE)
        return super().losses(features, logits, y)

    def in_fp32(self, features, logits):
        return not torch_api.is_autocast_enabled("cpu")


class NoRoomForFloatLogits(NoRoomForFloats):
    """A head in FP32 behind a backbone in BF16 does not fit."""

    def in_fp32(self, features, logits):
        return logits.dtype == torch.float32


@pytest.mark.parametrize("loop", [dict(iters=20), dict(epochs=1)], ids=str)
def test_fp32_does_not_fit(tmp_path, loop):
    hooks = [NAN, ROLLBACK, FALLBACK, dict(type="amp_hooks.StepGuardHook")]
    runner = small.build(
        tmp_path, hooks, model=NoRoomForFloats, dtype="bfloat16", **loop
    )
    runner.train()
    away, back = helpers.ledger(runner, "fallback")
    assert (away["to"], away["iter"]) == ("float32", 8)
    assert (back["to"], back["iter"], back["until"]) == ("bfloat16", 9, None)
    assert MESSAGE in back["gave_up"]
    # It is not tried again, though there was a third rollback.
    assert runner.iter == (loop.get("iters") or 32)
    assert len(helpers.ledger(runner, "rollback")) == 3
    assert all(p.isfinite().all() for p in runner.model.parameters())


class Losses(small.Hook):
    """What hooks are given, by iteration."""

    def __init__(self):
        self.seen = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen[runner.iter] = outputs["loss"].item()


def test_an_operator_without_bfloat16_is_not_forgotten(tmp_path):
    """It is not tried again, and a last resort for good remains one."""
    fallback = dict(type="amp_hooks.PrecisionFallbackHook", after_rollbacks=1, iters=10)
    nan = dict(type="amp_hooks.FaultInjectionHook")
    nan["faults"] = [dict(what="loss", value="nan", at=[5, 6, 25, 26, 45, 46])]
    rollback = dict(ROLLBACK, max_rollbacks=2)
    hooks = [nan, rollback, fallback, dict(type="amp_hooks.StepGuardHook")]
    runner = small.build(tmp_path, hooks, NoBfloat16, "float16", iters=80)
    runner.train()
    changes = [(e["to"], e["until"]) for e in helpers.ledger(runner, "fallback")]
    assert changes[:3] == [("bfloat16", 17), ("float32", 18), ("float16", None)]
    assert changes[3:] == [("float32", 37), ("float16", None), ("float32", None)]


def test_an_iteration_that_we_cost_tells_the_loss_of_the_one_before(tmp_path):
    """There was no NaN, and stock would have had a loss: no hook may stumble."""
    nan = dict(type="amp_hooks.FaultInjectionHook")
    nan["faults"] = [dict(what="loss", value="nan", at=[5, 6, 7, 8])]
    hooks = [nan, ROLLBACK, FALLBACK, dict(type="amp_hooks.StepGuardHook")]
    hooks += [dict(type="amp_hooks.ForensicsHook"), losses := Losses()]
    runner = small.build(
        tmp_path, hooks, model=NoRoomForFloats, dtype="bfloat16", iters=20
    )
    runner.train()
    assert helpers.ledger(runner, "fallback")[1]["iter"] == 9
    assert losses.seen[9] == losses.seen[4]
    assert [line["iter"] for line in helpers.ledger(runner, "forensics")] == [5]


class NoBfloat16(small.Small):
    """A CUDA operator of mmcv's, say."""

    def losses(self, features, logits, y):
        enabled = torch_api.is_autocast_enabled("cpu")
        if enabled and torch_api.autocast_dtype("cpu") == torch.bfloat16:
            raise RuntimeError("\"nms_cuda\" not implemented for 'BFloat16'")
        return super().losses(features, logits, y)


class NoRoom(small.Hook):
    """As pre-flight has seen."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        Runtime.of(runner).fp32_fits = False


@pytest.mark.parametrize("fits", [True, False])
def test_an_operator_without_bfloat16(tmp_path, fits):
    """Our fallback has caused it: nobody's rollback, clamp or hook is to suffer."""
    fallback = dict(type="amp_hooks.PrecisionFallbackHook", after_rollbacks=1)
    nan = dict(type="amp_hooks.FaultInjectionHook")
    nan["faults"] = [dict(what="loss", value="nan", at=[5, 6])]
    clamp = dict(type="amp_hooks.HeadClampHook", trigger=1e4)
    hooks = [nan, ROLLBACK, fallback, clamp, dict(type="amp_hooks.StepGuardHook")]
    hooks += [losses := Losses()] if fits else [losses := Losses(), NoRoom()]
    runner = small.build(tmp_path, hooks, NoBfloat16, "float16", iters=30)
    runner.train()
    changes = [(e["iter"], e["to"]) for e in helpers.ledger(runner, "fallback")]
    assert changes == [(6, "bfloat16"), (7, "float32" if fits else "float16")]
    assert len(helpers.ledger(runner, "rollback")) == 1
    assert [e["iter"] for e in helpers.ledger(runner, "clamp_on")] == [5]
    assert sorted(losses.seen) == list(range(30))
    assert losses.seen[7] == losses.seen[4]


@pytest.mark.parametrize("loop", [dict(iters=20), dict(epochs=1)], ids=str)
def test_what_preflight_has_seen_not_to_fit_is_not_tried(tmp_path, loop):
    preflight = dict(type="amp_hooks.AmpPreflightHook")
    hooks = [preflight, NAN, ROLLBACK, FALLBACK, dict(type="amp_hooks.StepGuardHook")]
    options = dict(model=NoRoomForFloats, dtype="bfloat16", log_level="WARNING")
    runner = small.build(tmp_path, hooks, **options, **loop)
    runner.train()
    assert helpers.ledger(runner, "fallback") == []
    assert len(helpers.ledger(runner, "rollback")) == 3
    assert runner.iter == (loop.get("iters") or 32)
    assert "training will not fall back to it" in helpers.log(runner)


def test_losses_in_fp32_do_not_fit(tmp_path):
    clamp = dict(type="amp_hooks.HeadClampHook", trigger=1.0, limit=1.0)
    runner = small.build(
        *(tmp_path, [clamp]), model=NoRoomForFloatLogits, dtype="bfloat16", iters=60
    )
    runner.train()
    (on,) = helpers.ledger(runner, "clamp_on")
    (off,) = helpers.ledger(runner, "clamp_off")
    assert off["iter"] == on["iter"] + 1
    assert MESSAGE in off["gave_up"]
    assert runner.iter == 60
    # Trained on as it did before, and as it would have without a clamp.
    assert max(r.all("logit_absmax")[0] for r in helpers.records(runner)[-10:]) > 1.0


def test_it_is_no_bad_iteration(tmp_path):
    """Our own clamp caused it: nothing goes back for that, no other clamp begins."""
    clamps = [
        dict(type="amp_hooks.HeadClampHook", trigger=1.0, limit=1.0),
        dict(type="amp_hooks.HeadClampHook", trigger=900.0),
    ]
    rollback = dict(ROLLBACK, patience=1)
    runner = small.build(
        *(tmp_path, [rollback, *clamps]), model=NoRoomForFloatLogits, dtype="bfloat16"
    )
    runner.train()
    assert helpers.ledger(runner, "rollback") == []
    assert len(helpers.ledger(runner, "clamp_on")) == 1


@pytest.mark.parametrize("hook", ["clamp", "fallback"])
def test_an_error_of_the_users_own_stays_one(tmp_path, hook):
    """Where nothing of ours has taken more memory."""
    ours = {"clamp": dict(type="amp_hooks.HeadClampHook"), "fallback": FALLBACK}[hook]

    class NoRoom(small.Small):
        def losses(self, features, logits, y):
            if self.calls > 5:
                raise torch.cuda.OutOfMemoryError(MESSAGE)
            return super().losses(features, logits, y)

    runner = small.build(
        tmp_path, [ROLLBACK, ours], model=NoRoom, dtype="bfloat16", iters=20
    )
    with pytest.raises(torch.cuda.OutOfMemoryError, match="1.20 GiB"):
        runner.train()


def test_a_clamp_that_was_asked_for_is_not_taken_away(tmp_path):
    clamp = dict(type="amp_hooks.HeadClampHook", when="always")
    runner = small.build(
        *(tmp_path, [clamp]), model=NoRoomForFloatLogits, dtype="bfloat16", iters=5
    )
    with pytest.raises(torch.cuda.OutOfMemoryError):
        runner.train()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.cuda.OutOfMemoryError(MESSAGE), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't "
                      "allocate memory: you tried to allocate 8 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory of a user's own"), False),
    ],
)  # fmt: skip
def test_what_is_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


class OverflowsInHalf(NoRoomForFloats):
    """Loses its logits in BF16, and does not fit in FP32 as a whole batch."""

    def losses(self, features, logits, y):
        if self.in_fp32(features, logits):
            if len(y) > 4 and torch.is_grad_enabled():
                raise torch.cuda.OutOfMemoryError(MESSAGE)
        else:
            logits = logits * torch.inf
        return small.Small.losses(self, features, logits, y)


@pytest.mark.parametrize("on_fail", ["fp32", "bf16"])
def test_preflight_does_not_go_there_either(tmp_path, on_fail):
    hook = dict(type="amp_hooks.AmpPreflightHook", on_fail=on_fail)
    options = dict(model=OverflowsInHalf, dtype="bfloat16", log_level="WARNING")
    runner = small.build(tmp_path, [hook], iters=6, **options)
    runner.train()
    (line,) = helpers.ledger(runner, "preflight")
    assert line["fails"]
    assert line["done"] == "told"
    assert helpers.ledger(runner, "fallback") == []
    assert runner.iter == 6
    assert "FP32 has no memory for the batch" in helpers.log(runner)
