import errno
import math
import time
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from amp_hooks.hooks import FaultInjectionHook
from amp_hooks.inject.fault_kinds import IN_BATCH, IN_STATE, IN_STEP
from tests import helpers
from tests.integration.test_ddp import train_on_two_ranks

LOOPS = [dict(iters=8), dict(epochs=1)]  # 24 images, 2 a batch: 12 iterations
IDS = ["iter", "epoch"]
CLS = "bbox_head.retina_cls"
BN = "backbone.bn1.running_mean"
GUARD = dict(type="amp_hooks.StepGuardHook")
ROLLBACK = dict(type="amp_hooks.RollbackHook", interval=4, probation=0)
LOGGED = dict(log_level="WARNING")


def inject(*faults, **kwargs):
    return dict(type="amp_hooks.FaultInjectionHook", faults=list(faults), **kwargs)


class Look(Hook):
    """Calls ``look(runner, batch)`` right before train_step, or in the step."""

    priority = "LOWEST"

    def __init__(self, look, when="before_train_iter"):
        self.seen = {}

        def event(runner, batch_idx, data_batch=None, outputs=None):
            self.seen[runner.iter] = look(runner, data_batch)

        setattr(self, when, event)


class PlainBoxes(Hook):
    """Boxes without mmdet's box type, as other data sets have them."""

    priority = "HIGHEST"

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for sample in data_batch["data_samples"]:
            sample.gt_instances.bboxes = sample.gt_instances.bboxes.tensor


def train(build, *faults, look=None, when="before_train_iter", **kwargs):
    """Train with these faults; returns the runner and what was looked at."""
    kwargs = {"iters": 4, "precision": "float32", **kwargs}
    first, hooks = kwargs.pop("first", ()), kwargs.pop("hooks", ())
    runner = build("retinanet", hooks=hooks, **kwargs)
    for hook in first:
        runner.register_hook(hook)
    runner.register_hook(inject(*faults))
    looker = Look(look or (lambda runner, batch: None), when)
    if look is not None:
        runner.call_hook("before_run")  # so that the looker comes after the injection
        runner.register_hook(looker)
    runner.train()
    return runner, looker.seen


def told(runner):
    return [
        (f["iter"], f["what"], f["where"], f["value"], f["rank"])
        for f in helpers.ledger(runner, "fault")
    ]


def bad_numbers(tensor):
    return (~torch.isfinite(tensor)).sum().item()


def methods_of_their_own(runner):
    """Instance attributes and hooks that an injection could have left."""
    model = runner.model
    return dict(
        attributes=[
            name
            for thing, name in (
                (model, "train_step"),
                (model, "parse_losses"),
                (runner, "save_checkpoint"),
                (runner.train_loop, "run"),
            )
            if name in vars(thing)
        ],
        modules=sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()
        ),
        parameters=sum(len(p._backward_hooks or ()) for p in model.parameters()),
        save=torch.save,
    )


# --- every kind -------------------------------------------------------------------
@pytest.mark.parametrize(
    ("precision", "loop"),
    [("float32", LOOPS[0]), ("bfloat16", dict(iters=4)), ("float16", LOOPS[1])],
)
def test_forward_is_seen_by_the_monitors(build, loop, precision):
    # Not in the first: what is not finite there may be so by design.
    fault = dict(what="forward", at=[1, 3], where="*.retina_cls", value="inf")
    hooks = [GUARD, *helpers.MONITORS]
    runner, _ = train(build, fault, **loop, precision=precision, hooks=hooks)
    line = ("forward", [CLS], "inf", None)
    assert told(runner) == [(1, *line), (3, *line)]
    bad = [r.iter for r in helpers.records(runner) if r.verdict.is_bad]
    assert bad == [1, 3]
    seen = helpers.records(runner)[3].values["logit_inf"]
    assert seen == {CLS: 5.0}  # one element in each of five levels
    first, second = helpers.ledger(runner, "overflow")
    assert first["layers"] == second["layers"] == [CLS]


def test_a_clamp_takes_hold_of_an_injected_forward(build):
    fault = dict(what="forward", at=1, where=CLS, value="-inf", count="all")
    for hooks, finite in (([], False), ([dict(helpers.SUITE[3], when="always")], True)):
        runner, _ = train(build, fault, hooks=hooks, iters=2, ema=False)
        assert math.isfinite(helpers.losses(runner)[1]) == finite


@helpers.NEEDS_TORCH_2_1
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_gradient(build, precision):
    """Exactly the elements, in the gradient as the optimizer wrapper gets it."""
    name = f"{CLS}.weight"
    fault = dict(what="gradient", at=1, iters=2, where=name, value="nan", count=3)
    runner = build(
        "retinanet", iters=4, precision=precision, hooks=[inject(fault), GUARD]
    )
    seen = {i: {} for i in range(4)}
    for n, p in runner.model.named_parameters():

        def look(p, n=n):
            if bad := bad_numbers(p.grad):
                seen[runner.iter][n] = bad

        p.register_post_accumulate_grad_hook(look)
    runner.train()
    assert seen == {0: {}, 1: {name: 3}, 2: {name: 3}, 3: {}}
    assert [f[:3] for f in told(runner)] == [(i, "gradient", [name]) for i in (1, 2)]
    assert [v["verdict"] for v in helpers.ledger(runner, "overflow")] == [
        "SCALE_OVERFLOW" if precision == "float16" else "GRAD_NONFINITE"
    ] * 2
    assert all(map(math.isfinite, helpers.losses(runner)))


def test_gradient_factor_multiplies_the_norm(build):
    fault = dict(what="gradient", at=2, where="*", value="x1000")
    clean, _ = train(build, dict(fault, at=99), iters=3, hooks=helpers.MONITORS)
    runner, _ = train(build, fault, iters=3, hooks=helpers.MONITORS)
    a, b = (helpers.records(r)[2].get("gradnorm") for r in (clean, runner))
    assert b == pytest.approx(1000 * a, rel=1e-5)
    assert len(told(runner)[0][2]) == 5  # names in the ledger, of dozens


@pytest.mark.parametrize(
    ("fault", "loop", "names"),
    [
        (
            dict(what="parameter", where=f"{CLS}.weight"),
            dict(iters=8),
            [f"model.{CLS}.weight"],
        ),
        (
            dict(what="optimizer", where=f"{CLS}.weight", value="-inf", count=2),
            dict(epochs=1),
            ["exp_avg", "exp_avg_sq"],
        ),
        (
            dict(what="ema", where=f"{CLS}.weight"),
            dict(iters=10),
            [f"ema[0].module.{CLS}.weight"],
        ),
    ],
    ids=lambda x: x.get("what", "") if isinstance(x, dict) else "",
)
def test_state_is_damaged_after_the_snapshot_and_rolled_back(build, fault, loop, names):
    """At an iteration with a snapshot, which holds none of it."""

    def look(runner, batch):
        state = helpers.state(runner)
        return {name: n for name, t in state.items() if (n := bad_numbers(t))}

    fault = dict(fault, at=4)
    hooks = [GUARD, ROLLBACK, *helpers.MONITORS]
    runner, seen = train(build, fault, **loop, hooks=hooks, look=look)
    assert list(seen[4].values()) == [fault.get("count", 1)] * len(names)
    assert [a.endswith(b) for a, b in zip(seen[4], names)] == [True] * len(names)
    # In the weights it shows at once, elsewhere when the next snapshot is taken.
    (event,) = helpers.ledger(runner, "rollback")
    assert (event["target_iter"], event["verdict"]) == (4, "STATE_NONFINITE")
    after = event["iter"] + (event["iter"] < 8)
    assert seen[3] == seen[after] == {}
    ((iteration, what, where, _, _),) = told(runner)
    assert (iteration, what, len(where)) == (4, fault["what"], len(names))


def test_a_damaged_buffer_is_undone_by_the_guard(build):
    """It is seen in the forward pass, and the copy is from before the damage."""

    def look(runner, batch):
        return {n: bad_numbers(b) for n, b in runner.model.named_buffers()}

    fault = dict(what="buffer", where="backbone.bn1.*", value="inf", at=4)
    runner, seen = train(build, fault, epochs=1, hooks=[GUARD, ROLLBACK], look=look)
    assert sum(map(bool, seen[4].values())) == 2
    assert not any(seen[5].values())
    (line,) = helpers.ledger(runner, "overflow")
    assert (line["iter"], line["verdict"]) == (4, "FORWARD_NONFINITE")
    assert len(line["buffers"]) == 2
    assert helpers.ledger(runner, "rollback") == []


def test_state_factor_multiplies_all_of_a_tensor(build):
    fault = dict(what="parameter", at=1, where=[f"{CLS}.*"], value="x1e3")

    def look(runner, batch):
        return runner.model.bbox_head.retina_cls.weight.detach().clone()

    options = {"optim_wrapper.optimizer.lr": 0.0}
    _, seen = train(build, fault, iters=2, look=look, options=options)
    assert torch.equal(seen[1], seen[0] * 1e3)


def test_optimizer_without_state_is_a_warning(build):
    fault = dict(what="optimizer", at=0, where="*cls*")
    runner, _ = train(build, fault, iters=1, options=LOGGED)
    assert told(runner) == []
    text = helpers.log(runner)
    assert "iteration 0: the fault optimizer (nan) in *cls*" in text
    assert "could not happen; the optimizer had no floating-point state" in text


@pytest.mark.parametrize("loop", [dict(epochs=1), dict(iters=7)], ids=IDS[::-1])
def test_loss_is_seen_by_log_and_backward(build, loop):
    faults = [
        dict(what="loss", at=2, value="nan", where="loss_bbox"),
        dict(what="loss", at=3, value="x1000"),
        dict(what="loss", at=4, value=7.5),
        dict(what="loss", at=5, value="inf", where=["loss_cls"]),
    ]
    clean, _ = train(build, dict(faults[0], at=99), **loop, hooks=[GUARD])
    runner, _ = train(build, *faults, **loop, hooks=[GUARD, *helpers.MONITORS])
    a, b = helpers.losses(clean), helpers.losses(runner)
    assert b[:2] == a[:2]
    assert math.isnan(b[2])
    assert b[3] > 300 * a[2]
    assert b[4] == 15.0
    assert b[5] == math.inf
    norms = [r.get("gradnorm") for r in helpers.records(runner)]
    assert [math.isfinite(n) for n in norms[:7]] == [i not in (2, 5) for i in range(7)]
    assert norms[3] > 100 * norms[1]
    overflows = helpers.ledger(runner, "overflow")
    assert [o["losses"] for o in overflows] == [
        {"loss": "nan", "loss_bbox": "nan"},
        {"loss": "inf", "loss_cls": "inf"},
    ]
    both = ["loss_cls", "loss_bbox"]
    assert told(runner) == [
        (2, "loss", ["loss_bbox"], "nan", None),
        (3, "loss", both, "x1000", None),
        (4, "loss", both, 7.5, None),
        (5, "loss", ["loss_cls"], "inf", None),
    ]


@pytest.mark.parametrize(
    ("where", "loop"),
    [(None, dict(epochs=1)), ("backbone.layer1.*.conv1", dict(iters=5))],
)
def test_raise(build, loop, where):
    fault = dict(what="raise", at=3, where=where)
    runner, _ = train(build, fault, **loop, hooks=[GUARD, *helpers.MONITORS])
    (line,) = helpers.ledger(runner, "overflow")
    assert (line["iter"], line["verdict"]) == (3, "RAISED")
    assert line["error"] == "ValueError: matrix contains invalid numeric entries"
    # Two modules match; the first one raises before the other runs.
    hit = "backbone.layer1.0.conv1" if where else "parse_losses"
    assert told(runner)[0][:3] == (3, "raise", [hit])


@pytest.mark.parametrize("where", [None, "backbone"])
def test_after_a_run_that_raised_nothing_is_left(build, where):
    """The exception of 'raise' among faults of every other kind."""
    fault = dict(what="raise", at=1, where=where, value="out of luck")
    others = [
        dict(what="forward", at=1, where="bbox_head"),
        dict(what="gradient", at=1, where="*"),
        dict(what="loss", at=1),
        dict(what="disk", at=0, iters=9),
    ]
    runner = build("retinanet", iters=3, hooks=[inject(fault, *others)])
    before = methods_of_their_own(runner)
    with pytest.raises(ValueError, match="out of luck"):
        runner.train()
    assert methods_of_their_own(runner) == before
    assert ("raise", 1) in {(what, i) for i, what, *_ in told(runner)}
    runner.save_checkpoint(runner.work_dir, "saved.pth")


def test_images(build):
    """A list of uint8 images becomes one of floats, with so many bad pixels."""
    faults = [
        dict(what="images", at=1, count=4),
        dict(what="images", at=2, value="x2"),
    ]

    def look(runner, batch):
        return [image.clone() for image in batch["inputs"]]

    runner, seen = train(build, *faults, look=look, hooks=[GUARD])
    _, clean = train(build, dict(faults[0], at=99), look=look)
    assert seen[0][0].dtype == torch.uint8
    assert [bad_numbers(image) for image in seen[1]] == [4, 4]
    assert all(torch.equal(a, 2.0 * b) for a, b in zip(seen[2], clean[2]))
    assert math.isnan(helpers.losses(runner)[1])
    assert told(runner) == [
        (1, "images", ["inputs"], "nan", None),
        (2, "images", ["inputs"], "x2", None),
    ]


@pytest.mark.parametrize("plain", [False, True])
def test_boxes(build, plain):
    """One box of each sample, as HorizontalBoxes or as a plain tensor."""
    kinds = ["zero", "subpixel", "inverted", "nan", "outside"]
    faults = [dict(what="boxes", at=i, value=kind) for i, kind in enumerate(kinds)]

    def look(runner, batch):
        boxes = [s.gt_instances.bboxes for s in batch["data_samples"]]
        assert [type(b) is torch.Tensor for b in boxes] == [plain, plain]
        return [b.clone() if plain else b.tensor.clone() for b in boxes]

    kwargs = dict(iters=5, look=look, hooks=[GUARD], first=[PlainBoxes()] * plain)
    runner, seen = train(build, *faults, **kwargs)
    _, clean = train(build, dict(faults[0], at=99), **kwargs)
    for i, kind in enumerate(kinds):
        for bad, good in zip(seen[i], clean[i]):
            changed = (bad != good).any(-1)
            assert changed.sum() == 1
            x1, y1, x2, y2 = bad[changed][0].tolist()
            assert {
                "zero": x1 == x2,
                "subpixel": 0 < x2 - x1 < 0.002 and 0 < y2 - y1 < 0.002,
                "inverted": x2 < x1,
                "nan": math.isnan(x1) and math.isnan(y2),
                "outside": x1 > 64,
            }[kind]
    names = [f"data_samples[{i}].gt_instances.bboxes" for i in (0, 1)]
    assert told(runner)[0] == (0, "boxes", names, "zero", None)


# --- disk -------------------------------------------------------------------------
def test_full_disk_costs_the_file_of_a_snapshot_and_no_more(build):
    fault = dict(what="disk", at=4)
    runner, _ = train(build, fault, iters=9, hooks=[ROLLBACK], options=LOGGED)
    assert told(runner) == [(4, "disk", ["iter_4.pth"], "full", None)]
    assert [e["iter"] for e in helpers.ledger(runner, "snapshot")] == [0, 8]
    assert not (Path(runner.work_dir) / "rollback/iter_4.pth").exists()
    assert "No space left on device" in helpers.log(runner)


@pytest.mark.parametrize("loop", LOOPS, ids=IDS)
def test_full_disk_ends_a_run_whose_checkpoint_hook_needs_it(build, loop):
    """The loop's own checkpoint: after iteration 5, or after the whole epoch."""
    epoch = "epochs" in loop
    options = {"default_hooks.checkpoint.interval": 1 if epoch else 6}
    at = 11 if epoch else 5
    runner = build(
        "retinanet",
        **loop,
        hooks=[inject(dict(what="disk", at=at))],
        options=options,
    )
    before = methods_of_their_own(runner)
    with pytest.raises(OSError, match="No space left") as raised:
        runner.train()
    assert raised.value.errno == errno.ENOSPC
    name = "epoch_1.pth" if epoch else "iter_6.pth"
    assert raised.value.filename == str(Path(runner.work_dir) / name)
    assert told(runner) == [(at, "disk", [name], "full", None)]
    assert methods_of_their_own(runner) == before
    runner.save_checkpoint(runner.work_dir, "saved.pth")
    assert (Path(runner.work_dir) / "saved.pth").exists()


@pytest.mark.parametrize("value", ["slow:0.7", 0.7])
def test_slow_disk(build, value):
    options = {"default_hooks.checkpoint.interval": 2}
    times = {}

    def look(runner, batch):
        times[runner.iter] = time.monotonic()

    fault = dict(what="disk", at=1, value=value)
    runner, _ = train(build, fault, look=look, when="after_train_iter", options=options)
    assert told(runner) == [(1, "disk", ["iter_2.pth"], value, None)]
    assert times[1] - times[0] > 0.7
    assert (Path(runner.work_dir) / "iter_2.pth").exists()


# --- faults in general ------------------------------------------------------------
EVERY = [
    dict(what="forward", at=1, where=CLS, count=2, value=0.5),
    dict(what="gradient", at=1, where=f"{CLS}.*", count=2, value=0.5),
    dict(what="parameter", at=2, where="*bn*", count=2, value=0.5),
    dict(what="buffer", at=2, where="*running_mean", value=0.5),
    dict(what="optimizer", at=2, where=f"{CLS}.*", value=1e-3),
    dict(what="ema", at=2, value=0.5),
    dict(what="loss", at=3, value="x2"),
    dict(what="images", at=3, count=50, value=255),
    dict(what="boxes", at=3, value="outside"),
    dict(what="disk", at=0, iters=5, value=0.01),
]


def differing(a, b):
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize("loop", LOOPS, ids=IDS)
def test_beyond_its_end_a_run_is_bit_identical_and_nothing_is_left(build, loop):
    late = [dict(fault, at=99) for fault in EVERY] + [dict(what="raise", at=99)]
    runs = []
    for hooks in ([], [inject(*late)]):
        runner = build("retinanet", **loop, hooks=hooks, precision="float16")
        before = methods_of_their_own(runner)
        runner.train()
        assert methods_of_their_own(runner) == before
        runs.append((helpers.losses(runner), helpers.state(runner)))
    assert runs[0][0] == runs[1][0]
    assert runs[0][1].keys() == runs[1][1].keys()
    assert differing(runs[0][1], runs[1][1]) == []


def test_a_rerun_hits_the_same_elements_and_another_seed_others(build):
    runs = []
    for seed in (0, 0, 1):
        runner = build(
            "retinanet", iters=4, precision="float32", hooks=[inject(*EVERY, seed=seed)]
        )
        before = methods_of_their_own(runner)
        runner.train()
        assert methods_of_their_own(runner) == before
        runs.append((helpers.losses(runner), helpers.state(runner)))
        assert {what for _, what, *_ in told(runner)} == {
            fault["what"] for fault in EVERY
        }
    (a, state_a), (b, state_b), (c, state_c) = runs
    assert a == b
    assert differing(state_a, state_b) == []
    assert a != c
    assert differing(state_a, state_c)


def test_a_resumed_run_hits_the_same_elements(build, tmp_path):
    fault = dict(what="parameter", at=3, where=f"{CLS}.weight", count=5)

    def look(runner, batch):
        return ~torch.isfinite(runner.model.bbox_head.retina_cls.weight)

    _, whole = train(build, fault, look=look, hooks=[GUARD])
    work = dict(work_dir=tmp_path / "w", hooks=[GUARD])
    train(build, fault, iters=2, **work)
    options = {"default_hooks.checkpoint.interval": 2}
    train(build, fault, iters=2, options=options, **work)
    resume = dict(resume=True, log_level="WARNING")
    early = dict(what="loss", at=1)
    runner, seen = train(build, fault, early, look=look, options=resume, **work)
    assert seen.keys() == {2, 3}
    assert torch.equal(seen[3], whole[3])
    assert seen[3].sum() == 5
    assert "this run had iterations 2 to 3" in helpers.log(runner)


def test_it_says_what_it_will_do_and_what_never_happened(build):
    reasons = [
        (dict(what="loss", at=50), "this run had iterations 0 to 1"),
        # The container of the convolutions is never called itself.
        (dict(what="forward", at=1, where="*cls_convs"), "not called in training"),
        (dict(what="raise", at=1, where="*cls_convs"), "not called in training"),
        (dict(what="gradient", at=1, where="backbone.conv1.*"), "are they frozen"),
        (dict(what="loss", at=1, where="loss_mask"), "no loss has such a name"),
        (dict(what="disk", at=0), "no checkpoint was written then"),
        (dict(what="optimizer", at=0, where="*"), "no floating-point state"),
    ]
    happens = dict(what="loss", at=0, where="loss_cls", value=1.0)
    options = {**LOGGED, "model.backbone.frozen_stages": 1}
    faults = [fault for fault, _ in reasons]
    runner, _ = train(build, *faults, happens, iters=2, ema=False, options=options)
    lines = helpers.log(runner).splitlines()
    (start,) = [line for line in lines if "damage this run on purpose" in line]
    assert "WARNING" in start
    assert "forward (nan) in *cls_convs at iteration 1; raise in *cls_convs" in start
    assert "take it out of custom_hooks" in start
    for i, (_, reason) in enumerate(reasons):
        (line,) = [line for line in lines if f"faults[{i}] never happened" in line]
        assert reason in line
    assert "faults[7]" not in "".join(lines)
    assert [what for _, what, *_ in told(runner)] == ["loss"]


def test_a_batch_without_what_is_looked_for(build):
    """Samples without boxes, and a batch that is not a dict."""

    class NoBoxes(Hook):
        priority = "HIGHEST"

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            for sample in data_batch["data_samples"]:
                sample.gt_instances = sample.gt_instances[:0]

    runner, _ = train(
        build, dict(what="boxes", at=0), iters=1, first=[NoBoxes()], options=LOGGED
    )
    assert "no sample of the batch had ground-truth boxes" in helpers.log(runner)
    assert told(runner) == []


@pytest.mark.parametrize(
    ("faults", "error", "words"),
    [
        (None, TypeError, "faults must be a list of at least one dict.*got None"),
        ([], TypeError, r"faults must be .*got \[\]"),
        (dict(what="loss", at=1), TypeError, "faults must be a list"),
        (["loss"], TypeError, r"faults\[0\] must be a dict.*got 'loss'"),
        ([dict(what="loss", at=1), 3], TypeError, r"faults\[1\] must be a dict"),
        (
            [dict(what="loss", at=1), dict(waht="loss", at=1)],
            TypeError,
            r"faults\[1\]: .*'waht'.*mean 'what'",
        ),
        ([dict(what="loss", at=-1)], ValueError, r"faults\[0\]: at=-1"),
    ],
)
def test_errors_when_it_is_built(faults, error, words):
    with pytest.raises(error, match=f"FaultInjectionHook: {words}"):
        FaultInjectionHook(faults=faults)


def test_errors_of_seed_and_argument():
    good = [dict(what="loss", at=1)]
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        FaultInjectionHook(faults=good, seed=-1)
    with pytest.raises(TypeError, match="no argument 'fault'.*mean 'faults'"):
        FaultInjectionHook(fault=good)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (dict(what="forward", where="*.retina_clss"), "no module.*retina_cls"),
        (dict(what="raise", where="*.retina_clss"), "no module.*retina_cls"),
        (dict(what="gradient", where=CLS), "no parameter.*retina_cls.weight"),
        (dict(what="parameter", where="*.wieght"), "'\\*.wieght' .* no parameter"),
        (dict(what="optimizer", where="x"), "'x' .* no parameter"),
        (dict(what="buffer", where="*.running_meen"), "no buffer.*running_mean"),
        (dict(what="buffer", where="*num_batches_tracked"), "no buffer"),
        (dict(what="ema"), "no EMAHook is in the config. Add"),
        (dict(what="loss", rank=1), r"rank=1 does not exist, there are 1 .*leave it"),
    ],
    ids=lambda x: x["what"] if isinstance(x, dict) else "",
)
def test_errors_at_the_start_of_training(build, fault, words):
    runner = build("retinanet", iters=1, ema=False, hooks=[inject(dict(fault, at=0))])
    with pytest.raises(
        ValueError, match=rf"FaultInjectionHook: faults\[0\]: .*{words}"
    ):
        runner.train()
    assert runner.iter == 0


def test_every_kind_is_implemented():
    from amp_hooks.inject.fault_table import KINDS

    assert {*IN_BATCH, *IN_STATE, *IN_STEP, "disk"} == set(KINDS)
    for what in KINDS:
        assert f"'{what}'" in FaultInjectionHook.__doc__


def test_on_one_rank_of_two(digits, tmp_path):
    """A gradient of rank 1 is averaged into both; a weight of rank 1 is its own."""
    weight = f"{CLS}.weight"
    faults = [
        dict(what="gradient", at=1, where=weight, rank=1),
        dict(what="loss", at=2, rank=0),
        dict(what="parameter", at=3, where=weight, rank=1),
    ]
    a, b = train_on_two_ranks(
        digits,
        tmp_path / "w",
        iters=4,
        hooks=[inject(*faults), GUARD, *helpers.MONITORS],
        precision="float32",
        ema=False,
    )
    (path,) = (tmp_path / "w").glob("*/stability.jsonl")
    lines = [e for e in helpers.read_ledger(path) if e["event"] == "fault"]
    assert [(e["iter"], e["what"], e["where"], e["rank"]) for e in lines] == [
        (1, "gradient", [weight], 1),
        (2, "loss", ["loss_cls", "loss_bbox"], 0),
        (3, "parameter", [weight], 1),
    ]
    assert (
        a["records"]
        == b["records"]
        == [
            (0, "HEALTHY", []),
            (1, "GRAD_NONFINITE", []),
            (2, "FORWARD_NONFINITE", [0]),
            (3, "FORWARD_NONFINITE", [1]),
        ]
    )
    # BatchNorm's statistics are each rank's own anyway.
    apart = [n for n in differing(a["state"], b["state"]) if "running_" not in n]
    assert apart == [f"model.{weight}"]


def test_two_injectors_and_a_second_training(build):
    """Each acts once in each iteration; a runner can be trained again."""
    hooks = [inject(dict(what="loss", at=i, value="x2")) for i in (1, 2)]
    runner = build("retinanet", iters=3, precision="float32", hooks=hooks)
    runner.train()
    assert [i for i, *_ in told(runner)] == [1, 2]
    before = len(runner.hooks)
    runner.train()
    assert len(runner.hooks) == before
