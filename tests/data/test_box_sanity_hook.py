"""BoxSanityHook in real runs whose annotations have bad boxes."""

import math
from collections import Counter

import pytest
import torch
from mmengine.hooks import Hook

from amp_hooks import BoxSanityHook
from amp_hooks.engine.events import EVENTS
from tests import helpers
from tests.data.bad_boxes import voc

BAD = [(3, 0, "zero"), (7, 0, "negative"), (11, 0, "outside")]
KIND = {image: kind for image, _, kind in BAD}
LOOPS = [dict(iters=12), dict(epochs=1)]  # each sees every image once


def boxes(**arguments):
    return dict(type="amp_hooks.BoxSanityHook", **arguments)


class Seen(Hook):
    """The boxes of each image, as loaded and as trained on."""

    def __init__(self):
        self.loaded, self.trained = {}, {}

    def _of(self, batch):
        return {
            int(s.img_id): s.gt_instances.bboxes.tensor.clone()
            for s in batch["data_samples"]
        }

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.loaded[runner.iter] = self._of(data_batch)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.trained[runner.iter] = self._of(data_batch)

    def at(self, image):
        """The iteration in which it came."""
        (found,) = [i for i, images in self.loaded.items() if image in images]
        return found


@pytest.fixture
def train(build, digits, tmp_path):
    def train(hooks, spoiled=BAD, **options):
        more = voc(digits, tmp_path / f"voc{len(build.made)}", spoiled)
        more.update(options.pop("options", {}))
        options = {"ema": False, "precision": "float32", **options}
        runner = build("retinanet", hooks=hooks, options=more, **options)
        seen = Seen()
        runner.register_hook(seen, priority="HIGHEST")
        runner.train()
        return runner, seen

    return train


def same_run(a, b):
    """Bit by bit, and NaN equals itself."""
    x, y = helpers.state(a), helpers.state(b)
    assert x.keys() == y.keys()
    for name in x:
        assert torch.equal(x[name].nan_to_num(7), y[name].nan_to_num(7)), name
    assert str(helpers.losses(a)) == str(helpers.losses(b))


@pytest.mark.parametrize("loop", LOOPS, ids=["iter", "epoch"])
def test_each_kind_is_named_with_its_image_and_nothing_changes(train, loop):
    plain, _ = train([], **loop)
    runner, seen = train([boxes()], options={"log_level": "INFO"}, **loop)
    same_run(plain, runner)
    lines = helpers.ledger(runner, "boxes")
    assert len(lines) == len({seen.at(image) for image in KIND})
    told = {}
    for line in lines:
        assert (line["rank"], line["action"], line["verdict"]) == (0, "warn", "HEALTHY")
        assert line["images_total"] == len(line["images"])
        for path in line["images"]:
            image = int(path[-10:-4])
            assert seen.at(image) == line["iter"]
            told[image] = line["counts"]
    assert told.keys() == KIND.keys()
    assert all(KIND[image] in counts for image, counts in told.items())
    total = sum((Counter(line["counts"]) for line in lines), Counter())
    assert total == Counter(KIND.values())
    (last,) = helpers.records(runner)[-1:]
    assert last.values["bad_boxes_total"] == {"": 0.0, **dict(total)}
    text = helpers.log(runner)
    assert "000003.jpg box 0 zero width or height (" in text
    assert "000007.jpg box 0 negative width or height (" in text
    assert "000011.jpg box 0 outside the image (" in text
    assert "found 3 invalid boxes: 1 negative, 1 zero, 1 outside." in text
    # A width of zero makes this detector's loss infinite: what the hook is for.
    assert not math.isfinite(helpers.losses(runner)[seen.at(3)])


@pytest.mark.parametrize("loop", LOOPS, ids=["iter", "epoch"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_dropped_boxes_are_not_trained_on(train, loop, precision):
    runner, seen = train([boxes(action="drop")], precision=precision, **loop)
    assert all(map(math.isfinite, helpers.losses(runner)))
    for i, images in seen.loaded.items():
        for image, loaded in images.items():
            trained = seen.trained[i][image]
            kept = loaded[1:] if image in KIND else loaded
            assert torch.equal(trained, kept)
    assert {line["action"] for line in helpers.ledger(runner, "boxes")} == {"drop"}


def test_raise_names_image_box_and_flaw_before_the_iteration(train, build):
    with pytest.raises(
        ValueError,
        match=r"BoxSanityHook: invalid boxes: \S+000003.jpg box 0 zero "
        r"width or height \(.*action='drop'.*check-annotations",
    ):
        train([boxes(action="raise")], spoiled=BAD[:1], iters=12)
    runner = build.made[-1]
    (line,) = helpers.ledger(runner, "boxes")
    assert (line["action"], line["iter"]) == ("raise", runner.iter)
    assert runner.iter == len(helpers.records(runner))


def test_an_infinite_loss_of_a_box_with_finite_gradients_is_stepped_on(train):
    """|x - inf| has the gradient -1. With boxes=dict(action='drop') it is not there."""
    zero = [(3, 0, "zero")]
    suite = dict(type="amp_hooks.StabilityHook", forensics=None, rollback=None)
    runner, seen = train([suite], zero, iters=12)
    (term,) = helpers.ledger(runner, "nan_term")
    (line,) = helpers.ledger(runner, "boxes")
    assert term["iter"] == line["iter"] == seen.at(3)
    assert list(term["losses"]) == ["loss_bbox"]
    assert not helpers.ledger(runner, "veto")
    assert all(record.stepped for record in helpers.records(runner))
    runner, _ = train([dict(suite, boxes=dict(action="drop"))], zero, iters=12)
    assert [e["event"] for e in helpers.ledger(runner)] == ["boxes"]


def test_injected_faults_are_found(build):
    values = ["zero", "subpixel", "inverted", "nan", "outside"]
    faults = [dict(what="boxes", at=i, value=v) for i, v in enumerate(values)]
    inject = dict(type="amp_hooks.FaultInjectionHook", faults=faults)
    runner = build(
        "retinanet", iters=6, hooks=[boxes(action="drop"), inject], ema=False
    )
    runner.train()
    found = {
        line["iter"]: list(line["counts"]) for line in helpers.ledger(runner, "boxes")
    }
    names = ["zero", "sub_pixel", "negative", "not_finite", "outside"]
    assert found == {i: [name] for i, name in enumerate(names)}
    assert all(map(math.isfinite, helpers.losses(runner)))


def test_many_are_no_flood(build, monkeypatch):
    monkeypatch.setattr("amp_hooks.data.box_sanity_hook._MAX_LINES", 7)
    bad = helpers.fault("boxes", 0, iters=12, value="zero", count="all")
    runner = build(
        "retinanet",
        iters=12,
        hooks=[bad, boxes(action="drop")],
        precision="float32",
        options={"log_level": "INFO"},
    )
    runner.train()
    text = helpers.log(runner)
    assert text.count("invalid boxes: /") == 5
    assert text.count("From here on they are only counted") == 1
    assert text.count("has written 7 lines") == 1
    lines = helpers.ledger(runner, "boxes")
    assert [line["iter"] for line in lines] == list(range(7))
    total = helpers.hook_of(runner, "BoxSanityHook").counts["zero"]
    assert total > sum(line["counts"]["zero"] for line in lines)


@helpers.SKIPS_DONE_BATCHES
def test_counts_survive_a_resume(train, build, tmp_path):
    more = {"default_hooks.checkpoint.interval": 6}
    work = tmp_path / "w"
    first, seen = train([boxes()], iters=6, work_dir=work, options=more)
    found = helpers.hook_of(first, "BoxSanityHook").counts
    assert found == Counter(
        KIND[i] for i in KIND if any(i in x for x in seen.loaded.values())
    )
    again, _ = train(
        [boxes()], iters=12, work_dir=work, options={**more, "resume": True}
    )
    assert helpers.hook_of(again, "BoxSanityHook").counts == Counter(KIND.values())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_healthy_boxes_change_nothing_and_say_nothing(build, accumulate):
    runs = []
    for hooks in ([], [boxes(action="drop", min_size=1.0)]):
        runner = build(
            "retinanet",
            iters=6,
            hooks=hooks,
            accumulate=accumulate,
            options={"log_level": "INFO"},
        )
        runner.train()
        runs.append(runner)
    same_run(*runs)
    assert helpers.ledger(runs[1], "boxes") == []
    assert "invalid boxes" not in helpers.log(runner)


def test_what_cannot_be_read_is_said_once_and_does_not_cost_the_run(build):
    runner = build("retinanet", iters=1, hooks=[boxes()], options={"log_level": "INFO"})
    batch = next(iter(runner.build_dataloader(runner._train_dataloader)))
    for sample in batch["data_samples"]:
        sample.set_field(("high", "wide"), "img_shape", field_type="metainfo")
    for _ in range(2):
        helpers.hook_of(runner, "BoxSanityHook").before_train_iter(runner, 0, batch)
    assert helpers.log(runner).count("cannot read the boxes of this batch") == 1


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # of mmdet, told by torch
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize(
    "detector", ["faster_rcnn", "cascade_rcnn", "retinanet", "fcos", "rtmdet", "detr"]
)
def test_a_batch_that_loses_all_its_boxes_trains(digits, monkeypatch, detector):
    monkeypatch.syspath_prepend(str(helpers.ROOT / "scripts"))
    from fault_matrix import make_runner

    none_left = helpers.fault("boxes", 0, iters=2, value="zero", count="all")
    hooks = [none_left, boxes(action="drop")]
    runner = make_runner(detector, "float32", "iter", 3, hooks, str(digits))
    runner._val_loop = None
    left = []
    drop = helpers.hook_of(runner, "BoxSanityHook").before_train_iter

    def dropped(runner, batch_idx, data_batch=None):
        drop(runner, batch_idx, data_batch)
        left.append(sum(len(s.gt_instances) for s in data_batch["data_samples"]))

    helpers.hook_of(runner, "BoxSanityHook").before_train_iter = dropped
    runner.train()
    assert left[:2] == [0, 0]
    assert left[2] > 0
    assert all(map(math.isfinite, helpers.losses(runner)))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(action="remove"), ValueError, "action must be one of.*'drop'"),
        (dict(min_size=0), ValueError, "min_size must be greater than 0"),
        (dict(min_size="1"), TypeError, "min_size must be a number"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        BoxSanityHook(**arguments)


def test_all_images_of_a_batch_are_named(build):
    fault = helpers.fault("boxes", 0, value="zero", count="all")
    options = {"train_dataloader.batch_size": 8, "optim_wrapper.loss_scale": 1.0}
    runner = build("retinanet", iters=1, hooks=[fault, boxes()], options=options)
    runner.train()
    (line,) = helpers.ledger(runner, "boxes")
    assert len(set(line["images"])) == line["images_total"] == 8
    words = EVENTS["boxes"].words(line)
    assert words.count(".png") == 5
    assert "and 3 more images" in words
