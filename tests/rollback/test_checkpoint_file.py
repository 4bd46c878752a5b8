import math
import os
import time

import pytest
import torch

from amp_hooks.rollback.checkpoint_file import (
    REFUSED,
    Header,
    damage,
    nonfinite_in,
    read_header,
)

WEIGHT = torch.arange(1000, dtype=torch.float32) + 0.5


def checkpoint(**changes):
    good = dict(
        meta=dict(iter=7, epoch=1, time="20240131_120000"),
        state_dict={"head.weight": WEIGHT.clone(), "bn.num": torch.tensor(3)},
        optimizer=dict(
            state={0: dict(exp_avg=torch.ones(4))},
            param_groups=[dict(lr=0.01, params=[0])],
            loss_scaler=dict(scale=512.0, _growth_tracker=1),
        ),
        ema_state_dict={"module.head.weight": torch.ones(4), "steps": torch.tensor(1)},
    )
    return {**good, **changes}


@pytest.fixture
def save(tmp_path):
    def save(obj, **options):
        path = str(tmp_path / "c.pth")
        torch.save(obj, path, **options)
        return path

    return save


def test_a_good_one(save):
    assert damage(save(checkpoint())) is None
    without = checkpoint()
    del without["optimizer"], without["ema_state_dict"]  # as best_* files
    assert damage(save(without)) is None


def test_of_an_older_torch(save):
    path = save(checkpoint(), _use_new_zipfile_serialization=False)
    assert damage(path) is None
    assert read_header(path).iter == 7
    cut(path, 0.6)
    assert "cannot be loaded" in damage(path)
    assert read_header(path) is None


@pytest.mark.skipif(
    not hasattr(torch.serialization, "set_crc32_options"), reason="of torch >= 2.6"
)
def test_saved_without_checksums(save):
    crc = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = save(checkpoint())
    finally:
        torch.serialization.set_crc32_options(crc)
    assert damage(path) is None


def cut(path, part):
    os.truncate(path, int(os.path.getsize(path) * part))


@pytest.mark.parametrize("part", [0.001, 0.01, 0.2, 0.5, 0.9, 0.999])
def test_truncated(save, part):
    path = save(checkpoint())
    cut(path, part)
    assert damage(path)
    assert read_header(path) is None


def flip(path, position, bit=0):
    with open(path, "r+b") as f:
        f.seek(position)
        (byte,) = f.read(1)
        f.seek(position)
        f.write(bytes([byte ^ 1 << bit]))


def test_one_bit_of_a_weight(save):
    path = save(checkpoint())
    with open(path, "rb") as f:
        place = f.read().index(WEIGHT.numpy().tobytes())
    flip(path, place + 2000)
    loaded = torch.load(path)["state_dict"]["head.weight"]
    assert (loaded != WEIGHT).sum() == 1  # torch does not notice
    assert "checksum" in damage(path)


def test_one_bit_anywhere(save):
    """It is found, or it is where nothing depends on it; never an exception."""
    path = save(checkpoint())
    found = 0
    for position in range(0, os.path.getsize(path), 47):
        flip(path, position, position % 8)
        words = damage(path)
        found += words is not None
        if words is None:
            loaded = torch.load(path)
            assert torch.equal(loaded["state_dict"]["head.weight"], WEIGHT), position
            assert loaded["meta"] == checkpoint()["meta"]
        flip(path, position, position % 8)
    assert found > 80  # the weight alone is hit as often
    assert damage(path) is None


BAD = dict(
    weight=("state_dict", "head.weight"),
    ema=("ema_state_dict", "module.head.weight"),
    optimizer=("optimizer", "state", 0, "exp_avg"),
)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", BAD)
def test_not_finite(save, where, value):
    bad = checkpoint()
    *keys, last = BAD[where]
    inside = bad
    for key in keys:
        inside = inside[key]
    inside[last][2] = value
    words = damage(save(bad))
    assert "not finite" in words
    assert str(last) in words


def test_many_names_are_counted(save):
    bad = checkpoint(state_dict={f"w{i}": torch.tensor(math.nan) for i in range(9)})
    assert "w0, state_dict.w1, state_dict.w2 and 6 more" in damage(save(bad))


def test_infinite_by_design(save):
    mask = torch.tensor([0.0, -math.inf])
    bad = checkpoint(
        state_dict={"attn.mask": mask, "w": torch.ones(1)},
        ema_state_dict={"module.attn.mask": mask},
    )
    path = save(bad)
    assert "attn.mask" in damage(path)
    ignore = frozenset({"model.attn.mask", "ema[0].module.attn.mask"})
    assert damage(path, ignore) is None
    bad["state_dict"]["w"][0] = math.inf
    assert nonfinite_in(bad, ignore) == ["state_dict.w"]


def test_bounds_of_an_optimizer(save):
    bad = checkpoint()
    state = bad["optimizer"]["state"][0]
    state["smallest"] = torch.full((4,), math.inf)
    assert damage(save(bad)) is None
    for average in (state["exp_avg"][1:2], state["exp_avg"]):
        average.fill_(math.inf)  # some, or, of a parameter of one value, all
        assert nonfinite_in(bad) == ["optimizer.state.0.exp_avg"]


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_loss_scale_that_ends_training(save, scale):
    bad = checkpoint()
    bad["optimizer"]["loss_scaler"]["scale"] = scale
    assert damage(save(bad)) == f"its loss scale is {scale}"
    several = checkpoint(
        optimizer=dict(a=checkpoint()["optimizer"], b=bad["optimizer"])
    )
    assert damage(save(several)) == f"its loss scale is {scale}"


def test_learning_rate_that_ends_training(save):
    bad = checkpoint()
    bad["optimizer"]["param_groups"][0]["lr"] = math.nan
    assert damage(save(bad)) == "its learning rate is nan"


def test_scaler_that_is_switched_off(save):
    off = checkpoint()
    off["optimizer"]["loss_scaler"] = {}
    assert damage(save(off)) is None


class Foreign:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("new_format", [True, False])
def test_foreign_pickle_is_refused_and_not_run(save, tmp_path, new_format):
    made = tmp_path / "made"
    foreign = checkpoint(message_hub=Foreign(os.mkdir, str(made)))
    path = save(foreign, _use_new_zipfile_serialization=new_format)
    words = damage(path)
    assert words.startswith(REFUSED)
    assert "mkdir" in words
    assert read_header(path) is None
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (WEIGHT, "not a checkpoint of MMEngine but a Tensor"),
        (dict(state_dict={}), "no meta.iter"),
        (checkpoint(meta=dict(epoch=3)), "no meta.iter"),
        (dict(meta=dict(iter=3)), "no state_dict"),
        (checkpoint(optimizer=dict(loss_scaler=3, param_groups=[3], x=3)), None),
    ],
    ids=["tensor", "weights", "meta", "no weights", "odd optimizer"],
)
def test_other_content(save, content, words):
    found = damage(save(content))
    assert found is None if words is None else words in found


def test_no_checkpoint_at_all(tmp_path):
    path = tmp_path / "x.pth"
    assert damage(str(path)) == "it does not exist"
    assert read_header(str(path)) is None
    path.touch()
    assert damage(str(path)) == "it is empty"
    path.write_bytes(bytes(5000))  # what a power failure may leave
    assert "cannot be loaded" in damage(str(path))
    path.write_text("<html>404</html>")
    assert "cannot be loaded" in damage(str(path))
    assert damage(str(tmp_path)) == "it is not a file"


def test_header(save):
    assert read_header(save(checkpoint())) == Header(7, "20240131_120000", True, True)
    path = save(dict(meta=dict(iter=9), state_dict={}))
    moment = time.mktime((2023, 5, 6, 7, 8, 9, 0, 0, -1))
    os.utime(path, (moment, moment))
    assert read_header(path) == Header(9, "20230506_070809", False)
