"""What may be unpickled, on a torch that knows less than the present one."""

import pickletools
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from amp_hooks.engine.safe_load import _safe_globals, allow_mmengine_checkpoints
from amp_hooks.engine.torch_api import TORCH


def by_name():
    """As torch 2.4 keeps them: it takes no pairs of a function and another name."""
    return {f"{f.__module__}.{f.__name__}": f for f in _safe_globals()}


def globals_of(path):
    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        names = [
            a
            for op, a, _ in pickletools.genops(archive.read(name))
            if op.name == "GLOBAL"
        ]
    return {name.replace(" ", ".").replace("__builtin__", "builtins") for name in names}


def test_the_list_names_all_that_a_log_history_needs(tmp_path):
    history = HistoryBuffer([1.0], [1])
    history.update(2.0)
    torch.save(dict(history=history, scalar=np.float64(3.0)), tmp_path / "x.pth")
    asked = globals_of(tmp_path / "x.pth")
    assert {"_codecs.encode", "builtins.getattr"} < asked
    # These few every torch knows.
    assert asked - by_name().keys() <= {"collections.OrderedDict"}


def test_bytes_of_arrays_in_one_encoding_only():
    encode = by_name()["_codecs.encode"]
    assert encode("\xff\x00", "latin1") == b"\xff\x00"
    with pytest.raises(ValueError, match="'rot13'"):
        encode("x", "rot13")


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "bool"])
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_arrays_of_another_numpy(tmp_path, module, dtype):
    """NumPy 2 moved the private module that pickles of arrays name."""
    array = np.ones(3, dtype=dtype)
    rebuild = by_name()[f"{module}.multiarray._reconstruct"]
    again = rebuild(np.ndarray, (0,), b"b")
    again.__setstate__(array.__reduce__()[2])
    assert again.dtype == array.dtype
    assert (again == array).all()


@pytest.mark.skipif(TORCH < (2, 4), reason="the list is a dict of ours there")
def test_listing_twice_lists_nothing_new():
    allow_mmengine_checkpoints()
    before = set(torch.serialization.get_safe_globals())
    allow_mmengine_checkpoints()
    assert set(torch.serialization.get_safe_globals()) == before
