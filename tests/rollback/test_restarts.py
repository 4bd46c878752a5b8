"""A rank dies, torchrun starts all of them again, and the run ends as if it had not."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from tests import helpers, processes, small
from tests.rollback.preempted import EPOCHS, LENGTH, Kill, go

RESTARTS = 5


class KillProcess(Kill):
    """One rank, as the OOM killer does it: nothing is told, nothing is closed."""

    def __init__(self, at, rank):
        super().__init__(at)
        self.rank = rank

    def _kill(self, runner):
        if os.environ["RANK"] == str(self.rank):
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.long
@pytest.mark.slow
def test_a_rank_that_is_killed_five_times(tmp_path):
    """By torchrun --max-restarts, with resume=True in the config and nothing else."""
    one, *two = processes.TWO_RANKS[:3], *processes.TWO_RANKS[3:]
    program = ["-m", "tests.rollback.test_restarts"]
    for name, restarts in (("whole", 0), ("killed", RESTARTS)):
        (tmp_path / name).mkdir()
        command = [*one, f"--max-restarts={restarts}", *two, *program]
        # Else torch's agent keeps the addresses of the dead in its store, and those
        # that it starts anew look for them there.
        apart = dict(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
        processes.run(*command, tmp_path / name, name, cwd=helpers.ROOT, **apart)
    whole, killed = (torch.load(tmp_path / d / "end.pth") for d in ("whole", "killed"))
    assert (whole["restarts"], killed["restarts"]) == (0, RESTARTS)
    assert killed["begins"] > 3 * LENGTH // 2
    assert whole["iter"] == killed["iter"] == EPOCHS * LENGTH // 2
    assert small.same(whole["state"], killed["state"])
    resumes = (tmp_path / "killed").rglob("stability.jsonl")
    assert sum('"resume"' in path.read_text() for path in resumes) >= RESTARTS - 1


def main(work_dir, name):
    """On one of two ranks: this start of it dies, or goes on to the end."""
    torch.set_num_threads(1)
    torch.cuda.set_device = lambda device: None
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    dies = name == "killed" and restarts < RESTARTS
    # Later in each start, by one rank and the other.
    kill = KillProcess((restarts + 1, 3) if dies else None, restarts % 2)
    seen = go(work_dir, True, kill, launcher="pytorch")
    if os.environ["RANK"] == "0":
        end = dict(iter=seen.runner.iter, begins=seen.begins, restarts=restarts)
        torch.save(dict(end, state=small.state(seen.runner)), Path(work_dir, "end.pth"))


if __name__ == "__main__":
    main(*sys.argv[1:])
