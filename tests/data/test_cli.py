"""``amp-hooks check-annotations``, called as a user calls it."""

import json
import math
import re
import shutil
from types import SimpleNamespace

import cv2
import pytest

from amp_hooks.data import cli
from amp_hooks.data.coco_records import KINDS
from tests import helpers, processes
from tests.data.bad_boxes import voc
from tests.data.coco_made import healthy, plant


@pytest.fixture
def check(capsys):
    """In this process, which has imported everything already."""

    def check(*args):
        try:
            status = cli.main([str(a) for a in args])
        except SystemExit as e:
            status = e.code
        shown = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=shown.out, stderr=shown.err)

    return check


def found(done):
    """Rows of the tables: kind to number."""
    rows = re.findall(r"^\| (\w+)(?: \(note\))? +\| (\d+) ", done.stdout, re.MULTILINE)
    return {kind: int(number) for kind, number in rows}


def written(path, data):
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def spoiled(digits, tmp_path):
    """The digits' own file with defects, and what they are."""
    data = json.loads((digits / "train.json").read_text())
    bad = {}
    for i, (kind, change) in enumerate(
        {
            "zero": dict(bbox=[5, 5, 0, 9]),
            "negative": dict(bbox=[20, 20, -5, 9]),
            "not_finite": dict(bbox=[5, 5, math.inf, 9]),
            "outside": dict(bbox=[500, 5, 9, 9]),
            "no_area": dict(area=0),
            "duplicate_id": dict(id=0),
        }.items()
    ):
        data["annotations"][5 + 2 * i].update(change)
        bad[kind] = 1
    return written(tmp_path / "spoiled.json", data), bad


def train(build, digits, ann, **options):
    runner = build(
        "retinanet",
        iters=4,
        ema=False,
        hooks=[dict(type="amp_hooks.BoxSanityHook", action="raise")],
        options={"train_dataloader.dataset.ann_file": str(ann), **options},
    )
    runner.train()
    return runner


@pytest.mark.long
def test_a_hundred_thousand_boxes_and_the_fixed_copy_trains(
    check, digits, build, tmp_path
):
    whole = healthy(side=64)
    for image in whole["images"]:  # many records of each of the digits' images
        image["file_name"] = f"{image['id'] % 24:06d}.png"
    data, planted = plant(whole)
    ann, out = written(tmp_path / "a.json", data), tmp_path / "fixed.json"
    before = ann.read_bytes()
    done = check(ann, "--fix", out, "--img-root", digits / "train")
    assert done.returncode == 1
    counts = {k: n for k, n in found(done).items() if not KINDS[k].note}
    assert counts == {kind: len(places) for kind, places in planted.items()}
    assert f"{sum(counts.values())} findings" in done.stdout
    assert ann.read_bytes() == before
    bad = {i for places in planted.values() for i in places}
    left = [a for i, a in enumerate(whole["annotations"]) if i not in bad]
    assert json.loads(out.read_text()) == {**whole, "annotations": left}

    again = check(out)
    assert again.returncode == 0
    assert "no findings" in again.stdout

    with pytest.raises((AssertionError, KeyError)):
        train(build, digits, ann)
    runner = train(build, digits, out)
    assert runner.iter == 4
    assert all(map(math.isfinite, helpers.losses(runner)))


def test_a_healthy_file(digits):
    """As a user calls it."""
    done = processes.fork("-m", "amp_hooks", "check-annotations", digits / "train.json")
    assert done.returncode == 0
    assert "24 images" in done.stdout
    assert "no findings" in done.stdout
    assert done.stderr == ""  # a pipe gets no bar


def test_the_fixed_copy_is_never_written_over_anything(check, spoiled, tmp_path):
    ann, bad = spoiled
    out = tmp_path / "out.json"
    out.write_text("mine")
    done = check(ann, "--fix", out)
    assert done.returncode == 73
    assert "--force" in done.stderr
    assert out.read_text() == "mine"
    done = check(ann, "--fix", out, "--force")
    assert done.returncode == 1
    assert found(done) == bad
    source, fixed = (json.loads(p.read_text()) for p in (ann, out))
    assert len(fixed["annotations"]) == len(source["annotations"]) - len(bad)
    for same in (ann, tmp_path / "sub" / ".." / ann.name):
        (tmp_path / "sub").mkdir(exist_ok=True)
        done = check(ann, "--fix", same, "--force")
        assert done.returncode == 64
        assert "never changed" in done.stderr
    assert json.loads(ann.read_text()) == source
    assert not list(tmp_path.glob("*.tmp"))


def test_pictures_of_the_worst_images(check, spoiled, digits, tmp_path):
    ann, bad = spoiled
    folder = tmp_path / "pictures"
    done = check(
        *(ann, "--img-root", digits / "train", "--pictures", folder, "--worst", 3)
    )
    assert done.returncode == 1
    pictures = sorted(folder.iterdir())
    assert len(pictures) == 3
    assert f"3 pictures in {folder}" in done.stdout
    images = [cv2.imread(str(path)).astype(int) for path in pictures]
    red = [(image == (40, 40, 255)).all(-1).sum() for image in images]
    # An infinite box can only be told in words.
    assert sum(n > 20 for n in red) >= 2
    assert all(image.shape[0] > 480 for image in images)


def test_missing_image_files(check, digits, tmp_path):
    shutil.copytree(digits / "train", tmp_path / "img")
    (tmp_path / "img" / "000004.png").unlink()
    done = check(digits / "train.json", "--img-root", tmp_path / "img")
    assert done.returncode == 1
    assert found(done) == {"missing_file": 1}


def test_a_file_name_may_be_written_in_any_way(check, digits, tmp_path):
    data = json.loads((digits / "train.json").read_text())
    names = [image["file_name"] for image in data["images"]]
    data["images"][0]["file_name"] = f"./{names[0]}"
    data["images"][1]["file_name"] = str((digits / "train" / names[1]).resolve())
    data["images"][2]["file_name"] = f"../train/{names[2]}"
    ann = written(tmp_path / "a.json", data)
    assert check(ann, "--img-root", digits / "train").returncode == 0


def test_no_copy_is_made_where_no_image_is_found(check, digits, tmp_path):
    out = tmp_path / "out.json"
    done = check(digits / "train.json", "--img-root", tmp_path, "--fix", out)
    assert done.returncode == 66
    assert "'000000.png'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_copy_s_temporary_file_is_nobody_s(check, digits, tmp_path):
    data = json.loads((digits / "train.json").read_text())
    data["info"] = dict(description="\ud800")  # which UTF-8 cannot hold
    ann, out = written(tmp_path / "a.json.tmp", data), tmp_path / "a.json"
    assert check(ann, "--fix", out).returncode == 0
    assert json.loads(ann.read_text()) == json.loads(out.read_text()) == data
    assert len(list(tmp_path.iterdir())) == 2


def test_pictures_of_boxes_of_any_form(check, digits, tmp_path):
    data = json.loads((digits / "train.json").read_text())
    for i, value in enumerate([None, "3", 10**400, True]):
        data["annotations"][i + 1].update(id=0, bbox=[5, 5, value, 9])
    ann = written(tmp_path / "a.json", data)
    folder = tmp_path / "p"
    done = check(ann, "--img-root", digits / "train", "--pictures", folder)
    assert done.returncode == 1, done.stderr
    assert list(folder.iterdir())


# --- through a config -----------------------------------------------------------------
def config(digits, tmp_path, options):
    cfg = helpers.make_config("retinanet", digits, tmp_path / "w", options=options)
    cfg.dump(tmp_path / "c.py")
    return tmp_path / "c.py"


BAD = [(3, 0, "zero"), (7, 0, "negative"), (11, 0, "outside"), (11, 0, "outside")]


def test_samples_of_another_format(check, digits, tmp_path):
    cfg = config(digits, tmp_path, voc(digits, tmp_path / "voc", BAD))
    done = check("--config", cfg, "--pictures", tmp_path / "p")
    assert done.returncode == 1
    assert found(done) == dict(zero=1, negative=1, outside=1)
    for image in (3, 7, 11):
        assert f"{image:06d}.jpg" in done.stdout
    assert "24 samples after augmentation" in done.stdout
    assert len(list((tmp_path / "p").iterdir())) == 3


def test_samples_without_a_finding(check, digits, tmp_path):
    cfg = config(digits, tmp_path, {})
    done = check(digits / "train.json", "--config", cfg, "--samples", 30)
    assert done.returncode == 0, done.stdout
    assert "30 samples" in done.stdout
    assert done.stdout.count("no findings") == 2
    done = check("--config", cfg, "--samples", 5, "--min-size", 1000)
    assert done.returncode == 1
    assert found(done).keys() == {"sub_pixel"}


def test_a_sample_that_cannot_be_loaded(check, digits, tmp_path):
    options = voc(digits, tmp_path / "voc")
    image = tmp_path / "voc/JPEGImages/000005.jpg"
    image.unlink()
    image.write_bytes(b"not an image")
    done = check("--config", config(digits, tmp_path, options))
    assert done.returncode == 1
    assert found(done) == dict(cannot_load=1)


def test_a_data_set_without_samples(check, digits, tmp_path):
    """Of classes that the file has not: every image is filtered out."""
    dataset = "train_dataloader.dataset"
    classes = {f"{dataset}.metainfo": dict(classes=("cat",))}
    options = {**classes, f"{dataset}.filter_cfg": dict(filter_empty_gt=True)}
    for serialize in (True, False):  # MMEngine refuses the first itself
        options[f"{dataset}.serialize_data"] = serialize
        done = check("--config", config(digits, tmp_path, options), "--samples", 10)
        assert done.returncode == 66, done.stdout
        assert "has no samples: its metainfo['classes']" in done.stderr


def test_a_failure_of_the_check_is_no_finding(check, digits, monkeypatch):
    broken = "amp_hooks.data.annotation_file.check_coco"
    monkeypatch.setattr(broken, lambda *args: 1 / 0)
    done = check(digits / "train.json")
    assert done.returncode == 70
    assert "ZeroDivisionError" in done.stderr


# --- misuse ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        ([], 64, "give ANN"),
        (["{ann}", "--samples", "3"], 64, "--samples needs --config"),
        (["--config", "c.py", "--fix", "x.json"], 64, "--fix needs ANN"),
        (["{ann}", "--pictures", "p"], 64, "--pictures needs --img-root"),
        (["{ann}", "--min-size", "0"], 64, "--min-size must be above 0, got 0"),
        (["{ann}", "--worst", "0"], 64, "--worst must be at least 1, got 0"),
        (["{ann}", "--what"], 64, "unrecognized arguments"),
        (["no_such.json"], 66, "cannot read no_such.json"),
        (["{ann}", "--img-root", "nowhere"], 66, "nowhere is not a folder"),
        (["--config", "nowhere.py"], 66, "nowhere.py is not a file"),
        (["{empty}"], 65, "is no JSON"),
        (["{binary}"], 65, "is no JSON"),
        (["{list}"], 65, "no COCO annotation file: it holds a list"),
        (["--config", "{broken}"], 66, "cannot be built"),
        (["{ann}", "--fix", "/proc/no/x.json"], 73, "cannot write /proc/no/x.json"),
    ],
)
def test_misuse(check, digits, tmp_path, args, status, words):
    names = dict(ann=digits / "train.json")
    for name, content in dict(
        empty=b"",
        binary=bytes(range(256)),
        list=b"[1]",
        broken=b"train_dataloader = dict(dataset=dict(type='NoSuch'))",
    ).items():
        names[name] = tmp_path / f"{name}.py"
        names[name].write_bytes(content)
    done = check(*(a.format(**names) for a in args))
    assert done.returncode == status, done.stderr
    assert words in done.stderr
