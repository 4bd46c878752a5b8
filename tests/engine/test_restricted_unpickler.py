"""``weights_only`` on a torch that cannot be taught names, tried on any torch."""

import io
import os
import pickle
from collections import OrderedDict, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from amp_hooks.engine import restricted_unpickler, torch_api
from amp_hooks.engine.safe_load import allow_mmengine_checkpoints
from amp_hooks.engine.safe_read import read_safely, refused_global
from amp_hooks.errors import UnsupportedError


@pytest.fixture(autouse=True)
def _older_torch(monkeypatch):
    """What is asked of the version is answered as torch 2.1 would."""
    monkeypatch.setattr(torch_api, "TORCH", min(torch_api.TORCH, (2, 1)))
    monkeypatch.setattr(restricted_unpickler, "ALLOWED", {})
    allow_mmengine_checkpoints()


def checkpoint():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    history = HistoryBuffer([1.0], [1])
    history.update(2.0)
    return dict(
        meta=dict(iter=3, cfg="x = 1", dataset_meta=ConfigDict(classes=("a",))),
        state_dict=model.state_dict(),
        optimizer=optimizer.state_dict(),
        message_hub=dict(log_scalars={"train/loss": history}),
        more=[np.float64(3.0), torch.float16, torch.device("cpu"), Path("a")],
        containers=[OrderedDict(a=1), {1, 2}, defaultdict(list), deque([1])],
        parameter=torch.nn.Parameter(torch.ones(2)),
    )


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before torch 1.6"])
def test_a_checkpoint_of_mmengine_comes_back(tmp_path, new):
    given, path = checkpoint(), tmp_path / "x.pth"
    torch.save(given, path, _use_new_zipfile_serialization=new)
    read = read_safely(path, map_location="cpu")
    assert read.keys() == given.keys()
    for name, value in given["state_dict"].items():
        assert torch.equal(read["state_dict"][name], value), name
    assert torch.equal(read["parameter"], given["parameter"])
    assert read["meta"] == given["meta"]
    assert read["more"] == given["more"]
    history = read["message_hub"]["log_scalars"]["train/loss"]
    assert history.data[0].tolist() == [1.0, 2.0]
    assert history.mean(2) == 1.5


class Runs:
    """A pickle that runs what it is given."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (os.system, ("touch {}",), "system"),
        (eval, ("open('{}', 'w')",), "eval"),
        (getattr, (HistoryBuffer, "__init__"), "__init__"),
        (getattr, (HistoryBuffer, "_statistics_methods"), "_statistics_methods"),
    ],
)
def test_nothing_of_a_file_is_run(tmp_path, function, args, name):
    trace = tmp_path / "trace"
    args = tuple(a.format(trace) if isinstance(a, str) else a for a in args)
    for protocol in (2, 4):
        torch.save(
            dict(x=Runs(function, *args)), tmp_path / "x.pth", pickle_protocol=protocol
        )
        with pytest.raises((pickle.UnpicklingError, AttributeError)) as e:
            read_safely(tmp_path / "x.pth")
        assert name in str(e.value)
        assert refused_global(e.value) is None or name in refused_global(e.value)
    assert not trace.exists()


BUFFER = b"cmmengine.logging.history_buffer\nHistoryBuffer\n"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (BUFFER + b"N}X\x04\x00\x00\x00meanX\x01\x00\x00\x00xs\x86b.", "attributes"),
        (b"cbuiltins\ngetattr\n(" + BUFFER + b"X\x04\x00\x00\x00meantR(tR.", "call"),
        (b"(" + BUFFER + b"o.", "does not write"),
        (b"(i" + BUFFER[1:] + b".", "does not write"),
        (b"cbuiltins\ngetattr\n)\x81.", None),
        (BUFFER + b")\x81}X\x01\x00\x00\x00xK\x01sb.", "fine"),
    ],
    ids=["class", "method", "obj", "inst", "new of a function", "instance"],
)
def test_what_is_allowed_is_not_changed(program, words):
    """Attributes go to instances; what a call has returned is not called."""
    before = dict(vars(HistoryBuffer))
    unpickler = restricted_unpickler.Unpickler(io.BytesIO(b"\x80\x02" + program))
    if words == "fine":
        assert unpickler.load().x == 1
    else:
        with pytest.raises((pickle.UnpicklingError, TypeError), match=words):
            unpickler.load()
    assert dict(vars(HistoryBuffer)) == before


def test_fp16_cannot_be_rehearsed(monkeypatch):
    from amp_hooks import CpuAmpOptimWrapper

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(UnsupportedError, match=r"torch 2\.3.*bfloat16"):
        CpuAmpOptimWrapper(dtype="float16", optimizer=optimizer)
    no_scale = dict(enabled=False)
    CpuAmpOptimWrapper(dtype="bfloat16", loss_scale=no_scale, optimizer=optimizer)
