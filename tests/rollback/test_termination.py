"""A fault that never ends: the run does, after the attempts configured."""

import os
import time

from tests import helpers, processes

CLS = "bbox_head.retina_cls.weight"
ROLLBACKS = 4


def events_of(work_dir):
    """Of all processes, in their order; the last line may be being written."""
    lines = []
    for path in sorted(work_dir.glob("*/stability.jsonl")):
        if path.read_text().endswith("\n"):
            lines += helpers.read_ledger(path)
    return lines


def rollbacks(work_dir):
    return [e for e in events_of(work_dir) if e["event"] == "rollback"]


@helpers.NEEDS_FP16
def test_killed_and_resumed_between_the_attempts(digits, tmp_path):
    """Every other iteration breaks the weights. Killed after the second rollback."""
    work_dir = tmp_path / "work"
    hooks = [
        helpers.fault("parameter", list(range(3, 60, 4)), where=CLS),
        dict(
            type="amp_hooks.RollbackHook",
            interval=2,
            probation=0,
            max_rollbacks=ROLLBACKS,
            max_recent=99,
        ),
    ]
    cfg = helpers.make_config("retinanet", digits, work_dir, hooks=hooks, epochs=10**6)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.dump(tmp_path / "config.py")
    command = processes.train(tmp_path / "config.py", "--resume")
    killed = processes.start(*command)
    end = time.monotonic() + 200
    try:
        while len(rollbacks(work_dir)) < 2:
            assert killed.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        killed.kill()
        killed.wait()
    before = len(rollbacks(work_dir))

    done = processes.fork(*command[1:], status=1, timeout=300)
    last, checkpoint = done.stderr.strip().splitlines()[-2:]
    assert last.startswith("amp_hooks.errors.TrainingDivergedError: training diverged")
    assert f"Tried: {ROLLBACKS} rollbacks, at 3 to 2 (STATE_NONFINITE); at 7 to" in last
    assert f"max_rollbacks={ROLLBACKS} allows no more" in last
    after = rollbacks(work_dir)
    assert [e["rollbacks"] for e in after[before:]] == list(
        range(after[before]["rollbacks"], ROLLBACKS + 1)
    )
    # A rollback is counted before its line is written, so the kill may cost the line.
    assert ROLLBACKS - 1 <= len(after) <= ROLLBACKS
    (abort,) = [e for e in events_of(work_dir) if e["event"] == "abort"]
    assert abort["rollbacks"] == ROLLBACKS
    assert abort["checkpoint"] == checkpoint  # alone on its line, to be copied
    assert os.path.exists(checkpoint)
