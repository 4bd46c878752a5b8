"""The rescue benchmark: its rival policy, its tables, and the whole of it in small."""

import json
import math
import sys
from dataclasses import asdict, fields
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from tests import helpers, processes

sys.path.insert(0, str(helpers.ROOT / "scripts"))

from rescue_benchmark import result_path, take, without_result  # noqa: E402
from rescue_cells import (  # noqa: E402
    CLEAN,
    FAULTS,
    INJECTED,
    POLICIES,
    SPIKE,
    Cell,
    Length,
    cells,
    fingerprint,
    make_config,
    pretraining,
)
from rescue_detectors import DETECTORS, TWO_STAGES  # noqa: E402
from rescue_faults import NanTermHook  # noqa: E402
from rescue_picture import COLORS, contrast, draw, ink_on  # noqa: E402
from rescue_policies import ObserveHook, RestoreLastEpochHook  # noqa: E402
from rescue_run import (  # noqa: E402
    last_losses,
    lost_iterations,
    of_the_machine,
    verdict,
)
from rescue_tables import every_cell, failures, markdown, summary  # noqa: E402


def epochs_of(runner):
    return runner.train_loop.epoch, runner.train_loop.max_epochs


def restoring(build, at, epochs):
    """12 iterations an epoch, and NaN at some of them."""
    fault = helpers.fault("parameter", at, where="backbone.conv1.weight")
    runner = build("retinanet", epochs=epochs, hooks=[fault], precision="float32")
    hook = RestoreLastEpochHook()
    runner.register_hook(hook)
    return runner, hook


def test_restoring_the_last_epoch_runs_it_again(build):
    """NaN in the second, once."""
    runner, hook = restoring(build, 14, epochs=3)
    runner.train()
    assert hook.undone == [(12, 23)]
    assert epochs_of(runner) == (4, 4)
    assert all(torch.isfinite(t).all() for t in helpers.state(runner).values())
    # The learning rate's schedule was run again, too: 36 steps, not 48.
    assert runner.param_schedulers[0].last_step == 36


def test_restoring_gives_up_after_three_attempts(build):
    runner, _ = restoring(build, [14, 26, 38, 50], epochs=2)
    with pytest.raises(RuntimeError, match="NaN persisted for 3 epochs"):
        runner.train()


def test_in_the_first_epoch_there_is_nothing_to_restore(build):
    runner, hook = restoring(build, 2, epochs=2)
    runner.train()
    assert hook.undone == []


@pytest.mark.parametrize(
    ("detector", "fault"),
    [("fcos", "hot_lr"), *((detector, "bn_nan") for detector in DETECTORS)],
)
def test_cells_differ_by_fault_and_policy_alone(detector, fault):
    configs = {
        policy: make_config(Cell(detector, fault, policy), Length(), "out", "work")
        for policy in POLICIES
    }
    alike = []
    for cfg in configs.values():
        cfg = cfg.to_dict()
        hooks = cfg.pop("custom_hooks")
        cfg.pop("experiment_name")
        cfg["visualizer"].pop("name")
        alike.append((cfg, hooks[:1] if fault in INJECTED else []))
    assert alike[1:] == alike[:-1]


def test_results_of_another_config_are_forgotten(tmp_path):
    folder, cell = tmp_path / "cells", Cell("fcos", CLEAN, "nothing")
    folder.mkdir()
    begin, length = pretraining("fcos"), Length()

    def missing(of, **other):
        result = dict(config=fingerprint(of, Length(**other)))
        result_path(tmp_path, of).write_text(json.dumps(result))
        return without_result([of], length, tmp_path)

    assert missing(begin) == [begin]  # no .pth
    (folder / f"{begin.name}.pth").touch()
    assert missing(begin) == []
    assert missing(begin, pretrain=2) == [begin]
    assert missing(cell) == []
    assert missing(cell, epochs=9) == [cell]
    assert missing(cell, pretrain=2) == [cell]
    assert without_result([cell], length, tmp_path) == [cell]


def test_results_that_are_known_need_not_be_made_again(tmp_path):
    (tmp_path / "cells").mkdir()
    cell, other = (Cell("fcos", CLEAN, "nothing", seed=seed) for seed in (0, 1))
    known = dict(asdict(cell), config=fingerprint(cell, Length()), map=0.5)
    (tmp_path / "rescue.json").write_text(json.dumps(dict(results=[known])))
    take(tmp_path / "rescue.json", tmp_path)
    assert without_result([cell, other], Length(), tmp_path) == [other]
    assert json.loads(result_path(tmp_path, cell).read_text()) == known


def test_lost_iterations():
    def line(event, at, verdict="FORWARD_NONFINITE", **more):
        return dict(event=event, iter=at, verdict=verdict, **more)

    ledger = [
        line("veto", 2, "SCALE_OVERFLOW"),
        line("veto", 4),
        line("rollback", 10, target_iter=8),
        line("rollback", 20, target_iter=18),
        line("clamp_on", 30),
    ]
    lost = lost_iterations(ledger, [(40, 41)], {20})
    assert lost == {4, 8, 9, 10, 18, 19, 40, 41}


def test_a_rollback_between_iterations_undoes_none_that_follows(build):
    """The EMA is looked at when a snapshot is due, the weights at once."""
    hooks = [
        dict(type="amp_hooks.RollbackHook", interval=2, probation=0),
        helpers.fault("ema", 2, where="*backbone.conv1.weight"),
        helpers.fault("parameter", 6, where="backbone.conv1.weight"),
    ]
    runner = build("retinanet", iters=8, hooks=hooks, precision="float32", ema=True)
    observe = ObserveHook()
    runner.register_hook(observe)
    runner.train()
    lines = helpers.ledger(runner, "rollback")
    assert [line["iter"] for line in lines] == [4, 6]
    assert observe.undone_before == {4}


def test_the_map_is_that_of_the_last_evaluation():
    """mmdet gives none where nothing is found: an earlier one would stand for it."""
    observe = ObserveHook()
    found = []
    for metrics in ({"coco/bbox_mAP": 0.5}, {"coco/bbox_mAP": -1.0}, {}):
        observe.after_val_epoch(None, metrics)
        found.append(observe.map)
    assert found == [0.5, 0.0, 0.0]


def test_what_is_this_machines_fault():
    assert of_the_machine(OSError("no space left"))
    assert of_the_machine(RuntimeError("CUDA out of memory. Tried to allocate"))
    assert not of_the_machine(AssertionError("loss become infinite or NaN!"))
    assert last_losses({}) is None


def test_what_is_run_where():
    made = cells(list(DETECTORS), list(FAULTS), list(POLICIES))
    assert len(made) == len(set(made))
    ours = {(c.precision, c.seed) for c in made if c.policy == "ladder"}
    assert len(ours) == 9  # three precisions, three seeds
    assert {c.seed for c in made if c.policy == "clamp"} == {0}
    half = [c for c in made if c.precision == "bfloat16"]
    assert not {c.detector for c in half} & set(TWO_STAGES)
    assert "bn_nan" not in {c.fault for c in half}
    long = [c for c in made if c.long]
    assert {c.policy for c in long} == {"nothing", "defaults"}
    assert min(c.iters(Length()) for c in long) >= 5000
    assert made[-len(long) :] == long  # when all the others are there
    quick = cells(["fcos"], ["bn_nan"], ["ladder"], ["float16"], [0])
    assert [c.fault for c in quick] == [CLEAN, "bn_nan"]


def test_a_cell_evaluates_every_epoch_in_its_precision():
    def config(*args, **more):
        return make_config(Cell("fcos", *args, **more), Length(), "out", "work")

    cfg = config("spike", "ladder", "float32", 2)
    assert cfg.train_cfg.val_interval == 1
    assert cfg.randomness.seed == 2
    assert cfg.optim_wrapper.type == "OptimWrapper"
    fault = cfg.custom_hooks[0].faults[0]
    assert (fault.at, fault.value) == (135, f"x{SPIKE}")
    cfg = config(CLEAN, "ladder", "bfloat16")
    assert cfg.optim_wrapper.dtype == "bfloat16"
    assert not cfg.optim_wrapper.loss_scale.enabled
    long = config("hot_lr", "defaults", long=True)
    assert long.train_cfg.max_epochs == 69
    assert long.param_scheduler[0].end == 230  # as much of the run as in the short ones
    assert long.custom_hooks == [dict(type="amp_hooks.StabilityHook")]


def test_a_nan_term_without_gradient_leaves_the_weights_finite(build):
    """And the report says what it has become of the run."""
    runner = build(
        "retinanet", iters=6, hooks=[dict(type="amp_hooks.StabilityHook")], ema=True
    )
    runner._hooks.insert(0, NanTermHook(at=3))
    runner.train()
    losses = runner.message_hub.log_scalars["train/loss_aux"].data[0]
    assert [math.isfinite(x) for x in losses] == [True] * 3 + [False, True, False]
    assert all(torch.isfinite(t).all() for t in helpers.state(runner).values())
    lines = helpers.ledger(runner)
    assert "nan_term" in [line["event"] for line in lines]
    about = verdict(Path(runner.work_dir), lines)
    assert about["report"] == "healthy"
    assert "large_logits" not in about["foretold"]


def result(policy, fault=CLEAN, map=0.6, **more):
    finished = map is not None
    return {
        **dict(
            detector="fcos",
            fault=fault,
            policy=policy,
            precision="float16",
            seed=0,
            long=False,
            finished=finished,
            error="" if finished else "AssertionError: loss",
            map=map,
            iters=300,
            bad=0,
            lost=0,
            cpu=50.0,
            actions=[],
            report="healthy",
            foretold=[],
        ),
        **more,
    }


def test_the_tables_and_what_is_not_shown():
    results = [
        result("nothing"),
        result("ladder", map=0.66, cpu=60.0),
        result("check", "bn_nan", map=None, iters=200),
        result("nothing", "bn_nan", map=0.0, lost=120),
        result("ladder", "bn_nan", map=0.54, lost=7),
        result("nothing", "gradient_nan"),
        result("nothing", "hot_lr", map=0.0),
        result("ladder", "hot_lr", map=0.3, lost=9, seed=0),
        result("ladder", "hot_lr", map=0.6, lost=3, seed=1),
    ]
    table = markdown(results, "a CPU")
    # One of the ruined has a seed of which no run without hooks is known.
    assert "| 1 of 2 | 0 of 0   | 0 of 1     | 3 of 3   | 0.80 | 6    | 1.00 |" in table
    assert "ended at 200 (AssertionError)" in table
    assert "1.10, lost 0, x1.20" in table
    assert "0.50 1.00, lost 6, x1.00" in table
    assert failures(results) == [
        "fcos, bn_nan, FP16, seed 0: mAP is 0.90 of the clean runs'",
        "fcos, hot_lr, FP16, seed 0: mAP is 0.50 of the clean runs'",
    ]
    assert "| learning rate x10 (all finite) | FP16      | fcos" in table
    assert "| NaN in a gradient (harmless) " in table
    results[6]["bad"] = 1
    assert "(all finite)" not in every_cell(results)
    results[7].update(report="lost")
    assert len(failures(results)) == 2
    assert "called lost 1 of 2" in every_cell(results)
    results[7].update(foretold=["large_logits"])
    assert len(failures(results)) == 1
    results[1]["actions"] = ["5 rollback"]
    results[4].update(finished=False, map=None, error="TrainingDivergedError: x")
    assert failures(results) == [
        "fcos, clean, FP16, seed 0: 1 interventions",
        "fcos, bn_nan, FP16, seed 0: did not finish: TrainingDivergedError: x",
    ]


def test_what_is_compared_is_of_one_precision_and_length():
    """The mean of the seeds without hooks."""
    results = [
        result("nothing", map=0.5, seed=0),
        result("nothing", map=0.7, seed=1),
        result("nothing", map=0.3, precision="float32"),
        result("nothing", map=0.9, long=True, iters=5175),
        result("ladder", "hot_lr", map=0.3, precision="float32"),
        result("defaults", "hot_lr", map=0.45, long=True, iters=5175),
    ]
    assert failures(results) == [
        "fcos, hot_lr, FP16, seed 0, long: mAP is 0.50 of the clean runs'"
    ]
    assert "| amp_hooks, defaults, FP16, 5175 iterations |" in summary(results)


def test_the_picture(tmp_path):
    """Rows by outcome, ours apart, and what each colour and word means below."""
    shares = {
        "gradient_nan": (0.6, 0.6, 0.6),
        "hot_lr": (0.0, 0.0, 0.0),
        "bn_nan": (0.0, None, 0.3),
        "weight_nan": (0.3, 0.6, 0.6),
    }
    results = [
        result(policy, fault, map=share, detector=detector)
        for detector in ("fcos", "yolox")
        for fault, those in {CLEAN: (0.6, 0.6, 0.6), **shares}.items()
        for policy, share in zip(("nothing", "check", "ladder"), those)
    ]
    figure = draw(results[:-1])  # of a run there is no result yet
    figure.canvas.draw()
    panels = [axis for axis in figure.axes if axis.get_title()]
    titles = [axis.get_title() for axis in panels]
    assert titles == ["nothing", "CheckInvalidLossHook", "amp_hooks"]
    rows = [label.get_text() for label in panels[0].get_yticklabels()]
    assert rows == [
        "NaN in a weight, FP16",
        "NaN in BatchNorm, FP16",
        "learning rate x10, FP16",
        "NaN in a gradient, FP16",
        "no fault, FP16",
    ]
    nothing, check, ours = ([text.get_text() for text in p.texts] for p in panels)
    assert nothing == ["0.50", "0.50", *["0.00"] * 2, "0.00*", "0.00*", *["1.00"] * 4]
    assert check[2:4] == ["ended", "ended"]
    assert len(ours) == 9, "one was not run"
    edges = [(axis.get_position().x0, axis.get_position().x1) for axis in panels]
    (_, first), (second, end), (third, _) = edges
    assert third - end > 2 * (second - first)
    (legend,) = figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words[:5] == [
        "0 to 0.25",
        "0.25 to 0.5",
        "0.5 to 0.75",
        "0.75 to 0.95",
        "0.95 and more: saved",
    ]
    assert words[5].startswith("not run")
    box, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1, "it is cut off"
    plt.close(figure)


def test_the_picture_can_be_read_in_grey():
    light = [contrast((0, 0, 0), color[:3]) for color in COLORS]
    assert all(b > 1.3 * a for a, b in zip(light, light[1:]))
    for color in COLORS:
        ink = (0, 0, 0) if ink_on(color) == "black" else (1, 1, 1)
        assert contrast(ink, color[:3]) >= 4.5  # WCAG's AA


def test_what_the_pages_show_is_what_was_measured():
    docs = helpers.ROOT / "docs"
    page, told = (docs / "en" / f"{p}.md" for p in ("rescue", "what_it_saves"))
    page, told = page.read_text(), told.read_text()
    tables = [part for part in page.split("\n\n") if part.startswith("|")]
    assert tables[0] in told
    measured = json.loads((docs / "rescue.json").read_text())
    results = measured["results"]
    names = [f.name for f in fields(Cell)]
    made = [Cell(**{name: r[name] for name in names}) for r in results]
    every = cells(list(DETECTORS), list(FAULTS), list(POLICIES))
    assert made == [cell for cell in every if cell in made]
    if made != every:
        said = f"{len(made)} of its {len(every)} runs"
        assert said in " ".join(told.split())
    assert measured["length"] == asdict(Length())
    assert page == markdown(results, measured["about"])
    # The Chinese page's numbers are compared with these by test_pages_zh.py.
    assert summary(results) in told


@pytest.mark.long
@pytest.mark.slow
def test_the_whole_in_small_and_once_more(tmp_path):
    command = ["rescue_benchmark.py", "--out", tmp_path]
    command += ["--images", "12", "--epochs", "2"]
    command += ["--pretrain-epochs", "1", "--jobs", "1", "--detectors", "faster_rcnn"]
    command += ["--faults", "weight_nan", "--policies", "nothing", "ladder"]
    command += ["--precisions", "float16", "--seeds", "1"]
    run = processes.script(*command, status=None)  # so short a run saves nothing
    assert "4 runs, 4 of them to be made, and before them 1 " in run.stdout
    assert "| NaN in a weight" in (tmp_path / "rescue.md").read_text()
    assert (tmp_path / "rescue.png").stat().st_size > 10_000
    (tmp_path / "cells/faster_rcnn.weight_nan.ladder.float16.1.json").unlink()
    run = processes.script(*command, "--done", status=None)  # of what there is
    assert "to be made" not in run.stdout
    assert "| NaN in a weight" in run.stdout
    run = processes.script(*command, status=None)
    assert "4 runs, 1 of them to be made, and before them 0 " in run.stdout
    run = processes.script(*command, "--images", "16", status=1)
    assert "Give another folder with --out" in run.stderr
