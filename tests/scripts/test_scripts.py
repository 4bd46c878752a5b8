"""The scripts, called as a user calls them."""

import json
from pathlib import Path

import cv2
import pytest

from tests import helpers, processes


def small_set(out, seed=0):
    processes.script(
        "make_digits.py",
        "--out",
        out,
        "--size",
        96,
        "--train",
        20,
        "--val",
        6,
        "--seed",
        seed,
    )
    return {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in out.rglob("*")
        if p.is_file()
    }


@pytest.mark.slow
def test_digits_are_deterministic_per_seed(tmp_path):
    first = small_set(tmp_path / "a")
    assert first == small_set(tmp_path / "b")
    assert first["train.json"] != small_set(tmp_path / "c", seed=1)["train.json"]


def test_digits_are_a_coco_set_of_small_large_and_overlapping_ones(tmp_path):
    processes.script("make_digits.py", "--out", tmp_path, "--train", 150, "--val", 5)
    from pycocotools.coco import COCO

    coco = COCO(str(tmp_path / "train.json"))
    assert len(coco.imgs) == 150
    assert sorted(coco.cats) == list(range(10))
    sides, touching = [], 0
    for image in coco.imgs.values():
        picture = cv2.imread(str(tmp_path / "train" / image["file_name"]))
        assert picture.shape == (128, 128, 3)
        boxes = [a["bbox"] for a in coco.imgToAnns[image["id"]]]
        assert 1 <= len(boxes) <= 3
        for x, y, w, h in boxes:
            assert x >= 0
            assert y >= 0
            assert w > 0
            assert h > 0
            assert x + w <= 128
            assert y + h <= 128
            sides.append(max(w, h))
        for a in coco.imgToAnns[image["id"]]:
            assert cv2.boundingRect(coco.annToMask(a)) == tuple(a["bbox"])
            ink = coco.annToMask(a).sum() / (a["bbox"][2] * a["bbox"][3])
            assert 0.1 < ink < 1  # a digit, not its box
        touching += any(
            a[0] < b[0] + b[2]
            and b[0] < a[0] + a[2]
            and a[1] < b[1] + b[3]
            and b[1] < a[1] + a[3]
            for i, a in enumerate(boxes)
            for b in boxes[:i]
        )
    assert min(sides) < 24
    assert max(sides) > 56
    assert touching >= 5


def test_digits_refuse_nonsense(tmp_path):
    done = processes.script("make_digits.py", "--out", tmp_path, "--train", 0, status=2)
    assert "--train must be at least 1" in done.stderr


def test_a_tool_of_mmdetection_is_found_wherever_it_lies(tmp_path):
    """A wheel's, a checkout's, and a name that is none."""
    done = processes.script("mmdet_tool.py", "train.py")
    assert "Train a detector" in Path(done.stdout.strip()).read_text()
    none = processes.script("mmdet_tool.py", "tain.py", status=1)
    assert none.stderr.startswith("error: MMDetection's tools/tain.py is not in /")
    (tmp_path / "mmdet").mkdir()
    (tmp_path / "mmdet/__init__.py").touch()
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/train.py").touch()
    code = f"import sys; sys.path.insert(0, {str(helpers.ROOT / 'scripts')!r}); "
    code += "import mmdet_tool; print(mmdet_tool.find('train.py'))"
    found = processes.code(code, cwd=tmp_path).stdout.strip()
    assert found == str(tmp_path / "tools/train.py")


def test_rollback_folder_that_cannot_be_written(build, tmp_path):
    """A work_dir that MMEngine can write its log into, but we no checkpoint."""
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "rollback").write_text("in the way")
    hooks = [dict(type="amp_hooks.RollbackHook")]
    runner = build("retinanet", iters=1, hooks=hooks, work_dir=tmp_path / "w")
    with pytest.raises(OSError, match="RollbackHook cannot write.*work_dir"):
        runner.train()


def test_compare_runs(build, tmp_path):
    """Reads what two real runs left, and checks the demo's claims against them."""
    where = "bbox_head.retina_cls.weight"
    poison = helpers.fault("parameter", 2, where=where, value="x1e9")
    scale = {"optim_wrapper.loss_scale": dict(init_scale=1e-3, _delete_=True)}
    stock = build("retinanet", iters=5, hooks=[poison], ema=False, options=scale)
    stock.train()
    guarded = build(
        "retinanet",
        iters=5,
        hooks=[
            poison,
            *helpers.SUITE[:4],
            dict(type="amp_hooks.RollbackHook", patience=1),
        ],
        validate=True,
    )
    guarded.train()
    pair = [f"stock={stock.work_dir}", f"ours={guarded.work_dir}"]
    done = processes.script("compare_runs.py", *pair)
    rows = {
        cells[1].strip(): [c.strip() for c in cells[2:4]]
        for cells in (line.split("|") for line in done.stdout.splitlines())
        if len(cells) > 3
    }
    assert rows["iterations with a non-finite loss"] == [
        "3 of 5 (first 3, last 5)",
        "1 of 5 (first 3, last 3)",
    ]
    assert rows["rollbacks"] == ["0", "1"]
    assert rows["head clamps"] == ["0", "1"]
    processes.script("compare_runs.py", *pair, "--check", "0")
    undertrained = processes.script(
        "compare_runs.py", *pair, "--check", "0.9", status=1
    )
    assert "mAP50 0.9" in undertrained.stderr
    swapped = processes.script(
        "compare_runs.py", *pair[::-1], "--check", "0", status=None
    )
    assert "the stock run has a non-finite loss" in swapped.stderr


def test_tables_are_json_free_of_surprises(digits):
    content = json.loads((digits / "train.json").read_text())
    ids = [a["id"] for a in content["annotations"]]
    assert ids == list(range(len(ids)))
