"""Two agents of torchrun with two ranks each, as on two machines, over gloo."""

import socket
import subprocess
import sys

import pytest
import torch

from tests import helpers, processes, small
from tests.integration.two_machines import AT, CULPRIT, INTERVAL

pytestmark = [pytest.mark.slow, pytest.mark.long]
PROGRAM = helpers.ROOT / "tests/integration/two_machines.py"


def alone(folder):
    """A command in front of another, which then sees an empty folder in its place."""
    inside = 'mount -t tmpfs none "$1" && shift && exec "$@"'
    return "unshare", "-rm", "sh", "-c", inside, "sh", str(folder)


def can_hide():
    command = [*alone("/mnt"), "true"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def train(out, folders, iters, *more, ranks=2, status=0, hides=False):
    """On one machine for each work_dir; what all ranks had in the end."""
    out.mkdir(exist_ok=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    agents = []
    for node, folder in enumerate(folders):
        command = list(alone(folder)) if node and hides else []
        command += [sys.executable, "-m", "torch.distributed.run"]
        command += [f"--nnodes={len(folders)}", f"--nproc_per_node={ranks}"]
        command += [f"--node_rank={node}", "--master_addr=127.0.0.1"]
        command += [f"--master_port={port}", PROGRAM, out, folder, iters, *more]
        agents.append(
            subprocess.Popen(
                list(map(str, command)),
                env=processes.environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    printed = [agent.communicate(timeout=300)[0] for agent in agents]
    for agent, text in zip(agents, printed):
        assert (agent.returncode == 0) == (status == 0), text[-3000:]
    if status:
        return printed
    number = len(folders) * ranks
    return [torch.load(out / f"rank{rank}.pth") for rank in range(number)]


@pytest.mark.parametrize("disk", ["shared", "of its own"])
def test_a_fault_on_the_second_machine(tmp_path, disk):
    first, second = tmp_path / "first", tmp_path / "second"
    folders = [first, first if disk == "shared" else second]
    ends = train(tmp_path / "out", folders, 20)
    assert {end["iter"] for end in ends} == {20}
    assert all(small.same(ends[0]["weights"], end["weights"]) for end in ends[1:])
    assert len(list(tmp_path.rglob("stability.jsonl"))) == 1
    ledger = ends[0]["ledger"]
    (overflow,) = [line for line in ledger if line["event"] == "overflow"]
    assert (overflow["iter"], overflow["ranks"]) == (AT, [CULPRIT])
    (back,) = [line for line in ledger if line["event"] == "rollback"]
    assert (back["iter"], back["target_iter"]) == (AT, AT // INTERVAL * INTERVAL)
    assert list(first.rglob("iter_*.pth"))
    # Beside the dump of its own rank.
    assert not list(second.rglob("iter_*.pth"))


def test_resumed_with_fewer_ranks(tmp_path):
    """One machine is gone: the other goes on from the last checkpoint alone."""
    folder = tmp_path / "work"
    train(tmp_path / "four", [folder, folder], 20)
    ends = train(tmp_path / "two", [folder], 26, "resume")
    assert {end["iter"] for end in ends} == {26}
    begins = {26 - len(end["losses"]) for end in ends}
    assert len(begins) == 1
    assert AT < begins.pop() <= 20
    assert small.same(ends[0]["weights"], ends[1]["weights"])


@pytest.mark.skipif(not can_hide(), reason="mounts are not allowed here")
def test_a_machine_without_the_checkpoint_is_named(tmp_path):
    """By stock its ranks begin anew, with other weights than the first machine's."""
    folder = tmp_path / "work"
    train(tmp_path / "out", [folder, folder], 20)
    folders, again = [folder, folder], tmp_path / "again"
    printed = train(again, folders, 26, "resume", status=1, hides=True)
    for text in printed:
        assert "which ranks 2, 3 (on" in " ".join(text.split())
    assert not list(again.glob("*.pth"))
