"""``amp-hooks replay``, called as a user calls it."""

import json
from pathlib import Path

import pytest

from amp_hooks.forensics import cli
from tests import helpers, processes

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


@pytest.fixture
def call(capsys):
    """The command's main, and what it has printed and returned."""

    def run(*args, status=0):
        capsys.readouterr()
        try:
            ended = cli.main([str(a) for a in args])
        except SystemExit as e:
            ended = e.code
        assert ended == status
        return capsys.readouterr()

    return run


def cells(output):
    """The verdict by precision and remedy."""
    lines = output.splitlines()[1:]
    return {line[:30].strip(): line[30:].strip() for line in lines}


def test_every_precision_and_remedy(overflown):
    done = processes.fork("-m", "amp_hooks", "replay", *overflown)
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


def test_one_remedy(overflown, call):
    done = call(*overflown, "--fp32")
    assert cells(done.out) == {"float32": "finite"}
    done = call(*overflown, "--clamp")
    assert cells(done.out) == {"float16 with the head clamp": "finite"}
    done = call(*overflown, "--fp32", "--clamp")
    assert cells(done.out) == {"float32 with the head clamp": "finite"}


def test_what_no_precision_cures(build, tmp_path, call):
    fault = helpers.fault("boxes", 2, value="zero")
    # The gradient of an L1 loss would be finite all the same, and the step be taken.
    options = {"model.bbox_head.loss_bbox": dict(type="MSELoss")}
    runner = build("retinanet", iters=3, hooks=[fault, *HOOKS], options=options)
    runner.train()
    config = tmp_path / "config.py"
    runner.cfg.dump(config)
    done = call(Path(runner.log_dir) / "faults" / "iter_2", config, status=1)
    told = set(cells(done.out).values())
    assert told == {"code in bbox_head, before bbox_head.loss_bbox"}


def test_what_is_missing_is_said(overflown, tmp_path, call):
    folder, config = overflown
    assert "faults/iter_N" in call(folder.parent, config, status=66).err
    assert "none.py" in call(folder, tmp_path / "none.py", status=66).err
    other = helpers.ROOT / "configs/digits/faster-rcnn_r18_fpn_fp16.py"
    assert "not the config of that run" in call(folder, other, status=66).err
    (folder / "weights.pth").unlink()
    assert "--weights" in call(folder, config, status=66).err
    report = (folder / "report.json").read_text()
    (folder / "report.json").write_text("{")
    assert "report.json is damaged" in call(folder, config, status=66).err
    (folder / "report.json").unlink()
    assert "holds no report.json" in call(folder, config, status=66).err
    (folder / "report.json").write_text(report)
    broken = tmp_path / "broken.py"
    broken.write_text("model = ")
    assert "cannot be read" in call(folder, broken, status=66).err
