"""scripts/gpu_check.sh: rehearsed on a CPU, and with checks that go wrong."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import focal_loss
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

from tests import helpers, processes

SCRIPTS = str(helpers.ROOT / "scripts")
sys.path.insert(0, SCRIPTS)

from bench_counts import KEYS  # noqa: E402
from gpu_check import (  # noqa: E402
    check_bits,
    check_launches,
    check_overflow,
    check_rollback,
    check_time,
    check_waits,
    one_by_one,
    operators,
    standin_ext,
)
from gpu_check.__main__ import CHECKS, NAMES, REHEARSED  # noqa: E402
from gpu_check.machine import Card, Rehearsal  # noqa: E402
from gpu_check.one_by_one import Check, end_group, run_all  # noqa: E402
from gpu_check.rows import FAILED, MEASURED, OK, UNKNOWN, Row, table  # noqa: E402

# The first says something, and fails; the second hangs, and so does what it started.
MODULES = dict(
    raises="""
        from gpu_check.rows import Row
        def check(machine, place):
            yield Row("first", "this | that")
            raise RuntimeError("the card is on fire")
        """,
    hangs="""
        import subprocess, time
        def check(machine, place):
            sleeper = subprocess.Popen(["sleep", "600"])
            (place / "pid").write_text(str(sleeper.pid))
            time.sleep(600)
            yield
        """,
    crashes="""
        import os
        def check(machine, place):
            os.abort()
            yield
        """,
    good="""
        from gpu_check.rows import judged
        def check(machine, place):
            yield judged("a tensor", "as it should be", machine.rehearsed, bits=0)
        """,
)


def refuse(name):
    raise ValueError(f"{name} is not JSON")


def call(*arguments, **options):
    """The script, as a user calls it."""
    command = ["bash", helpers.ROOT / "scripts/gpu_check.sh", "--rehearse", *arguments]
    return processes.run(*command, **options, PYTHON=sys.executable)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that is dead and not yet collected.
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


def gone(pid):
    end = time.monotonic() + 5
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_alive(pid)


@pytest.mark.slow
def test_rehearsal(tmp_path):
    """Every check from its beginning to its end."""
    done = call("--out", tmp_path, "--minutes", "30", timeout=1800)
    text = (tmp_path / "gpu_check.json").read_text()
    content = json.loads(text, parse_constant=refuse)
    assert content["failed"] == []
    assert content["about"]["rehearsed"]
    assert list(dict.fromkeys(row["check"] for row in content["rows"])) == NAMES
    assert {row["result"] for row in content["rows"]} == {OK, MEASURED}
    assert done.stdout.count(REHEARSED) == 3  # at the start, over the table, under it
    found = {(row["check"], row["what"]): row for row in content["rows"]}
    for row in content["rows"]:
        assert f"| {row['what']}" in done.stdout
    waits = found["waits", "waits of the host in an iteration, float16"]["numbers"]
    (line,) = waits["added"]
    assert line.startswith("amp_hooks/engine/recorder.py:")
    bits = found["bits", "weights and losses with and without the suite, float16"]
    assert bits["numbers"]["tensors"] > 100
    lost, saved = (
        found["overflow", what]["numbers"]
        for what in ("the same, watched only", "overflow, with the suite")
    )
    assert lost["bad"] > 0
    assert saved["acts"]["rollback"] > 0
    assert found["nccl", "one rank on gloo"]["numbers"]["rollbacks"] == 1
    left = found["fallback", "fallback of rtmdet to bfloat16"]["numbers"]["dtypes"]
    assert list(left.values())[-1] == "bfloat16"


@pytest.mark.long
def test_a_check_out_of_time_fails_and_so_does_the_script(tmp_path):
    """At 0.03 minutes nothing is done after two seconds."""
    done = call("--out", tmp_path, "--minutes", "0.03", "--only", "bits", status=1)
    content = json.loads((tmp_path / "gpu_check.json").read_text())
    assert content["failed"] == ["bits"]
    assert content["seconds"] < 20
    assert "| FAILED" in done.stdout
    assert "failed: bits;" in done.stdout
    assert REHEARSED in done.stdout


@pytest.mark.parametrize("argument", ["--wheels", "--wheels=x", "nonsense"])
def test_errors_of_use_are_told(argument, tmp_path):
    more = [tmp_path] if argument == "--wheels" else []
    done = call(argument, *more, status=2)
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def modules(tmp_path, monkeypatch):
    for name, text in MODULES.items():
        lines = [line[8:] for line in text.splitlines()]
        (tmp_path / f"{name}_check.py").write_text("\n".join(lines))
    path = os.pathsep.join([str(tmp_path), SCRIPTS, str(helpers.ROOT)])
    monkeypatch.setenv("PYTHONPATH", path)
    return tmp_path


@pytest.mark.long
@pytest.mark.slow
def test_a_check_that_fails_stops_no_other(modules, capfd):
    limits = dict(raises=60, hangs=12, crashes=60, good=60)
    checks = [Check(name, f"{name}_check", limit) for name, limit in limits.items()]
    rows = list(run_all(checks, modules / "out", 300, os.environ))
    assert [(row.check, row.what, row.result) for row in rows] == [
        ("raises", "first", MEASURED),  # found before it failed
        ("raises", "the check itself", FAILED),
        ("hangs", "the check itself", FAILED),
        ("crashes", "the check itself", FAILED),
        ("good", "a tensor", OK),
    ]
    why = [row.found for row in rows if row.result == FAILED]
    assert "RuntimeError: the card is on fire" in why[0]
    assert why[1].startswith("took more than 12 s and was ended")
    assert f"status -{signal.SIGABRT:d}" in why[2]
    assert all(f"{modules}/out/" in text for text in why)  # where its log is
    assert rows[-1].numbers == dict(bits=0)
    assert gone(int((modules / "out/hangs/pid").read_text()))
    assert "[gpu_check] good: done" in capfd.readouterr().out


def test_when_the_time_for_all_is_over_the_others_are_not_begun(modules):
    checks = [Check(name, f"{name}_check", 60) for name in ("hangs", "good")]
    began = time.monotonic()
    rows = list(run_all(checks, modules / "out", 1, os.environ))
    assert time.monotonic() - began < 10
    assert [(r.check, r.what, r.result) for r in rows] == [
        ("hangs", "the check itself", FAILED),
        ("good", "not begun", FAILED),
    ]


def test_a_process_that_does_not_listen_is_killed(monkeypatch):
    monkeypatch.setattr(one_by_one, "PATIENCE", 0.3)
    program = "trap '' TERM; sleep 600 & echo $!; wait"
    process = subprocess.Popen(
        ["bash", "-c", program], stdout=subprocess.PIPE, start_new_session=True
    )
    inner = int(process.stdout.readline())
    assert is_alive(inner)
    end_group(process)
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    assert gone(inner)


def test_limits_leave_time_for_what_comes_first():
    """Each by itself fits into the eight minutes; the first ones always do."""
    assert all(check.limit <= 120 for check in CHECKS)
    assert sum(check.limit for check in CHECKS[:5]) <= 8 * 60


def test_table_is_markdown():
    rows = [
        Row("a", "x | y\nz", check="one"),
        Row("b", "1", OK, check="one"),
        Row("c", "2", FAILED, check="two"),
    ]
    lines = [
        [c.strip() for c in line.strip("|").split("|")]
        for line in table(rows).split("\n")
    ]
    assert lines[2:] == [
        ["one", "a", "x / y z", MEASURED],
        ["", "b", "1", OK],
        ["two", "c", "2", FAILED],
    ]


def test_numbers_that_are_none_are_json():
    numbers = dict(a=[1.5, math.nan, (math.inf,)], b=dict(c=-math.inf), d=2, e=None)
    text = json.dumps(Row("a", "b", numbers=numbers).to_dict())
    wanted = dict(a=[1.5, "nan", ["inf"]], b=dict(c="-inf"), d=2, e=None)
    assert json.loads(text, parse_constant=refuse)["numbers"] == wanted


def run_of(value):
    return [value, 1.0], dict(weight=torch.tensor([value]), bias=torch.zeros(1))


@pytest.mark.parametrize(
    ("values", "result", "words"),
    [
        ((1.0, 1.0, 1.0), OK, "2 tensors after 2 iterations: every bit the same"),
        ((1.0, 1.0, 2.0), FAILED, "1 differ, from iteration 0 on (['weight'])"),
        # Then the suite is not to blame, whether or not it differs too.
        ((1.0, 2.0, 3.0), UNKNOWN, "kernels are not repeatable (some_kernel_cuda)"),
        ((1.0, 2.0, 1.0), UNKNOWN, "differ in 1 of 2 tensors"),
    ],
)
def test_bits_are_judged_beside_a_control(values, result, words):
    row = check_bits.verdict(
        "float16", [run_of(v) for v in values], ["some_kernel_cuda"]
    )
    assert row.result == result
    assert words in row.found


@pytest.mark.parametrize(
    ("back", "control", "result"),
    [([1.0], [1.0], OK), ([2.0], [1.0], FAILED), ([1.0], [2.0], UNKNOWN)],
)
def test_what_follows_a_rollback_is_judged_beside_a_control(back, control, result):
    row = check_rollback.goes_on("float16", back, [1.0], control)
    assert row.result == result


def test_waits_of_ours_are_named_and_limited():
    stock, ours = "mmengine/optim/x.py:7", "amp_hooks/engine/recorder.py:9"
    row = check_waits.added("float16", {stock: 5}, {stock: 5, ours: 1}, 1)
    assert row.result == OK
    assert row.numbers["added"] == {ours: 1}
    assert f"5 without, 6 with the suite: 1 at {ours} (" in row.found
    row = check_waits.added("float16", {stock: 5}, {stock: 6, ours: 1}, 1)
    assert row.result == FAILED
    assert f"1 at {stock} (not ours)" in row.found


@pytest.mark.parametrize(
    ("kernels", "syncs", "result"), [(50, 1, OK), (50, 2, FAILED), (0, 0, UNKNOWN)]
)
def test_what_torch_does_not_warn_of_is_found_by_the_profiler(kernels, syncs, result):
    without = {"host syncs": 7, "copies": 3, "launches": kernels}
    with_ = {"host syncs": 7 + syncs, "copies": 4, "launches": kernels}
    row = check_waits.cross_check("float16", {"a": 7}, {"a": 8}, [without, with_])
    assert row.result == result


@pytest.mark.parametrize(
    ("more", "result"),
    [
        (dict(copies=1, launches=90), OK),
        (dict(copies=2), FAILED),
        (dict(collectives=1), FAILED),
    ],
)
def test_a_clean_iteration_has_one_copy_and_no_collective(more, result):
    without = dict.fromkeys(KEYS, 0) | dict(copies=3, launches=700)
    with_ = without | {key: without[key] + number for key, number in more.items()}
    row = check_launches.verdict("retinanet", "kernels", without, with_)
    assert row.result == result


def line_of_this_file(word):
    lines = Path(__file__).read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if line.endswith(word)]
    return f"{Path(__file__).name}:{number}"


def test_a_rehearsal_finds_the_lines_that_would_wait():
    x = torch.arange(4.0)

    def waits():
        x.sum().item()  # one
        for _ in range(2):
            x.tolist()  # two
        x.nonzero()  # three

    found = Rehearsal().waits(waits)
    wanted = {"# one": 1, "# two": 2, "# three": 1}
    assert found == Counter({line_of_this_file(w): n for w, n in wanted.items()})


def test_torchs_warnings_become_lines(monkeypatch):
    """Without a card there are none, so they are made here; their words are torch's."""

    def switch(mode):
        if mode == "warn":
            warnings.warn(
                "Synchronization debug mode is a prototype feature and does not yet "
                "detect all synchronizing operations",
                stacklevel=1,
            )

    def waits():
        for _ in range(2):
            warnings.warn(text, UserWarning, 2)  # card
        warnings.warn("something else", UserWarning, 2)

    text = "called a synchronizing CUDA operation (Triggered internally at c10)"
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", switch)
    before = warnings.showwarning
    assert Card().waits(waits) == Counter({line_of_this_file("# card"): 2})
    assert warnings.showwarning is before


def test_time_is_told_with_its_spread():
    times = [(0.010, 0.011), (0.010, 0.012), (0.010, 0.013), (0.010, 0.014)]
    row = check_time.row("x", 320, 2, 10, times)
    assert "10.00 ms without, 12.50 ms with; ratio 1.250 (1.175 to 1.325)" in row.found
    assert "4 pairs of blocks of 10" in row.found
    assert row.result == MEASURED


def ended(bad, last_loss, nonfinite=0, **acts):
    numbers = dict(iterations=9, scale=1.0, nonfinite=nonfinite, acts=acts)
    return dict(numbers, bad=bad, last_loss=last_loss)


@pytest.mark.parametrize(
    ("run", "result"),
    [
        (ended(2, 0.5, rollback=1), OK),
        (ended(2, float("nan"), rollback=1), FAILED),
        (ended(2, 0.5, nonfinite=1, rollback=1), FAILED),
        (ended(0, 0.5), UNKNOWN),
    ],
)
def test_saved_is_finite_after_something_was_done(run, result):
    assert check_overflow.saved(run).result == result


def test_lost_is_no_fault_of_ours():
    assert check_overflow.lost(ended(3, float("nan"))).result == MEASURED
    assert check_overflow.lost(ended(3, 0.5)).result == UNKNOWN


def test_without_operators_for_the_card_nor_torchvision_it_is_told(monkeypatch):
    monkeypatch.setattr(operators, "find_spec", lambda name: None)
    whose = operators.prepare.__wrapped__
    assert whose("cpu").startswith("mmcv ")
    assert "mmcv._ext" in sys.modules  # mmcv's own, built without CUDA
    extension = sys.modules["mmcv._ext"]
    monkeypatch.setattr(
        extension, "get_compiling_cuda_version", lambda: "not available"
    )
    with pytest.raises(RuntimeError, match="was built without CUDA, and there is no"):
        whose("cuda")
    assert sys.modules["mmcv._ext"] is extension


@pytest.mark.parametrize("weight", [None, torch.rand(80)])
def test_stand_in_focal_loss_is_mmdets(weight, monkeypatch):
    """Through mmcv's own function, as on a card."""
    monkeypatch.setattr(focal_loss, "ext_module", standin_ext)
    logits, labels = torch.randn(50, 80), torch.randint(0, 81, (50,))
    one_hot = F.one_hot(labels, 81)[:, :80]
    got, wanted = (logits.clone().requires_grad_() for _ in range(2))
    loss = focal_loss.sigmoid_focal_loss(got, labels, 2.0, 0.25, weight, "none")
    reference = py_sigmoid_focal_loss(wanted, one_hot, reduction="none")
    if weight is not None:
        reference = reference * weight[labels.clamp(max=79)][:, None]
    loss.sum().backward()
    reference.sum().backward()
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(got.grad, wanted.grad)


def test_what_the_stand_in_lacks_says_so():
    assert standin_ext.deform_conv_forward is not None
    with pytest.raises(NotImplementedError, match="deform_conv_forward is not in the"):
        standin_ext.deform_conv_forward(torch.zeros(1))
    with pytest.raises(AttributeError):
        standin_ext.__file_that_is_not_there__  # noqa: B018
