"""The healthy runs: what is compared and counted, and two of them in small."""

import json
import sys

import pytest
import torch

from tests import helpers, processes

sys.path.insert(0, str(helpers.ROOT / "scripts"))

from healthy_cases import (  # noqa: E402
    DETECTORS,
    ILL,
    PRECISIONS,
    RECIPES,
    Case,
    all_cases,
    chosen,
    fingerprint,
    make_plan,
    result_path,
)
from healthy_hooks import HardBatchHook, LossWeightHook  # noqa: E402
from healthy_pair import differences, first_difference, sorted_out  # noqa: E402
from healthy_runs import done, failures, markdown  # noqa: E402
from rescue_cells import Length  # noqa: E402

NAN = float("nan")


def test_there_are_enough_cases_and_all_recipes():
    cases = all_cases()
    assert len(set(cases)) == len(cases) >= 40
    assert {c.recipe for c in cases} == set(RECIPES) - {ILL}
    assert {c.detector for c in cases} == set(DETECTORS)
    assert {c.precision for c in cases} == set(PRECISIONS)
    assert [c.recipe for c in chosen(cases, ["fcos"], [ILL])] == [ILL]
    for recipe in set(RECIPES) - {ILL, "cosine"}:
        starts = [c.start for c in cases if c.recipe == recipe]
        assert sorted(starts) == ["scratch", "tuned"]


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_the_hooks_are_all_that_differs(case):
    plain, hooked = (
        make_plan(case, Length(), "out", "work", hooked=hooked)
        for hooked in (False, True)
    )
    assert hooked.cfg.custom_hooks.pop().type == "amp_hooks.StabilityHook"
    configs = []
    for plan in (plain, hooked):
        cfg = plan.cfg.to_dict()
        cfg.pop("experiment_name")
        cfg["visualizer"].pop("name")
        configs.append(cfg)
    assert configs[0] == configs[1]
    assert plain.iters in (225, 300)


def test_what_differs():
    a = dict(x=torch.tensor([1.0, NAN]), y=torch.tensor(0.0), z=torch.zeros(2))
    assert differences(a, {n: t.clone() for n, t in a.items()}) == []
    b = dict(x=torch.tensor([1.0, 2.0]), y=torch.tensor(0), w=torch.zeros(2))
    assert differences(a, b) == ["w", "z", "x", "y"]
    assert first_difference([1.0, NAN], [1.0, NAN]) is None
    assert first_difference([1.0, 2.0], [1.0, NAN]) == 1
    assert first_difference([1.0], [1.0, 2.0]) == 1


def test_what_is_an_intervention():
    def line(event, verdict="HEALTHY"):
        return dict(iter=1, event=event, verdict=verdict)

    ledger = [
        *map(line, ("start", "preflight", "snapshot", "watch", "well", "end")),
        line("overflow", "SCALE_OVERFLOW"),
        line("veto", "SCALE_OVERFLOW"),
        line("veto", "GRAD_NONFINITE"),
        *map(line, ("clamp_on", "diverged", "rollback", "fallback", "abort")),
    ]
    found = sorted_out(ledger)
    events = [found["event"] for found in found["interventions"]]
    assert events == ["veto", "clamp_on", "diverged", "rollback", "fallback", "abort"]
    assert found["interventions"][0]["verdict"] == "GRAD_NONFINITE"
    assert len(found["watches"]) == 1
    assert found["overflows"] == 1


def result(**more):
    case = dict(detector="fcos", start="tuned", precision="float16", recipe="ema")
    good = dict(iters=225, error="", differ=[], first=None, interventions=[])
    return {**case, **good, **dict(watches=[], overflows=0, seconds=[1.0, 1.0]), **more}


def test_the_table_and_what_fails():
    watched = result(watches=[dict(iter=5, event="watch")])
    assert failures([result(), watched]) == []
    lines = [dict(iter=7, event="rollback")]
    bad = result(interventions=lines, differ=["model.a"], first=8, error="E: x")
    assert failures([result(), bad]) == [
        "ema, fcos fine-tuned, float16: rollback at 7",
        "ema, fcos fine-tuned, float16: 1 tensors differ from iteration 8 on",
        "ema, fcos fine-tuned, float16: E: x",
    ]
    assert failures([result(differ=["a"], overflows=2)]) == [
        "ema, fcos fine-tuned, float16: 1 tensors differ, 2 steps overflowed"
    ]
    page = markdown([result(), watched, bad], "a CPU")
    assert "3 runs of 675 iterations in all" in page
    assert "1 with an intervention, 1 that differ, 1 that ended with an error" in page
    assert "| rollback at 7 | 0       | differ   |" in page


def test_results_of_another_config_are_made_again(tmp_path):
    case = Case("fcos", "scratch", "float32", "term_off")
    path = result_path(tmp_path, case)
    path.parent.mkdir()
    assert not done(case, Length(), tmp_path)
    path.write_text(json.dumps(dict(config=fingerprint(case, Length()))))
    assert done(case, Length(), tmp_path)
    assert not done(case, Length(epochs=4), tmp_path)
    assert not path.exists()


def test_a_term_is_switched_and_a_batch_is_hard(build):
    runner = build("retinanet", iters=6, precision="float32")
    runner.register_hook(LossWeightHook("bbox_head.loss_bbox", {0: 0.0, 3: 1.0}))
    runner.register_hook(HardBatchHook(every=4))
    runner.train()
    scalars = runner.message_hub.log_scalars
    boxes = scalars["train/loss_bbox"].data[0]
    assert [bool(b > 0) for b in boxes] == [False] * 3 + [True] * 3


def test_hard_batches_are_the_same_each_time():
    def images():
        return dict(inputs=[torch.full((3, 8, 8), 20, dtype=torch.uint8)])

    runner = type("Runner", (), dict(iter=3))
    hook, batches = HardBatchHook(every=4), [images(), images()]
    for batch in batches:
        hook.before_train_iter(runner, 0, batch)
    a, b = (batch["inputs"][0] for batch in batches)
    assert torch.equal(a, b)
    assert a.dtype == torch.uint8
    assert 50 < a.float().mean() < 70


@pytest.mark.long
@pytest.mark.slow
def test_two_runs_in_small_and_one_that_is_ill(tmp_path):
    command = ["healthy_runs.py", "--out", tmp_path, "--jobs", "1"]
    command += ["--images", "40", "--epochs", "2", "--detectors"]
    run = processes.script(*command, "yolox", "--recipes", "ema", "iters")
    assert "2 runs, 2 of them to be made" in run.stdout
    assert "0 with an intervention, 0 that differ" in run.stdout
    assert "| EMA" in (tmp_path / "healthy.md").read_text()
    run = processes.script(*command, "yolox", "--recipes", "ema", "iters")
    assert "2 runs, 0 of them to be made" in run.stdout
    run = processes.script(*command, "fcos", "--recipes", ILL, status=1)
    assert "1 with an intervention, 1 that differ" in run.stdout
    assert "NOT SHOWN: lr_jump, fcos from scratch, float32: diverged at" in run.stderr
