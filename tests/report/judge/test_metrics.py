"""Which metric tells that a run is dead, whatever it is called."""

import pytest
from mmengine.hooks import CheckpointHook

from amp_hooks.health.main_metric import main_metric, save_best_of
from amp_hooks.report.judge.incidents import find
from amp_hooks.report.judge.metrics import fallen, last_metric
from amp_hooks.report.judge.status import Status, judge
from amp_hooks.report.show.page import NO_ADVICE, NOTHING_TO_CHANGE, make_page

from ..made import CONFIG, curve, line, run, start_line

START, END = start_line(max_iters=100), line(99, "end")
FINE = dict(loss=curve([1.0] * 10))
NAN = float("nan")


def trained(*metrics, save_best=None, evaluator=None, **hook):
    config = dict(CONFIG, val_evaluator=evaluator)
    if save_best is not None:
        checkpoint = dict(type="CheckpointHook", save_best=save_best, **hook)
        config["default_hooks"] = dict(checkpoint=checkpoint)
    evaluations = [(10 * i + 9, m) for i, m in enumerate(metrics)]
    return run([START, END], FINE, config, evaluations)


@pytest.mark.parametrize(
    "name",
    [
        "coco/bbox_mAP",
        "lvis/bbox_AP",
        "pascal_voc/mAP",
        "mIoU",
        "coco_panoptic/PQ",
        "accuracy/top1",
        "motchallenge-metric/HOTA",
        "pascal_voc/AP50",
        "coco/AR@100",
    ],
)
@pytest.mark.parametrize("dead", [0.0, NAN])
def test_a_dead_run_is_lost_by_any_name(name, dead):
    beside = {f"{name}_50": 0.7, "data_time": 0.1}
    history = trained({name: 0.4, **beside}, {name: dead, **beside})
    judged = judge(history, find(history))
    assert judged.status is Status.LOST
    assert judged.reasons == [
        f"{name} was 0.400 at iteration 9 and is {dead:.3g} since"
    ]


@pytest.mark.parametrize(
    ("first", "last", "more", "dead"),
    [
        (dict(a=0.4, b=0.3), dict(a=0.5, b=0.0), dict(save_best=["a", "b"]), "b"),
        (dict(a=0.4, b=0.3), dict(a=0.5, b=0.2), dict(save_best=["a", "b"]), None),
        ({"val/loss": 2.0}, {"val/loss": NAN}, dict(save_best="val/loss"), "val/loss"),
        ({"val/loss": 2.0}, {"val/loss": 0.0}, dict(save_best="val/loss"), None),
        ({"val/loss": 2.0}, {}, dict(save_best="val/loss"), None),
        (dict(d=2.0), dict(d=NAN), dict(save_best="d", rule="less"), "d"),
    ],
)
def test_each_metric_that_the_best_is_saved_by(first, last, more, dead):
    """Of those of which less is better NaN alone says that the run is dead."""
    found = fallen(trained(first, last, **more))
    assert found == (
        dead
        and f"{dead} was {first[dead]:.3f} at iteration 9 and is {last[dead]:.3g} since"
    )


@pytest.mark.parametrize(
    ("values", "lost"),
    [
        ((40.0, 42.0, 3.6), True),  # one class everywhere: 1 of 12 classes
        ((40.0, 42.0, 30.0), False),
        ((40.0, 3.6, 41.0), False),
        ((0.001, 0.0005), False),  # a best that means nothing
        ((0.0, 0.0), False),
    ],
)
def test_what_a_segmenter_that_died_still_has(values, lost):
    history = trained(*({"mIoU": v} for v in values))
    assert bool(fallen(history)) is lost


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((0.0, 0.0, 0.0), "But coco/bbox_mAP was 0 in all of 3 evaluations: check-con"),
        ((NAN, NAN, NAN), "But coco/bbox_mAP was nan in all of 3 evaluations: check-c"),
        ((None, None, None), "But none of 3 evaluations found anything: check-config"),
        ((0.0, 0.0), ""),  # a beginning
        ((0.0, 0.0, 0.001), ""),
    ],
)
def test_a_model_that_never_found_anything(values, told):
    """Every number is healthy, and nothing comes of it."""
    history = trained(
        *({} if v is None else {"coco/bbox_mAP": v, "data_time": 0.1} for v in values),
        evaluator=dict(type="CocoMetric"),
    )
    page = make_page(history)
    assert page.judged.status is Status.HEALTHY
    assert told in page.sentence
    assert (NOTHING_TO_CHANGE in page.sentence) is (not told)
    assert page.no_advice == (NO_ADVICE if told else NOTHING_TO_CHANGE)


@pytest.mark.parametrize(
    ("metrics", "more"),
    [
        ([{}] * 3, dict(evaluator=dict(type="DumpDetResults"))),
        ([{}] * 3, dict(evaluator=dict(type="CocoMetric", format_only=True))),
        ([{}] * 3, {}),
        (
            [{"neg_mpjpe": -90.0 + 20 * i} for i in range(3)],
            dict(save_best="neg_mpjpe", rule="greater"),
        ),
    ],
)
def test_where_that_is_not_known(metrics, more):
    assert make_page(trained(*metrics, **more)).no_advice == NOTHING_TO_CHANGE


def test_what_is_not_evaluated_any_more_is_not_dead():
    """Masks are left out at a resume; and of many classes one is rare."""
    names = ["coco/bbox_mAP", "coco/segm_mAP"]
    assert fallen(trained(dict.fromkeys(names, 0.4), {names[0]: 0.4})) is None
    rare = dict(pedestrian_AP=0.6, wheelchair_AP=0.1)
    assert fallen(trained(rare, dict(rare, wheelchair_AP=0.0))) is None


def test_boxes_and_masks_are_judged_alike():
    """MMDetection's configs have no save_best, and two mAP."""
    names = ["coco/bbox_mAP", "coco/segm_mAP"]
    alive, dead = dict.fromkeys(names, 0.4), {names[0]: 0.4, names[1]: 0.0}
    assert fallen(trained(alive, alive)) is None
    assert fallen(trained(alive, dead)).startswith("coco/segm_mAP was 0.400")


def test_an_evaluation_that_found_nothing_is_the_last_one():
    history = trained({"coco/bbox_mAP": 0.4}, {})
    assert last_metric(history) == ("coco/bbox_mAP", 0.0)


def test_save_best_comes_first():
    metrics = {"coco/bbox_mAP": 0.4, "mine/score": 0.5}
    dead = {"coco/bbox_mAP": 0.4, "mine/score": 0.0}
    assert fallen(trained(metrics, dead)) is None
    history = trained(metrics, dead, save_best="mine/score")
    assert fallen(history).startswith("mine/score was 0.500")
    assert last_metric(history) == ("mine/score", 0.0)
    history = trained(metrics, dead, save_best=["gone", "mine/score"])
    assert fallen(history).startswith("mine/score was 0.500")
    history = trained(dict(reversed(metrics.items())), dead, save_best="auto")
    assert fallen(history).startswith("mine/score was 0.500")


@pytest.mark.parametrize("given", [dict(save_best="val/loss"), dict(
    save_best="mine/error", rule="less")])  # fmt: skip
def test_of_a_metric_of_which_less_is_better_nothing_is_said(given):
    name = given["save_best"]
    history = trained({name: 0.4, "mIoU": 0.3}, {name: 0.0, "mIoU": 0.3}, **given)
    assert fallen(history) is None
    assert last_metric(history) == ("mIoU", 0.3)


@pytest.mark.parametrize(
    "given",
    [
        dict(save_best="auto"),
        dict(save_best="mIoU"),
        dict(save_best=["acc", "val_loss"], rule=["greater", "less"]),
        dict(save_best=["mAP", "mIoU"], rule="greater"),
        dict(),
    ],
)
def test_the_hook_and_its_entry_say_the_same(given):
    metrics = dict(val_loss=1.0, acc=0.4, mIoU=0.3, mAP=0.2)
    of_config, hook = save_best_of(given), CheckpointHook(**given)
    assert (
        main_metric(metrics, of_config)[0]
        == main_metric(metrics, save_best_of(hook))[0]
    )
