"""Advice: each piece where its evidence is, and nowhere else."""

import pytest

from amp_hooks.engine.words import first_names
from amp_hooks.report.judge.advise import advise
from amp_hooks.report.judge.causes import find_causes
from amp_hooks.report.judge.incidents import find
from amp_hooks.report.judge.status import judge

from ..made import (
    CONFIG,
    FORWARD,
    bad,
    checkpoint,
    curve,
    diverged,
    ended_with,
    line,
    overflows,
    rollback,
    run,
    start_line,
    went_back,
)

START, END = start_line(), line(999, "end")
ABORT = dict(rollbacks=3, lr_factor=0.001, limit="max_recent=3", checkpoint="c.pth")
WARM = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=200),
    *CONFIG["param_scheduler"],
]


def config(**changes):
    return {**CONFIG, **changes}


def clipped(at):
    return dict(CONFIG["optim_wrapper"], clip_grad=dict(max_norm=at))


def batch(iteration, *images):
    return line(
        iteration, "bad_batch", "FORWARD_NONFINITE", rank=0, images=list(images), ids=[]
    )


def bad_boxes(iteration):
    fields = dict(action="warn", counts={"zero": 2}, images=["a.jpg"], images_total=1)
    return [line(iteration, "boxes", rank=0, **fields)]


def norms(*spikes):
    """Gradient norms of about 5, and spikes at iterations."""
    values = {**dict.fromkeys(range(9, 1000, 10), 5.0), **dict(spikes)}
    return {"amp/gradnorm": curve([], 1).of(values.items())}


def logits(largest, bits):
    return {
        "amp/cls_score_absmax": curve([3.0, largest, 3.0]),
        "amp/headroom_bits/fc_cls": curve([14.0, bits, 14.0]),
    }


def lr(*values):
    return dict(lr=curve(values, 1, 0))


NO_CLAMP = start_line(hooks=["ClsScoreMonitorHook"])
LATE = [START, *bad(700), END]  # one bad iteration, long after any warm-up
BOXES = bad(700, losses=dict(loss="nan", loss_bbox="nan"))
CLASSES = bad(700, losses=dict(loss="nan", loss_cls="nan", loss_bbox="nan"))

# name: (run, the titles' beginnings in order)
CASES = {
    "healthy": (run([START, *overflows(0, 1), END]), []),
    "one late bad iteration is no evidence for anything": (run(LATE), []),
    "images that came back": (
        run([START, *bad(300), batch(300, "a", "b"), *bad(700), batch(700, "a", "c"),
             END]),
        ["Look at these images"],
    ),
    "of one streak, an image twice is no evidence": (
        run([START, *bad(700, 701), batch(700, "a"), batch(701, "a"), END]),
        [],
    ),
    "suspects by BadBatchHook": (
        run([*LATE, line(700, "suspect", image="a", id=1, iters=[300, 700])]),
        ["Look at these images"],
    ),
    "bad boxes in a bad iteration": (
        run([START, *bad_boxes(700), *LATE[1:]]),
        ["Filter boxes"],
    ),
    "bad boxes in another iteration": (run([START, *bad_boxes(600), *LATE[1:]]), []),
    "a box loss alone": (run([START, *BOXES, END]), ["Filter boxes"]),
    "a box loss alone, three in a row": (
        run([START, *bad(700, 701, 702, losses=BOXES[0]["losses"]), END]),
        ["Lower the learning"],
    ),
    "a box loss beside the classification": (run([START, *CLASSES, END]), []),
    "a box loss beside large logits": (
        run([START, *BOXES, END], {"amp/cls_score_absmax": curve([2000.0], 1, 700)}),
        [],
    ),
    "three in a row": (run([START, *bad(700, 701, 702), END]), ["Lower the learning"]),
    "two in a row are bad luck": (run([START, *bad(700, 701), END]), []),
    "a rollback that held is a remark, and no evidence": (
        run([START, *bad(700), rollback(700, 0.5), END]),
        [],
    ),
    "three in a row, and a rollback that held": (
        run([START, *bad(698, 699, 700), rollback(700, 0.5), END]),
        ["Lower the learning rate, to x0.5 (0.02 to 0.01)"],
    ),
    "a rollback, and the learning rate rose again and held": (
        run([START, *bad(700, 701, 702), rollback(702),
             line(900, "recover", lr_factor=1.0), END]),
        [],
    ),
    "a box loss alone, and boxes are filtered": (
        run([START, *BOXES, END], config=config(train_dataloader=dict(dataset=dict(
            pipeline=[dict(type="mmdet.FilterAnnotations")])))),
        [],
    ),
    "a rollback that did not": (
        run([START, *bad(998), rollback(998, 0.5), *bad(999, vetoed=False), END]),
        ["Lower the learning rate, to x0.05 (0.02 to 0.001)"],
    ),
    "a learning rate that cannot be chance": (
        run([START, *bad(520, 560), END],
            lr(*[0.01] * 500, *[0.02] * 80, *[0.01] * 420)),
        ["Lower the learning"],
    ),
    "bad at a learning rate that half of the run had": (
        run([START, *bad(520, 560), END], lr(*[0.01] * 500, *[0.02] * 500)),
        [],
    ),
    "early, without warm-up": (run([START, *bad(120), END]), ["Warm up, for 242"]),
    "very early in a short run": (run([START, *bad(3), END]), ["Warm up, for 100"]),
    "soon after the warm-up": (
        run([START, *bad(390), END], config=config(param_scheduler=WARM)),
        ["Lengthen the warm-up, to 782"],
    ),
    "long after the warm-up": (
        run([START, *bad(400), END], config=config(param_scheduler=WARM)),
        [],
    ),
    "early, and nothing is known of the config": (
        run([START, *bad(120), END], config={}),
        [],
    ),
    "a spike, and no clip": (
        run(LATE, norms((695, 600.0))),
        ["Clip gradients, at 10"],
    ),
    "a spike, clipped": (
        run(LATE, norms((695, 600.0)), config(optim_wrapper=clipped(35))),
        [],
    ),
    "a spike, and a clip too far up": (
        run(LATE, norms((695, 600.0)), config(optim_wrapper=clipped(100))),
        ["Clip gradients, at 10"],
    ),
    "a spike that did no harm": (run(LATE, norms((495, 600.0))), []),
    "large logits, and no clamp": (
        run([NO_CLAMP, *bad(700), END], logits(5000.0, 3.0)),
        ["Clamp the head"],
    ),
    "large logits, clamped": (run(LATE, logits(5000.0, 3.0)), []),
    "clamp left out of StabilityHook": (
        run([line(0, "start", hooks=dict(StabilityHook=dict(head_clamp=None))),
             *bad(700, layers=["fc_cls"]), END]),
        ["Clamp the head"],
    ),
    "an early warning, and no clamp": (
        run([NO_CLAMP, line(650, "early_warning", layer="fc"), *bad(700), END]),
        ["Clamp the head"],
    ),
    "no headroom": (run(LATE, logits(50000.0, 0.4)), ["Train in BF16"]),
    "no headroom, but BF16 it is": (
        run([start_line(optimizers=["dtype bfloat16"]), *LATE[1:]],
            logits(50000.0, 0.4)),
        [],
    ),
    "a collapsed loss scale": (
        run([START, *overflows(700, skip="collapse"), END]),
        ["Train in BF16"],
    ),
    "stock: the classification loss was the first": (
        run([], dict(loss=curve([1.0] * 99 + [float("nan")]),
                     loss_cls=curve([1.0] * 99 + [float("nan")]),
                     loss_bbox=curve([1.0] * 100))),
        ["Attach StabilityHook", "Lower the learning"],
    ),
    "lost, and nothing that undoes or goes back": (
        run([NO_CLAMP, *bad(700, 701, 702, vetoed=False), *bad(997, 998, 999,
             vetoed=False), END]),
        ["Attach StepGuardHook and RollbackHook", "Lower the learning"],
    ),
    "lost with both of them": (
        run([START, *bad(997, 998, 999), END]), ["Lower the learning"],
    ),
    "lost to an exception that has nothing to do with numbers": (
        run([NO_CLAMP, ended_with(700, "RuntimeError: CUDA out of memory")]), [],
    ),
    "diverged, nothing went back, and well by itself": (
        run([NO_CLAMP, diverged(700, since=690), line(800, "well", since=690), END]),
        ["Lower the learning rate, to x0.1 (0.02 to 0.002)", "Attach RollbackHook"],
    ),
    "diverged, and nothing went back": (
        run([NO_CLAMP, diverged(700, since=690), END]),
        ["Attach StepGuardHook and RollbackHook",
         "Lower the learning rate, to x0.1 (0.02 to 0.002)"],
    ),
    "diverged on several ranks, without the guard": (
        run([start_line(hooks=["HealthHook", "RollbackHook"], world_size=2),
             diverged(700, since=690), END]),
        ["Attach StepGuardHook", "Lower the learning rate"],
    ),
    "diverged, and rollback was left out of the suite": (
        run([line(0, "start", hooks=dict(StabilityHook=dict(rollback=None))),
             diverged(700, since=690), END],
            config=config(custom_hooks=[dict(type="amp_hooks.StabilityHook")])),
        ["Attach RollbackHook", "Lower the learning rate"],
    ),
    "diverged, went back, and that held": (
        run([START, diverged(700, since=690), went_back(700, 0.03), END]),
        ["Lower the learning rate, to x0.03 (0.02 to 0.0006)"],
    ),
    "diverged, went back, and the learning rate was not to blame": (
        run([START, diverged(700, since=690), went_back(700, 1.0), END]),
        [],
    ),
    "diverged where the learning rate rose by more than the usual step": (
        run([START, diverged(700, since=690), END],
            lr(*[0.01] * 690, *[0.3] * 310)),
        ["Lower the learning rate, to x0.033 (0.02 to 0.00066)"],
    ),
    "diverged early, without warm-up": (
        run([START, diverged(130, since=120), went_back(130), END]),
        ["Lower the learning rate", "Warm up, for 242"],
    ),
    "diverged after a spike, and no clip": (
        run([START, diverged(700, since=690), went_back(700), END],
            norms((689, 600.0))),
        ["Lower the learning rate", "Clip gradients, at 10"],
    ),
    "bad images, and diverged as well": (
        run([START, *bad(300), batch(300, "a"), *bad(600), batch(600, "a"),
             diverged(700, since=690), went_back(700), END]),
        ["Look at these images", "Lower the learning rate"],
    ),
    "ended by an exception": (
        run([START, ended_with(700, "RuntimeError: CUDA out of memory")]),
        [],
    ),
    "a rollback that held, and an exception that has nothing to do with it": (
        run([START, *bad(298, 299, 300), rollback(300, 0.5),
             ended_with(900, "RuntimeError: CUDA out of memory")],
            config=config(param_scheduler=WARM)),
        ["Lower the learning rate, to x0.5 (0.02 to 0.01)", "Lengthen the warm-up"],
    ),
    "everything, in order": (
        run([NO_CLAMP, *bad(20, 21, 22), batch(20, "a"), *bad(30), batch(30, "a"),
             *bad(700, 701, 702, layers=["fc_cls"]), rollback(702),
             *overflows(800, skip="collapse"), END],
            norms((15, 600.0))),
        ["Look at these", "Lower", "Warm up", "Clip", "Clamp", "Train in BF16"],
    ),
    "everything, but all of it by one image": (
        run([NO_CLAMP, *bad(20, 21, 22, layers=["fc"]), batch(20, "a"), *bad(30),
             batch(30, "a"), END], norms((15, 600.0))),
        ["Look at these"],
    ),
}  # fmt: skip


def advice_on(history):
    found = find(history)
    return advise(history, found, find_causes(history, found), judge(history, found))


@pytest.mark.parametrize("name", CASES)
def test_advice(name):
    history, titles = CASES[name]
    given = advice_on(history)
    given_titles = first_names([a.title for a in given], 9)
    assert len(given) == len(titles), given_titles
    for advice, title in zip(given, titles):
        assert advice.title.startswith(title), given_titles
        assert advice.evidence
        assert any(ch.isdigit() for ch in advice.evidence[0])


def test_lines_to_paste_are_python():
    given = advice_on(CASES["everything, in order"][0])
    names = {}
    for advice in given:
        code = "\n".join(f"x = [{x}]" if x[:4] == "dict" else x
                         for x in advice.change.splitlines())  # fmt: skip
        exec(code, {}, names)
    # The last line of a name has what the ones before it said.
    assert names["optim_wrapper"] == dict(
        optimizer=dict(lr=0.002),
        clip_grad=dict(max_norm=10, norm_type=2),
        dtype="bfloat16",
    )
    assert "# with what 2 said of it:" in given[3].change.splitlines()


def test_stock_scale_of_nothing():
    first, last = advice_on(run([], ckpt=checkpoint([1.0] * 1000, scale=0.0)))
    assert first.title == "Attach StabilityHook"
    assert last.evidence == ["loss scale 0 after iteration 999"]


def test_images_of_which_most_come_back_do_not_stand_out():
    """A small data set and many bad iterations: every image has bad luck twice."""
    lines = [x for i in range(500, 700, 10) for x in (*bad(i), batch(i, i % 3, i % 7))]
    history = run([START, *lines, END])
    causes = find_causes(history, find(history))
    assert causes.images == {}
    assert causes.images_back > causes.images_seen / 2


def test_a_learning_rate_that_rose_is_evidence():
    given = advice_on(CASES["diverged where the learning rate rose by more than the "
                            "usual step"][0])  # fmt: skip
    assert (
        "the learning rate was 0.3 where the run diverged (iteration 690), at most "
        "0.01 before"
    ) in given[0].evidence


def test_a_divergence_is_no_evidence_against_images():
    """Its verdict is on the run: the batch of that iteration was as good as any."""
    blamed = [dict(batch(i, "a"), verdict="DIVERGED") for i in (300, 700)]
    history = run([START, *blamed, diverged(700), END])
    assert find_causes(history, find(history)).images == {}


def test_heads_and_buffers_are_named():
    lines = bad(5, heads=["bbox_head"]) + bad(9, buffers=["bn1.running_var"])
    history = run([START, *lines, END])
    assert find_causes(history, find(history)).layers == [
        "bbox_head: what it hands to its losses was not finite in 1 iteration",
        "bn1.running_var: it became infinite or NaN in 1 iteration",
    ]


def test_what_held_and_what_the_rate_was_are_remarks():
    (lower,) = advice_on(CASES["three in a row, and a rollback that held"][0])
    assert lower.evidence == ["iterations 698 to 700 were not finite, 3 in a row"]
    assert lower.remarks == [
        "x0.5 since the rollback at iteration 700: the last 299 iterations held"
    ]


# --- what is no learning rate ---------------------------------------------------------
def looked(iteration, kind="input", finding="NaN/Inf in the model's input: inputs."):
    return line(iteration, "forensics", FORWARD, kind=kind, finding=finding, folder="f")


def test_a_batch_that_was_not_finite_itself_comes_first():
    lines = [*bad(700), batch(700, "a.jpg"), looked(700), *bad(701, 702), rollback(702)]
    (advice,) = advice_on(run([START, *lines, END]))
    assert advice.title == "Look at the data: what the model was given was not finite"
    assert advice.evidence == [
        "iteration 700: NaN/Inf in the model's input: inputs, of a.jpg"
    ]
    assert advice.change == "# more in f"
    # Of one of several it is no reason for the others.
    # Nor where nobody has looked into the others.
    for more in ([looked(800, "nan", "First NaN/Inf: in x")], []):
        other = [*bad(800, 801, 802), *more, rollback(802, 0.01)]
        first, second = advice_on(run([START, *lines, *other, END]))
        assert first.title == advice.title
        assert second.title.startswith("Lower the learning rate")


@pytest.mark.parametrize(
    ("gap", "factor", "warmup", "at_once"),
    [
        (3, 0.1, 100, True),
        (200, 0.1, 100, False),  # the learning rate had risen
        (3, 0.5, 0, False),  # it was there at once
        (3, 0.5, 100, False),
    ],
)
def test_what_is_back_at_once_at_next_to_no_learning_rate(gap, factor, warmup, at_once):
    ends = [400, 400 + gap, 400 + 2 * gap, 400 + 3 * gap]
    start = start_line(hooks=["RollbackHook"])
    start["hooks"]["RollbackHook"] = dict(warmup_iters=warmup)
    lines = [start]
    for number, end in enumerate(ends, 1):
        lines += bad(end - 2, end - 1, end)
        if end != ends[-1]:
            lines.append(rollback(end, factor**number, number))
    lines.append(line(ends[-1], "abort", FORWARD, **ABORT))
    titles = [a.title for a in advice_on(run(lines))]
    told = "Look for the cause in data or code: the learning rate is none"
    assert (told in titles) is at_once
    assert any(t.startswith("Lower the learning rate") for t in titles) is not at_once
    if at_once:
        (advice,) = [a for a in advice_on(run(lines)) if a.title == told]
        assert advice.evidence == [
            "not finite again 3 and 3 iterations after rollbacks, when a learning rate "
            "of x0.01 and x0.001 had hardly begun to rise"
        ]


# --- precision ------------------------------------------------------------------------
def roi_head():
    extractor = dict(roi_layer=dict(type="RoIAlign", output_size=7))
    return dict(type="FasterRCNN", roi_head=dict(bbox_roi_extractor=extractor))


@pytest.mark.parametrize(
    ("model", "lacks"),
    [
        (roi_head(), "RoIAlign"),
        (dict(bbox_head=dict(loss_cls=dict(type="mmdet.FocalLoss"))), "focal loss"),
        (
            dict(bbox_head=dict(loss_cls=dict(type="mmdet.models.losses.FocalLoss"))),
            "focal loss",
        ),
        (dict(type="DINO"), "deformable attention"),
        (dict(bbox_head=dict(type="VFNetHead")), "deformable convolution"),
        (dict(neck=dict(type="CTResNetNeck")), "deformable convolution"),
        (dict(detector=dict(rpn_head=dict(type="RPNHead"))), "NMS"),
        (dict(bbox_head=dict(loss_cls=dict(type="QualityFocalLoss"))), ""),
        (dict(type="DETR"), ""),
        (None, ""),
    ],
)
def test_bf16_is_for_detectors_whose_operators_have_it(model, lacks):
    (advice,) = advice_on(run(LATE, logits(50000.0, 0.4), config(model=model)))
    if not lacks:
        assert advice.title.startswith("Train in BF16")
        assert advice.change == "optim_wrapper = dict(dtype='bfloat16')"
        return
    assert advice.title == f"Train in FP32: {lacks} of mmcv has no BF16"
    assert advice.change == (
        "optim_wrapper = dict(_delete_=True, type='OptimWrapper', "
        "optimizer=dict(type='SGD', lr=0.02))"
    )


def test_a_fallback_that_bf16_could_not_serve_is_no_evidence_for_it():
    tried = "an operator without bfloat16 (RuntimeError: roi_align)"
    lines = [line(701, "fallback", to="float32", reason=tried, until=None)]
    (advice,) = advice_on(run([*LATE, *lines]))
    assert advice.title.startswith("Train in FP32: an operator (tried in iteration 701")


def test_a_fallback_that_was_taken_back_is_none_either():
    """FP32 does not fit, and the run goes on in FP16."""
    gave_up = "and an operator has no bfloat16: RuntimeError: roi_align"
    lines = [
        line(701, "fallback", to="bfloat16", reason="3 bad iterations", until=None),
        line(702, "fallback", to="float16", gave_up=gave_up),
    ]
    (advice,) = advice_on(run([*LATE, *lines], logits(50000.0, 0.4)))
    assert advice.title.startswith("Train in FP32: an operator (tried in iteration 702")
    assert not [text for text in advice.evidence if "left FP16" in text]


@pytest.mark.parametrize(
    ("to", "later", "title"),
    [
        ("bfloat16", [], "Train in BF16"),
        # The rollback that it was left for is none of the new precision.
        ("bfloat16", [rollback(701)], "Train in BF16"),
        ("bfloat16", [rollback(900)], "Train in FP32: BF16 did not help"),
        ("float32", [rollback(900)], None),
    ],
)
def test_a_precision_that_was_tried_in_vain_is_not_advised(to, later, title):
    left = line(701, "fallback", to=to, reason="2 rollbacks", until=None)
    given = advice_on(run([*LATE[:-1], left, *later, END], logits(50000.0, 0.4)))
    of_precision = [a for a in given if a.title.startswith("Train in")]
    assert [a.title.startswith(title) for a in of_precision] == [True] * bool(title)
    if title and title.endswith("help"):
        assert of_precision[0].title == title
        assert "a rollback in BF16 as well, iteration 900" in of_precision[0].evidence


@pytest.mark.parametrize(
    "later", [rollback(900, verdict="DIVERGED"), rollback(701 + 600)]
)
def test_what_a_precision_cannot_help_against(later):
    """A divergence, and what came long after it was left for."""
    left = line(701, "fallback", to="bfloat16", reason="2 rollbacks", until=None)
    lines = [*LATE[:-1], left, later, line(1999, "end")]
    given = advice_on(run(lines, logits(50000.0, 0.4)))
    assert [a.title.startswith("Train in BF16") for a in given][-1]


def test_forward_passes_are_not_finite_because_of_no_loss_scale():
    """GradScaler halves it for them too, where StepGuardHook is not there."""
    scales = {"amp/scale_log2": curve([float(16 - i) for i in range(20)], 1, 700)}
    row = range(700, 720)
    (*_, last) = advice_on(run([START, *overflows(*row, scale=1.0), END], scales))
    assert "loss scale 0.125 by iteration 719" in last.evidence
    nan = advice_on(run([START, *bad(*row, vetoed=False), END], scales))
    assert nan
    assert not [a for a in nan if a.title.startswith("Train in")]


def test_a_static_loss_scale_does_not_stay_in_bf16():
    wrapper = dict(CONFIG["optim_wrapper"], loss_scale=512.0)
    history = run(LATE, logits(50000.0, 0.4), config(optim_wrapper=wrapper))
    (advice,) = advice_on(history)
    assert advice.change == (
        "optim_wrapper = dict(dtype='bfloat16', loss_scale='dynamic')"
    )


# --- what pre-flight has said ---------------------------------------------------------
def told(**remedies):
    return line(0, "preflight", findings=["x"], fails=[], remedies=remedies)


@pytest.mark.parametrize(
    ("remedies", "failed", "title", "remark"),
    [
        ({}, 120, "Warm up, for 242 iterations", ""),
        ({}, 30, "Warm up, for 100 iterations", ""),
        (dict(warmup=140), 120, "Warm up, for 140 iterations", "pre-flight gave"),
        (dict(warmup=100), 120, "Warm up, for 242 iterations", "have been over"),
    ],
)
def test_one_warm_up_for_a_run(remedies, failed, title, remark):
    (advice,) = advice_on(run([START, told(**remedies), *bad(failed), END]))
    assert advice.title == title
    assert remark in "".join(advice.remarks)
    assert bool(advice.remarks) == bool(remark)


def test_the_warm_up_is_that_of_the_planned_run():
    """Not of the few iterations that it came to."""
    start = start_line(max_iters=90000)
    (advice,) = advice_on(run([start, *bad(30)]))
    assert advice.title == "Warm up, for 500 iterations"


def test_one_learning_rate_for_a_run():
    row = bad(700, 701, 702)
    (advice,) = advice_on(run([START, told(lr=0.005), *row, END]))
    assert advice.title == "Lower the learning rate, to x0.25 (0.02 to 0.005)"
    assert advice.change == "optim_wrapper = dict(optimizer=dict(lr=0.005))"
    # It is known not to hold.
    end = [rollback(702, 0.1), *bad(997, 998, 999), END]
    (advice,) = advice_on(run([START, told(lr=0.005), *row, *end]))
    assert advice.title == "Lower the learning rate, to x0.01 (0.02 to 0.0002)"


def test_what_an_earlier_start_was_told():
    """At a resume pre-flight looks at fewer things."""
    later = line(600, "preflight", findings=[], fails=[], remedies={})
    lines = [START, told(lr=0.005, warmup=100), later, *bad(700, 701, 702), END]
    (advice,) = advice_on(run(lines))
    assert advice.title == "Lower the learning rate, to x0.25 (0.02 to 0.005)"


# --- lines that do not collide --------------------------------------------------------
def suite(**arguments):
    return config(custom_hooks=[dict(type="amp_hooks.StabilityHook", **arguments)])


def test_inside_the_suite_its_own_arguments_are_named():
    lines = [START, *bad(300), batch(300, "a"), *bad(700), batch(700, "a"),
             *bad_boxes(700), END]  # fmt: skip
    (advice,) = advice_on(run(lines, config=suite(rollback=dict(interval=9))))
    assert advice.change.splitlines()[-2:] == [
        "# in custom_hooks, in place of the present StabilityHook:",
        "dict(type='amp_hooks.StabilityHook', rollback=dict(interval=9), "
        "bad_batch=dict(skip=True), boxes=dict(action='drop')),",
    ]


def test_a_suite_that_the_command_line_has_added_is_changed_where_it_is():
    stability = dict(type="amp_hooks.StabilityHook", panel=None)
    lines = [START, *bad(300), batch(300, "a"), *bad(700), batch(700, "a"), END]
    cfg = config(default_hooks=dict(stability=stability))
    (advice,) = advice_on(run(lines, config=cfg))
    assert advice.change.splitlines()[-2:] == [
        "# in default_hooks, in place of the present stability:",
        "dict(type='amp_hooks.StabilityHook', panel=None, bad_batch=dict(skip=True)),",
    ]


def test_a_suite_of_a_runner_without_a_config():
    """Its members are hooks of the run, and no entries beside it."""
    given = dict(rollback=dict(interval=9))
    start = start_line(hooks=["RollbackHook", "BadBatchHook"], suite=given)
    lines = [start, *bad(300), batch(300, "a"), *bad(700), batch(700, "a"), END]
    (advice,) = advice_on(run(lines, config={}))
    assert advice.change.splitlines()[-2:] == [
        "# in custom_hooks, in place of the present StabilityHook:",
        "dict(type='amp_hooks.StabilityHook', rollback=dict(interval=9), "
        "bad_batch=dict(skip=True)),",
    ]


def test_a_hook_that_is_there_is_changed_and_not_added():
    alone = dict(type="amp_hooks.BadBatchHook", suspect_after=3)
    lines = [start_line(hooks=["BadBatchHook"]), *bad(300), batch(300, "a"), *bad(700),
             batch(700, "a"), END]  # fmt: skip
    (advice,) = advice_on(run(lines, config=config(custom_hooks=[alone])))
    assert advice.change.splitlines()[-1] == (
        "dict(type='amp_hooks.BadBatchHook', suspect_after=3, skip=True),"
    )


def test_what_was_left_out_of_the_suite_is_put_back():
    lines = [line(0, "start", hooks=dict(StabilityHook=dict(head_clamp=None))),
             *bad(700, layers=["fc_cls"]), END]  # fmt: skip
    (advice,) = advice_on(run(lines, config=suite(head_clamp=None, cls_score={})))
    assert advice.change.splitlines()[-1] == (
        "dict(type='amp_hooks.StabilityHook', cls_score=dict()),"
    )


def test_a_pure_python_config_has_lines_of_its_kind():
    wrapper = dict(
        type="mmengine.optim.optimizer.amp_optimizer_wrapper.AmpOptimWrapper",
        optimizer=dict(type="torch.optim.sgd.SGD", lr=0.02),
    )
    hooks = [dict(type="amp_hooks.suite.StabilityHook")]
    pure = config(optim_wrapper=wrapper, custom_hooks=hooks, param_scheduler=[])
    lines = [START, *bad(20, 21, 22), batch(20, "a"), *bad(40), batch(40, "a"),
             *bad(100), END]  # fmt: skip
    first, lower, warm = advice_on(run(lines, config=pure))
    assert first.change.splitlines() == [
        "# at the top:",
        "from amp_hooks import StabilityHook",
        "from mmdet.datasets.transforms import FilterAnnotations",
        "# in train_pipeline, after the last step that changes boxes:",
        "dict(type=FilterAnnotations, min_gt_bbox_wh=(1, 1)),",
        "# in custom_hooks, in place of the present StabilityHook:",
        "dict(type=StabilityHook, bad_batch=dict(skip=True)),",
    ]
    assert lower.change == "optim_wrapper.update(dict(optimizer=dict(lr=0.002)))"
    assert "from mmengine.optim import LinearLR" in warm.change


def test_gradients_of_an_older_ledger_are_not_to_blame_for_a_forward_pass():
    names = dict(nonfinite_grads=["conv1.weight"], nonfinite_grads_total=1)
    history = run([START, *bad(5, **names), *bad(9, **names), END])
    assert find_causes(history, find(history)).layers == []
    own = bad(5, 9, verdict="GRAD_NONFINITE", **names)
    history = run([START, *own, END])
    assert "conv1.weight" in find_causes(history, find(history)).layers[0]


def test_fp32_takes_in_what_was_said_before():
    lines = [START, *bad(700, 701, 702), *overflows(800, skip="collapse"), END]
    lower, fp32 = advice_on(run(lines, config=config(model=roi_head())))
    assert lower.change == "optim_wrapper = dict(optimizer=dict(lr=0.002))"
    assert fp32.change.splitlines()[-1] == (
        "optim_wrapper = dict(_delete_=True, type='OptimWrapper', "
        "optimizer=dict(type='SGD', lr=0.002))"
    )
