"""A model of which every rank has a part: FSDPStrategy, two ranks, real shards."""

import pytest
import torch

from amp_hooks.engine.safe_load import allow_mmengine_checkpoints
from amp_hooks.engine.torch_api import TORCH
from amp_hooks.engine.torch_fsdp import own_name
from amp_hooks.rollback.checkpoint_file import damage, parts_of, read_header
from tests import helpers, processes

PROGRAM = ["-m", "tests.rollback.sharded"]
# Known of 2.3, which fails, and 2.8.
saved_by_mmengine = pytest.mark.skipif(
    TORCH < (2, 8), reason="torch gathers a sharded optimizer's state on a GPU only"
)


def launch(mode, work_dir, *digits):
    """What each rank has kept of a run."""
    program = [*PROGRAM, mode, work_dir, *digits]
    processes.two_ranks(*program, cwd=helpers.ROOT, timeout=300)
    paths = [work_dir / f"{mode}.{rank}.pth" for rank in (0, 1)]
    return [torch.load(path) for path in paths]


def to_the_end(mode, work_dir):
    """The same, of a run that nothing has ended."""
    ranks = launch(mode, work_dir)
    assert [rank["iter"] for rank in ranks] == [40, 40]
    return ranks


def ledger(work_dir, *events):
    lines = [
        line
        for path in sorted(work_dir.glob("*/stability.jsonl"))
        for line in helpers.read_ledger(path)
    ]
    return [line for line in lines if line["event"] in events]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    return launch("stock", tmp_path_factory.mktemp("stock"))


@pytest.mark.slow
def test_watching_changes_nothing(tmp_path, stock):
    ours = launch("suite", tmp_path)
    for a, b in zip(stock, ours):
        assert (a["iter"], a["lr"]) == (b["iter"], b["lr"]) == (40, b["lr"])
        assert a["states"].keys() == b["states"].keys()
        assert all(same(a["states"][i], b["states"][i]) for i in a["states"])
        # FSDP's own are the same; ours is one a step, where none is otherwise.
        more = [y - x for x, y in zip(steps(a), steps(b))]
        assert more[21:29] == [1] * 8  # between two snapshots
    # Each rank has a part of its own.
    assert not same(ours[0]["states"][40], ours[1]["states"][40])
    (last,) = tmp_path.glob("rollback/iter_*.pth")
    assert [p.rpartition("/")[2] for p in parts_of(str(last))] == [
        "rank0.pth",
        "rank1.pth",
    ]
    allow_mmengine_checkpoints()
    assert damage(str(last)) is None
    assert read_header(str(last)).iter == 30
    assert (tmp_path / "last_checkpoint").read_text() == str(last)


def steps(end):
    return [b - a for a, b in zip(end["counts"], end["counts"][1:])]


@saved_by_mmengine
@pytest.mark.slow
@pytest.mark.long
def test_watching_a_detector_changes_nothing(tmp_path, digits):
    ends = []
    for mode in ("stock", "suite"):
        (folder := tmp_path / mode).mkdir()
        ends.append(launch(mode, folder, digits))
    for a, b in zip(*ends):
        assert (a["iter"], b["iter"]) == (12, 12)
        assert same(a["states"][12], b["states"][12])
    assert ledger(folder, "overflow", "rollback", "failure") == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["shard", "fp16"])
def test_a_bad_gradient_on_one_shard_is_refused_on_all(tmp_path, mode):
    ranks = launch(mode, tmp_path)
    bad = [line["iter"] for line in ledger(tmp_path, "veto")]
    assert bad == [24, 25, 26]
    for line in ledger(tmp_path, "overflow"):
        assert line["nonfinite_grads"] == ["bbox_head.fc_cls.weight"]
    rolled_back = {e["iter"]: e["target_iter"] for e in ledger(tmp_path, "rollback")}
    assert rolled_back == ({26: 20} if mode == "shard" else {})
    for rank in ranks:
        states = rank["states"]
        assert same(states[24], states[25])
        assert same(states[25], states[26])
        for iteration, target in rolled_back.items():
            assert same(states[iteration + 1], states[target])
        assert not same(states[28], states[29])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["looks", "vote"])
def test_parameters_that_are_whole_are_restored_as_well(tmp_path, mode):
    """No backward pass has followed the last forward one, of a hook or that raised."""
    ranks = launch(mode, tmp_path)
    (line,) = ledger(tmp_path, "rollback")
    assert (line["iter"], line["target_iter"]) == (17, 10)
    (last,) = tmp_path.glob("rollback/iter_*.pth")
    allow_mmengine_checkpoints()
    assert damage(str(last)) is None
    for rank, part in zip(ranks, parts_of(str(last))):
        states = rank["states"]
        assert same(states[18], states[10])
        # The first step goes out from there: Adam's is a tenth of 0.01 now.
        for name, before in states[11].items():
            if name.endswith(("weight", "bias")) and before.numel():
                assert (states[19][name] - before).abs().max() < 0.0125
        saved = torch.load(part)["state_dict"]
        own = {own_name(name): tensor for name, tensor in states[10].items()}
        assert all(tensor.shape == own[name].shape for name, tensor in saved.items())


@saved_by_mmengine
@pytest.mark.slow
def test_a_killed_run_goes_on_as_the_one_that_was_not(tmp_path, stock):
    launch("killed", tmp_path)
    # CheckpointHook's are as without us; torch does not let them be read again.
    theirs = str(tmp_path / "iter_24.pth")
    assert len(parts_of(theirs)) == 2
    assert "FSDP's own ShardedTensors" in damage(theirs)
    ours = tmp_path / "rollback" / "iter_20.pth"
    assert (tmp_path / "last_checkpoint").read_text() == str(ours)
    again = launch("resumed", tmp_path)
    (line,) = ledger(tmp_path, "resume")
    assert (line["iter"], line["checkpoint"]) == (20, str(ours))
    for a, b in zip(stock, again):
        assert same(a["states"][40], b["states"][40])
        assert a["lr"] == b["lr"]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("mode", ["monitor", "rollback"])
def test_without_the_guard_each_scaler_decides_and_no_rank_waits(tmp_path, mode):
    """As in stock, where the ranks part; a collective of one of them would hang."""
    to_the_end(mode, tmp_path)
    bad = {line["iter"] for line in ledger(tmp_path, "overflow")}
    assert bad >= {24, 25, 26}


@saved_by_mmengine
@pytest.mark.slow
def test_other_units_are_refused_by_name(tmp_path):
    launch("killed", tmp_path)
    for rank in launch("whole", tmp_path):
        assert "sharded in other units: auto_wrap_policy has changed" in rank["error"]


@saved_by_mmengine
@pytest.mark.slow
@pytest.mark.long
def test_parts_of_an_older_run_are_no_parts(tmp_path):
    folder = tmp_path / "rollback" / "iter_20.pth"
    folder.mkdir(parents=True)
    (folder / "rank2.pth").write_bytes(b"of a run with more ranks")
    launch("killed", tmp_path)
    assert len(parts_of(str(folder))) == 2
    assert (tmp_path / "last_checkpoint").read_text() == str(folder)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("mode", ["disk", "disk_of_rank_0"])
def test_a_full_disk_on_one_rank(tmp_path, mode):
    """Its part is missing: the others' do not stay, and it says so."""
    to_the_end(mode, tmp_path)
    written = [line["iter"] for line in ledger(tmp_path, "snapshot")]
    assert 20 not in written
    assert 10 in written
    assert max(written) == 30
    (last,) = tmp_path.glob("rollback/iter_*.pth")
    assert len(parts_of(str(last))) == 2


@saved_by_mmengine
@pytest.mark.slow
@pytest.mark.long
def test_a_disk_that_is_full_for_a_checkpoint_of_others(tmp_path):
    """Stock ends. The other rank's part is of no use, and is removed."""
    to_the_end("small_files", tmp_path)
    saved = sorted(path.name for path in tmp_path.glob("iter_*.pth"))
    assert saved == ["iter_24.pth", "iter_36.pth"]
    assert len(parts_of(str(tmp_path / "iter_24.pth"))) == 2
    assert ledger(tmp_path, "failure") == []


@saved_by_mmengine
@pytest.mark.slow
@pytest.mark.long
def test_a_part_that_is_missing_is_told(tmp_path):
    """It is passed over; here nothing else is left."""
    launch("killed", tmp_path)
    (tmp_path / "rollback" / "iter_20.pth" / "rank1.pth").unlink()
    for end in launch("resumed", tmp_path):
        assert "but no checkpoint of" in end["error"]
    log = "".join(path.read_text() for path in tmp_path.glob("*/*.log"))
    assert "of its parts, 2 of them, 1 are not there" in log


@pytest.mark.slow
@pytest.mark.long
def test_a_work_dir_of_each_machine_s_own(tmp_path):
    """Parts that are never going to be together are not written."""
    for rank in to_the_end("apart", tmp_path):
        assert same(rank["states"][18], rank["states"][10])
    assert [p.name for p in tmp_path.rglob("rank*.pth")] == []


@pytest.mark.slow
@pytest.mark.long
def test_a_clamp_over_weights_in_half_precision(tmp_path):
    """It is on after iteration 15, and its layer computes in BF16."""
    ranks = to_the_end("half", tmp_path)
    assert [e["iter"] for e in ledger(tmp_path, "clamp_on")] == [15]
    (line,) = ledger(tmp_path, "rollback")
    for rank in ranks:
        assert same(rank["states"][line["iter"] + 1], rank["states"][10])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("replicas", "sharding_strategy 'NO_SHARD' has whole copies"),
        ("flat", "without use_orig_params=True its parameters have no names"),
    ],
)
def test_what_is_sharded_otherwise_is_refused_on_all(tmp_path, mode, why):
    who = "StepGuardHook cannot work with model wrapper ShardedOnACpu as it is"
    for rank in launch(mode, tmp_path):
        assert f"{who}: {why}" in rank["error"]


@saved_by_mmengine
@pytest.mark.slow
@pytest.mark.long
def test_another_number_of_ranks_is_told(tmp_path):
    launch("killed", tmp_path)
    processes.python(
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=1",
        *PROGRAM,
        "resumed",
        tmp_path,
        cwd=helpers.ROOT,
        timeout=300,
    )
    end = torch.load(tmp_path / "resumed.0.pth")
    assert "it is of a model sharded over 2 ranks, and there are 1" in end["error"]
