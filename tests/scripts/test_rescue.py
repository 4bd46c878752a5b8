"""The rescue benchmark: its rival policy, its tables, and the whole of it in small."""

import json
import sys
from dataclasses import asdict

import pytest
import torch

from tests import helpers, processes

sys.path.insert(0, str(helpers.ROOT / "scripts"))

from rescue_benchmark import forget_outdated  # noqa: E402
from rescue_cells import (  # noqa: E402
    CLEAN,
    DETECTORS,
    FAULTS,
    FP32,
    INJECTED,
    POLICIES,
    Cell,
    Length,
    cells,
    fingerprint,
    make_config,
    pretraining,
)
from rescue_policies import ObserveHook, RestoreLastEpochHook  # noqa: E402
from rescue_run import last_losses, lost_iterations, of_the_machine  # noqa: E402
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
    folder, cell = tmp_path / "cells", Cell("fcos", CLEAN, FP32)
    folder.mkdir()
    wanted = [pretraining("fcos"), cell]

    def write(*lengths):
        for c, length in zip(wanted, lengths):
            result = dict(config=fingerprint(c, length))
            (folder / f"{c.name}.json").write_text(json.dumps(result))

    write(Length(), Length())
    assert forget_outdated(wanted, Length(), tmp_path) == wanted  # no .pth
    (folder / f"{wanted[0].name}.pth").touch()
    write(Length(), Length())
    assert forget_outdated(wanted, Length(), tmp_path) == []
    write(Length(), Length(epochs=9))
    assert forget_outdated(wanted, Length(), tmp_path) == [cell]
    write(Length(pretrain=2), Length())
    assert forget_outdated(wanted, Length(), tmp_path) == wanted


def test_lost_iterations():
    def line(event, at, verdict="FORWARD_NONFINITE", **more):
        return dict(event=event, iter=at, verdict=verdict) | more

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


def test_what_is_this_machines_fault():
    assert of_the_machine(OSError("no space left"))
    assert of_the_machine(RuntimeError("CUDA out of memory. Tried to allocate"))
    assert not of_the_machine(AssertionError("loss become infinite or NaN!"))
    assert last_losses({}) is None


def result(policy, fault=CLEAN, map=0.6, **more):
    finished = map is not None
    return (
        dict(
            detector="fcos",
            fault=fault,
            policy=policy,
            finished=finished,
            error="" if finished else "AssertionError: loss",
            map=map,
            iters=300,
            bad=0,
            lost=0,
            cpu=50.0,
            actions=[],
        )
        | more
    )


def test_the_tables_and_what_is_not_shown():
    results = [
        result(FP32),
        result("nothing"),
        result("ladder", map=0.66, cpu=60.0),
        result("check", "bn_nan", map=None, iters=200),
        result("nothing", "bn_nan", map=0.0, lost=120),
        result("ladder", "bn_nan", map=0.54, lost=7),
        result("nothing", "gradient_nan"),
        result("nothing", "hot_lr", map=0.0),
        result("ladder", "hot_lr", map=0.0),
    ]
    table = markdown(results, "a CPU")
    assert "| 0 of 1 | 0 of 0   | 0 of 1     | 2 of 2   | 0.90 | 7    | 1.00 |" in table
    assert "ended at 200 (AssertionError)" in table
    assert "1.10, lost 0, x1.20" in table
    assert failures(results) == ["fcos, bn_nan: mAP is 0.90 of the clean run's"]
    assert "| learning rate x10 (all finite) | fcos" in table
    assert "| NaN in a gradient (harmless) " in table
    results[7]["bad"] = 1
    assert "fcos, hot_lr: mAP is 0.00 of the clean run's" in failures(results)
    assert "(all finite)" not in every_cell(results)
    results[7]["bad"] = 0
    results[2]["actions"] = ["5 rollback"]
    results[5].update(finished=False, map=None, error="TrainingDivergedError: x")
    assert failures(results) == [
        "fcos, clean: 1 interventions",
        "fcos, bn_nan: did not finish: TrainingDivergedError: x",
    ]


def test_what_the_pages_show_is_what_was_measured():
    docs = helpers.ROOT / "docs"
    measured = json.loads((docs / "rescue.json").read_text())
    results = measured["results"]
    made = [Cell(r["detector"], r["fault"], r["policy"]) for r in results]
    assert made == cells(list(DETECTORS), list(FAULTS), list(POLICIES))
    assert measured["length"] == asdict(Length())
    assert (docs / "rescue.md").read_text() == markdown(results, measured["about"])
    # README_zh-CN.md's numbers are compared with README.md's by test_readme_zh.py.
    assert summary(results) in (helpers.ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_whole_in_small_and_once_more(tmp_path):
    command = ["rescue_benchmark.py", "--out", tmp_path]
    command += ["--images", "12", "--epochs", "2"]
    command += ["--pretrain-epochs", "1", "--jobs", "1", "--detectors", "faster_rcnn"]
    command += ["--faults", "weight_nan", "--policies", "ladder"]
    run = processes.script(*command, status=None)  # so short a run saves nothing
    assert "4 runs, 4 of them to be made" in run.stdout
    assert "| NaN in a weight" in (tmp_path / "rescue.md").read_text()
    assert (tmp_path / "rescue.png").stat().st_size > 10_000
    (tmp_path / "cells/faster_rcnn.weight_nan.ladder.json").unlink()
    run = processes.script(*command, status=None)
    assert "4 runs, 1 of them to be made" in run.stdout
    run = processes.script(*command, "--images", "16", status=1)
    assert "Give another folder with --out" in run.stderr
