"""scripts/replay_fault.py, called as a user calls it."""

import json
from pathlib import Path

import pytest

from tests import helpers
from tests.test_scripts import call

HOOKS = [
    *helpers.MONITORS,
    dict(type="amp_hooks.StepGuardHook"),
    dict(type="amp_hooks.ForensicsHook"),
]


@pytest.fixture
def overflown(build, tmp_path):
    """A run in FP16 whose classifier's weights make its logits overflow, in FP16 only.

    Its folder, and its config.
    """
    fault = helpers.fault(
        "parameter", 2, where="bbox_head.retina_cls.weight", value=3e4, count="all"
    )
    runner = build("retinanet", iters=3, hooks=[fault, *HOOKS])
    runner.train()
    (folder,) = Path(runner.log_dir).glob("faults/iter_2")
    config = tmp_path / "config.py"
    runner.cfg.dump(config)
    return folder, config


def cells(output):
    """The verdict by precision and remedy."""
    lines = output.splitlines()[1:]
    return {line[:30].strip(): line[30:].strip() for line in lines}


def test_every_precision_and_remedy(overflown):
    done = call("replay_fault.py", *overflown)
    assert "iteration 2, FORWARD_NONFINITE" in done.stdout
    report = json.loads((overflown[0] / "report.json").read_text())
    assert (report["kind"], report["module"]) == ("overflow", "bbox_head.retina_cls")
    assert cells(done.stdout) == {
        "float16": "overflow in bbox_head.retina_cls",
        "float16 with the head clamp": "finite",
        "float32": "finite",
        "float32 with the head clamp": "finite",
        "bfloat16": "finite",
        "bfloat16 with the head clamp": "finite",
    }


def test_one_remedy(overflown):
    done = call("replay_fault.py", *overflown, "--fp32")
    assert cells(done.stdout) == {"float32": "finite"}
    done = call("replay_fault.py", *overflown, "--clamp")
    assert cells(done.stdout) == {"float16 with the head clamp": "finite"}
    done = call("replay_fault.py", *overflown, "--fp32", "--clamp")
    assert cells(done.stdout) == {"float32 with the head clamp": "finite"}


def test_what_no_precision_cures(build, tmp_path):
    fault = helpers.fault("boxes", 2, value="zero")
    runner = build("retinanet", iters=3, hooks=[fault, *HOOKS])
    runner.train()
    config = tmp_path / "config.py"
    runner.cfg.dump(config)
    folder = Path(runner.log_dir) / "faults" / "iter_2"
    done = call("replay_fault.py", folder, config, check=False)
    assert done.returncode == 1
    told = set(cells(done.stdout).values())
    assert told == {"code in bbox_head, before bbox_head.loss_bbox"}


def test_what_is_missing_is_said(overflown, tmp_path):
    folder, config = overflown
    done = call("replay_fault.py", folder.parent, config, check=False)
    assert done.returncode == 2
    assert "faults/iter_N" in done.stderr
    done = call("replay_fault.py", folder, tmp_path / "none.py", check=False)
    assert done.returncode == 2
    assert "none.py" in done.stderr
    other = helpers.ROOT / "configs/digits/faster-rcnn_r18_fpn_fp16.py"
    done = call("replay_fault.py", folder, other, check=False)
    assert done.returncode == 2
    assert "not the config of that run" in done.stderr
    (folder / "weights.pth").unlink()
    done = call("replay_fault.py", folder, config, check=False)
    assert done.returncode == 2
    assert "--weights" in done.stderr
