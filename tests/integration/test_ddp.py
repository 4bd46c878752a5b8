"""Two ranks on gloo."""

import os
import re
import signal
import time

import pytest
import torch

from tests import helpers, processes


def program_for(digits, work_dir, **options):
    """The program, its arguments, and where its results will be."""
    cfg = helpers.make_config("retinanet", digits, work_dir, **options)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.launcher = "pytorch"
    cfg.env_cfg.dist_cfg = dict(backend="gloo")
    cfg.model_wrapper_cfg = dict(
        type="MMDistributedDataParallel",
        device_ids=None,
        broadcast_buffers=False,
    )
    cfg.custom_imports = dict(imports=["tests.helpers"])
    config, out = work_dir.with_suffix(".py"), work_dir.with_suffix(".out")
    cfg.dump(config)
    program = helpers.ROOT / "tests/integration/ddp_program.py"
    return [program, config, out], out


def run_on_two_ranks(digits, work_dir, status=None, **options):
    """Train in two processes; the finished process, and where results are."""
    program, out = program_for(digits, work_dir, **options)
    return processes.two_ranks(*program, status=status, timeout=300), out


def train_on_two_ranks(digits, work_dir, **options):
    """What each rank has to tell after training."""
    _, out = run_on_two_ranks(digits, work_dir, status=0, **options)
    return [torch.load(f"{out}.{rank}") for rank in (0, 1)]


def fault_on_rank_1(at):
    return helpers.infinite_images(at, rank=1)


@helpers.NEEDS_FP16
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_fault_on_one_rank_takes_both_back(digits, tmp_path, accumulate):
    hooks = [
        fault_on_rank_1(5),
        *helpers.SUITE[:4],
        dict(type="amp_hooks.RollbackHook", interval=4, probation=0),
        helpers.SUITE[-1],
    ]
    a, b = train_on_two_ranks(
        digits, tmp_path / "w", iters=9, hooks=hooks, accumulate=accumulate
    )
    assert a["rollbacks"] == b["rollbacks"] == 1
    assert (a["lr"], a["scale"], a["iter"]) == (b["lr"], b["scale"], b["iter"])
    assert a["iter"] == 9
    parameters = [k for k in a["state"] if "running_" not in k and "ema" not in k]
    assert parameters
    assert [
        k for k in parameters if not torch.equal(a["state"][k], b["state"][k])
    ] == []
    assert all(torch.isfinite(t).all() for r in (a, b) for t in r["state"].values())
    (path,) = (tmp_path / "w").glob("*/stability.jsonl")
    (event,) = [e for e in helpers.read_ledger(path) if e["event"] == "rollback"]
    assert (event["iter"], event["target_iter"]) == (5, 4)
    assert event["verdict"] == "STATE_NONFINITE"


def test_a_clamp_needed_on_one_rank_delays_the_proof_on_both(digits, tmp_path):
    """Logits are each rank's own; the snapshot gone back to must be the same."""
    large = dict(where="bbox_head.retina_cls", value="x1000", rank=1)
    hooks = [
        dict(type="amp_hooks.HeadClampHook", trigger=1000.0),
        dict(type="amp_hooks.RollbackHook", interval=4, probation=4),
        helpers.fault("forward", 5, **large),
        helpers.fault("parameter", 9, where="backbone.conv1.weight"),
    ]
    a, b = train_on_two_ranks(
        digits, tmp_path / "w", iters=11, hooks=hooks, precision="float32"
    )
    parameters = [k for k in a["state"] if "running_" not in k and "ema" not in k]
    assert all(torch.equal(a["state"][k], b["state"][k]) for k in parameters)
    (path,) = (tmp_path / "w").glob("*/stability.jsonl")
    (event,) = [e for e in helpers.read_ledger(path) if e["event"] == "rollback"]
    assert (event["iter"], event["target_iter"]) == (9, 0)


@helpers.NEEDS_FP16
def test_killed_after_a_rollback_and_resumed(digits, tmp_path):
    """Both ranks go on from one file, with the same counts and learning rate."""
    hooks = [
        fault_on_rank_1(5),
        *helpers.SUITE[:3],
        dict(type="amp_hooks.RollbackHook", interval=4, probation=0, warmup_iters=3),
    ]
    work_dir = tmp_path / "w"
    program, out = program_for(digits, work_dir, iters=10**6, hooks=hooks)
    killed = processes.start(*processes.TWO_RANKS, *program)
    pointer, end = work_dir / "last_checkpoint", time.monotonic() + 200
    try:
        while not pointer.exists() or "iter_8.pth" not in pointer.read_text():
            assert killed.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        # The ranks themselves, which torchrun has put into sessions of their own.
        for path in tmp_path.glob(f"{out.name}.pid.*"):
            os.kill(int(path.read_text()), signal.SIGKILL)
        killed.kill()
        killed.wait()
    last = int(re.search(r"iter_(\d+)", pointer.read_text())[1]) + 6
    a, b = train_on_two_ranks(
        digits, work_dir, iters=last, hooks=hooks, options=dict(resume=True)
    )
    assert a["iter"] == b["iter"] == last
    assert a["rollbacks"] == b["rollbacks"] == 1
    assert (a["lr"], a["scale"]) == (b["lr"], b["scale"])
    parameters = [k for k in a["state"] if "running_" not in k and "ema" not in k]
    differ = [k for k in parameters if not torch.equal(a["state"][k], b["state"][k])]
    assert differ == []
    ledgers = sorted(work_dir.glob("*/stability.jsonl"))
    (resume,) = [e for e in helpers.read_ledger(ledgers[-1]) if e["event"] == "resume"]
    assert 8 <= resume["iter"] == last - 6
    assert (resume["rollbacks"], resume["lr_factor"]) == (1, 0.1)
    before = [e for e in helpers.read_ledger(ledgers[0]) if e["event"] == "rollback"]
    assert [(e["iter"], e["target_iter"]) for e in before] == [(5, 4)]


def test_both_ranks_know_a_fault_of_one_in_the_same_iteration(digits, tmp_path):
    monitors = [fault_on_rank_1(3), *helpers.SUITE[:3]]
    a, b = train_on_two_ranks(
        digits,
        tmp_path / "w",
        iters=4,
        hooks=monitors,
        options={"optim_wrapper.loss_scale": 128.0},
    )
    healthy = [(i, "HEALTHY", []) for i in range(3)]
    assert a["records"] == [*healthy, (3, "FORWARD_NONFINITE", [1])]
    assert b["records"] == a["records"]
    (path,) = (tmp_path / "w").glob("*/stability.jsonl")
    (event,) = [e for e in helpers.read_ledger(path) if e["event"] == "overflow"]
    assert (event["iter"], event["ranks"]) == (3, [1])
    # Told by rank 0, which saw nothing of it itself.
    assert "loss_cls" in event["losses"]
    assert event["layers"] == ["bbox_head.retina_cls"]
    assert "nonfinite_grads_total" not in event  # all were, behind such a loss


@pytest.mark.parametrize(
    ("precision", "accumulate", "loop"),
    [
        ("float16", 1, dict(iters=10**6 + 3, options=dict(jump_after=3))),
        ("float32", 2, dict(epochs=1)),
    ],
)
def test_watching_two_ranks_changes_nothing_and_adds_no_collective(
    digits, tmp_path, precision, accumulate, loop
):
    plain, watched = (
        train_on_two_ranks(
            digits,
            tmp_path / name,
            hooks=hooks,
            precision=precision,
            accumulate=accumulate,
            **loop,
        )
        for name, hooks in (("plain", []), ("watched", helpers.SUITE[:3]))
    )
    for a, b in zip(plain, watched):
        assert a["losses"] == b["losses"]
        assert a["state"].keys() == b["state"].keys()
        changed = [
            k for k, v in a["state"].items() if not torch.equal(v, b["state"][k])
        ]
        assert changed == []
        assert b["transfers"] == 6
        healthy = [v == "HEALTHY" for _, v, _ in b["records"]]
        assert sum(healthy) >= 3
        for i in range(6):
            extra = b["collectives"][i] - a["collectives"][i]
            assert extra == 0 if healthy[i] else extra > 0


def inject(**fault):
    return dict(type="amp_hooks.FaultInjectionHook", faults=[dict(fault, rank=1)])


def guard(**kwargs):
    return dict(type="amp_hooks.StepGuardHook", **kwargs)


def unequal_parameters(a, b):
    names = [k for k in a["state"] if "running_" not in k and "ema" not in k]
    assert names
    return [k for k in names if not torch.equal(a["state"][k], b["state"][k])]


@pytest.mark.parametrize(
    ("precision", "accumulate", "iters"), [("float16", 1, 57), ("float32", 2, 12)]
)
def test_both_ranks_refuse_the_step_and_stay_equal(
    digits, tmp_path, precision, accumulate, iters
):
    """A loss that is NaN on one rank, with gradients that would be finite."""
    hooks = [
        inject(what="loss", value="nan", at=2),
        inject(what="images", value="inf", at=4),
        inject(what="gradient", where="bbox_head.*.weight", value="inf", at=6),
        guard(),
        *helpers.MONITORS,
    ]
    options = {}
    if precision != "float32":
        options["optim_wrapper.loss_scale"] = dict(init_scale=128.0, _delete_=True)
    a, b = train_on_two_ranks(
        digits,
        tmp_path / "w",
        iters=iters,
        hooks=hooks,
        precision=precision,
        accumulate=accumulate,
        options=options,
    )
    assert unequal_parameters(a, b) == []
    assert all(torch.isfinite(t).all() for r in (a, b) for t in r["state"].values())
    assert a["records"] == b["records"]
    bad = {i: verdict for i, verdict, _ in a["records"] if verdict != "HEALTHY"}
    healthy = [i for i, verdict, _ in a["records"] if verdict == "HEALTHY"]
    assert {a["collectives"][i] for i in healthy} == {0}
    last = accumulate - 1  # of the accumulation, where the step is
    assert list(bad) == [2 + last, 4 + last, 6 + last]
    assert [bad[2 + last], bad[4 + last]] == ["FORWARD_NONFINITE"] * 2
    if precision != "float32":
        assert a["scale"] == b["scale"] == 64.0  # of the gradient's overflow only
    (path,) = (tmp_path / "w").glob("*/stability.jsonl")
    vetoes = [e for e in helpers.read_ledger(path) if e["event"] == "veto"]
    assert [e["iter"] for e in vetoes] == list(bad)


@helpers.NEEDS_FP16
def test_an_exception_on_one_rank_is_a_clear_error(digits, tmp_path):
    hooks = [inject(what="raise", at=2), guard()]
    done, _ = run_on_two_ranks(digits, tmp_path / "w", iters=4, hooks=hooks)
    assert done.returncode != 0
    assert "rank 1 raised ValueError: matrix contains invalid" in done.stderr
    assert "set StepGuardHook(vote=True)" in done.stderr


def test_with_a_vote_training_goes_on(digits, tmp_path):
    hooks = [inject(what="raise", at=[2, 5]), guard(vote=True), *helpers.MONITORS]
    a, b = train_on_two_ranks(
        digits, tmp_path / "w", iters=9, hooks=hooks, accumulate=2
    )
    assert unequal_parameters(a, b) == []
    raised = [(i, ranks) for i, v, ranks in a["records"] if v == "RAISED"]
    assert raised == [(2, [1]), (5, [1])]
    assert a["records"] == b["records"]
    assert a["collectives"] == b["collectives"] == [1] * 9


@helpers.NEEDS_FP16
def test_a_vote_that_cannot_reach_the_others_times_out(digits, tmp_path):
    """The loss has a collective of its own after the point that raised."""
    done, _ = run_on_two_ranks(
        digits,
        tmp_path / "w",
        iters=4,
        hooks=[
            inject(what="raise", where="bbox_head", at=2),
            guard(vote=True, vote_timeout=5),
        ],
        options={"model.type": "ReducingRetinaNet"},
    )
    assert done.returncode != 0
    assert "the other ranks did not come to the vote within 5 s" in done.stderr
