from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import find_latest_checkpoint

from amp_hooks import BadBatchHook
from amp_hooks.engine.batches import BatchView
from amp_hooks.engine.safe_read import read_safely
from amp_hooks.engine.tensors import nonfinite_names
from tests import helpers
from tests.data.bad_images import Spy, with_bad_images
from tests.integration.test_cost import reads_per_iteration

CLS = "bbox_head.retina_cls.weight"
GUARD = dict(type="amp_hooks.StepGuardHook")
BAD = 3  # id of the bad image
SIX = {"train_dataloader.dataset.indices": 6}  # images: each comes up again soon
LOOPS = [dict(iters=9), dict(epochs=3)]


def bad_batch(**kwargs):
    return dict(type="amp_hooks.BadBatchHook", **kwargs)


def train(build, hooks, *, bad=(), precision="float32", **options):
    more = options.pop("options", {})
    options["options"] = {**SIX, **with_bad_images(*bad), **more}
    options.setdefault("ema", False)
    runner = build("retinanet", hooks=hooks, precision=precision, **options)
    spy = Spy()
    runner.register_hook(spy, priority="HIGHEST")
    runner.train()
    return runner, spy


def with_image(batches, image_id):
    return [i for i, ids in batches.items() if image_id in ids]


@pytest.mark.parametrize("loop", LOOPS, ids=["iter", "epoch"])
def test_lines_name_the_batch_and_the_image_becomes_a_suspect(build, loop):
    hooks = [GUARD, bad_batch()]
    runner, spy = train(build, hooks, bad=[BAD], **loop, options={"log_level": "INFO"})
    expected = with_image(spy.loaded, BAD)
    assert len(expected) == 3
    lines = helpers.ledger(runner, "bad_batch")
    assert [line["iter"] for line in lines] == expected
    for line in lines:
        assert (line["verdict"], line["rank"]) == ("FORWARD_NONFINITE", 0)
        assert line["ids"] == spy.loaded[line["iter"]]
        assert [int(path[-10:-4]) for path in line["images"]] == line["ids"]
    suspects = {line["id"]: line for line in helpers.ledger(runner, "suspect")}
    # Beside it only those that were there both times.
    both = [set(spy.loaded[i]) for i in expected[:2]]
    assert set(suspects) == set.intersection(*both)
    assert suspects[BAD]["iters"] == expected[:2]
    assert suspects[BAD]["iter"] == expected[1]
    text = helpers.log(runner)
    assert f"{suspects[BAD]['image']} (iterations {expected[0]}, {expected[1]})" in text
    assert spy.trained == spy.loaded
    assert nonfinite_names(helpers.state(runner)) == []


@pytest.mark.parametrize(
    ("batch_size", "loop"), [(1, dict(iters=16)), (2, dict(epochs=3))], ids=str
)
def test_skipped_suspects_are_not_trained_on(build, batch_size, loop):
    """A batch of one has no other sample: an earlier one takes its place."""
    runner, spy = train(
        build,
        [GUARD, bad_batch(skip=True)],
        bad=[BAD],
        options={"train_dataloader.batch_size": batch_size},
        **loop,
    )
    first, second, *later = with_image(spy.loaded, BAD)
    assert later
    assert with_image(spy.trained, BAD) == [first, second]
    lines = helpers.ledger(runner, "bad_batch")
    assert [line["iter"] for line in lines] == [first, second]
    assert all(len(ids) == batch_size for ids in spy.trained.values())
    assert all(spy.finite[i] for i in later)
    replaced = helpers.ledger(runner, "replaced")
    assert set(later) <= {line["iter"] for line in replaced}
    assert {line["by"] is None for line in replaced} == {batch_size == 1}
    hook = helpers.hook_of(runner, "BadBatchHook")
    assert len(replaced) == replaced[-1]["total"] == hook.replaced


def test_resume_keeps_suspects(build, tmp_path):
    hooks = [GUARD, bad_batch(skip=True)]
    options = {"default_hooks.checkpoint.interval": 6}
    first, spy = train(
        build, hooks, bad=[BAD], iters=6, work_dir=tmp_path / "w", options=options
    )
    seen = helpers.hook_of(first, "BadBatchHook").state()
    assert len(with_image(spy.loaded, BAD)) == 2
    saved = read_safely(find_latest_checkpoint(first.work_dir))
    assert saved["amp_hooks"]["BadBatchHook"] == seen

    again, spy = train(
        build,
        hooks,
        bad=[BAD],
        iters=12,
        work_dir=tmp_path / "w",
        options=dict(options, resume=True),
    )
    assert min(spy.loaded) == 6
    assert len(with_image(spy.loaded, BAD)) == 2
    assert with_image(spy.trained, BAD) == []
    assert helpers.ledger(again, "bad_batch") == []
    assert helpers.hook_of(again, "BadBatchHook").state() == seen


def test_broken_weights_do_not_accuse_the_data_set(build):
    """Huge weights: every batch is bad until patience ends and they are taken back."""
    broken = helpers.fault("parameter", [1, 10], where=CLS, value=3e38, count="all")
    rollback = dict(type="amp_hooks.RollbackHook", interval=100, patience=5)
    runner, spy = train(build, [broken, GUARD, rollback, bad_batch()], iters=16)
    lines = [line["iter"] for line in helpers.ledger(runner, "bad_batch")]
    assert lines == [*range(1, 6), *range(10, 15)]
    assert [e["iter"] for e in helpers.ledger(runner, "rollback")] == [5, 14]
    bad = [image for i in lines for image in spy.loaded[i]]
    assert all(bad.count(image) >= 2 for image in set(bad))  # the naive count
    assert len(set(bad)) == 6
    both = set(spy.loaded[1]) & set(spy.loaded[10])
    assert {line["id"] for line in helpers.ledger(runner, "suspect")} == both
    assert len(both) < 2


def test_of_an_accumulation_the_batch_that_failed_is_to_blame(build):
    hooks = [helpers.infinite_images(1), GUARD, bad_batch()]
    runner, spy = train(build, hooks, iters=6, accumulate=3)
    (line,) = helpers.ledger(runner, "bad_batch")
    assert (line["iter"], line["ids"]) == (1, spy.loaded[1])


def test_bad_gradients_are_blamed_on_every_batch_of_the_accumulation(build):
    fault = helpers.fault("gradient", 3, where=CLS, value="inf")
    runner, spy = train(build, [fault, GUARD, bad_batch()], iters=6, accumulate=2)
    lines = helpers.ledger(runner, "bad_batch")
    assert [(x["iter"], x["ids"]) for x in lines] == [
        (2, spy.loaded[2]),
        (3, spy.loaded[3]),
    ]
    assert {line["verdict"] for line in lines} == {"GRAD_NONFINITE"}


def test_an_exception_is_blamed_on_its_batch_and_an_overflow_on_none(build):
    raised = helpers.fault("raise", 1)
    overflow = helpers.fault("gradient", 2, where=CLS, value="inf")
    runner, spy = train(
        build,
        [raised, overflow, GUARD, bad_batch()],
        iters=4,
        precision="float16",
        options={"optim_wrapper.loss_scale": dict(init_scale=128.0, _delete_=True)},
    )
    verdicts = [r.verdict.value for r in helpers.records(runner)]
    assert verdicts == ["HEALTHY", "RAISED", "SCALE_OVERFLOW", "HEALTHY"]
    (line,) = helpers.ledger(runner, "bad_batch")
    assert (line["iter"], line["verdict"]) == (1, "RAISED")
    assert line["ids"] == spy.loaded[1]


def test_alone_and_healthy_it_changes_nothing(build):
    plain, _ = train(build, [], iters=2)
    runner, _ = train(build, [bad_batch(skip=True)], iters=2)
    assert helpers.losses(runner) == helpers.losses(plain)
    a, b = helpers.state(plain), helpers.state(runner)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert helpers.ledger(runner) == []


def test_a_clean_iteration_waits_once_with_the_hook_as_without(build):
    """The recorder's one copy, whichever hook of the suite asks for it."""
    extra = reads_per_iteration(
        build, [bad_batch(skip=True)], "float32", iters=2, ema=False, options=SIX
    )
    assert list(extra.values()) == [1, 1]


class Nameless(Hook):
    """Data samples as a data set of one's own may make them."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for sample in data_batch["data_samples"]:
            for key in ("img_path", "img_id"):
                sample.set_field(None, key, field_type="metainfo")


def test_a_batch_without_names_is_said_once(build):
    runner = build(
        "retinanet",
        iters=3,
        ema=False,
        precision="float32",
        hooks=[helpers.infinite_images([1, 2]), GUARD, bad_batch(skip=True)],
        options={"log_level": "INFO"},
    )
    runner.register_hook(Nameless(), priority="HIGHEST")
    runner.train()
    assert helpers.log(runner).count("the batch has no image names") == 1
    assert helpers.ledger(runner, "bad_batch") == []
    assert [line["iter"] for line in helpers.ledger(runner, "overflow")] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(suspect_after=0), ValueError, "suspect_after.*at least 1"),
        (dict(skip="yes"), TypeError, "skip must be True or False"),
        (dict(max_images=1.5), TypeError, "max_images must be an integer"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        BadBatchHook(**arguments)


# --- layouts of batches -------------------------------------------------------------
def sample(name, **more):
    return SimpleNamespace(img_path=f"{name}.jpg", img_id=ord(name), **more)


def test_semi_supervised_branches_are_exchanged_together():
    def image(i):
        return torch.full((3, 2, 2), float(i))

    batch = dict(
        inputs=dict(
            sup=[image(0), None, None],
            teacher=[None, image(1), image(2)],
            student=[None, image(10), image(20)],
        ),
        data_samples=dict(
            sup=[sample("a"), None, None],
            teacher=[None, sample("b"), sample("c")],
            student=[None, sample("b"), sample("c")],
        ),
    )
    view = BatchView(batch)
    assert list(view.images()) == ["a.jpg", "b.jpg", "c.jpg"]
    assert view.branches("a.jpg") == ("sup",)
    assert view.branches("b.jpg") == ("teacher", "student")
    assert view.replace("b.jpg", view.copy("c.jpg"))
    assert list(view.images()) == ["a.jpg", "c.jpg"]
    assert batch["inputs"]["teacher"][1].max() == 2
    assert batch["inputs"]["student"][1].max() == 20
    assert batch["inputs"]["sup"][0].max() == 0
    copies = batch["data_samples"]["teacher"]
    assert copies[1] is not copies[2]


def test_a_stacked_batch_takes_only_what_fits():
    batch = dict(inputs=torch.arange(2.0).repeat(4, 1).T, data_samples=[])
    batch["data_samples"] = [
        SimpleNamespace(sample_idx=7),
        SimpleNamespace(sample_idx=8),
    ]
    view = BatchView(batch)
    assert view.images() == {"sample 7": 7, "sample 8": 8}
    assert not view.replace("sample 7", {"": [SimpleNamespace(), torch.ones(5)]})
    assert view.replace("sample 7", view.copy("sample 8"))
    assert batch["inputs"].tolist() == [[1.0] * 4] * 2
    assert view.images() == {"sample 8": 8}


@pytest.mark.parametrize(
    "batch",
    [
        None,
        [1, 2],
        dict(inputs=torch.ones(2)),
        dict(inputs=torch.ones(2), data_samples=dict(img_metas=torch.ones(2))),
        dict(inputs=[1], data_samples=[SimpleNamespace(img_path=["a", "b"])]),
    ],
)
def test_other_batches_name_no_image(batch):
    assert BatchView(batch).images() == {}


@pytest.mark.parametrize(
    "inputs",
    # As many views as samples, and which is which cannot be told: a half of another.
    [torch.ones(5), [torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)]],
    ids=["numbers", "views"],
)
def test_inputs_of_unknown_layout_are_not_exchanged(inputs):
    batch = dict(inputs=inputs, data_samples=[sample("a"), sample("b")])
    view = BatchView(batch)
    assert list(view.images()) == ["a.jpg", "b.jpg"]
    assert not view.replace("a.jpg", view.copy("b.jpg"))
