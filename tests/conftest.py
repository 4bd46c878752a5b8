"""Shared fixtures: a small digits set, and real runners built from our configs."""

import functools
import gc
import os
from importlib import import_module

import mmengine.config.config
import mmengine.runner.runner
import pytest
import torch
import yapf.yapflib.yapf_api
from mmengine.utils.dl_utils import collect_env

from amp_hooks.engine.events import EVENTS
from amp_hooks.engine.ledger import Ledger
from amp_hooks.engine.torch_api import TORCH
from tests import helpers, processes, short


def pytest_addoption(parser):
    """See tests/short.py."""
    parser.addoption("--short", action="store_true", help="leave the slowest out")


def pytest_collection_modifyitems(config, items):
    """Tests that train on the digits take seconds each."""
    for item in items:
        if "digits" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
    if config.getoption("short"):
        out = short.left_out([item.nodeid for item in items], short.read())
        kept, gone = [], []
        for item in items:
            is_out = item.nodeid in out or item.get_closest_marker("long")
            (gone if is_out else kept).append(item)
        config.hook.pytest_deselected(items=gone)
        items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup():
    """As :func:`pytest_pyfunc_call`."""
    return (yield from _left_out_where_fp16_cannot_be_rehearsed())


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call():
    """What rehearses FP16 is left out where torch cannot; the error is a test's own."""
    return (yield from _left_out_where_fp16_cannot_be_rehearsed())


def _left_out_where_fp16_cannot_be_rehearsed():
    try:
        return (yield)
    except Exception as e:
        if TORCH < (2, 3) and "FP16 cannot be rehearsed" in str(e):
            pytest.skip(str(e)[-300:])
        raise


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """24 + 8 images of 64 pixels, made by the script that users run."""
    out = tmp_path_factory.mktemp("digits")
    size = "--size 64 --train 24 --val 8"
    processes.script("make_digits.py", "--out", out, *size.split())
    # Every data set that MMEngine builds has the garbage collected: a fifth of a second
    # over all modules, and a third of a short run.
    import_module("mmdet.utils").register_all_modules(init_default_scope=False)
    gc.collect()
    gc.freeze()
    return out


_collect_env = functools.lru_cache(maxsize=None)(collect_env)


@pytest.fixture(autouse=True)
def _quick_runners(monkeypatch):
    """Without what takes half of the time of a short run and changes nothing in it.

    A Runner has yapf format its config seven times, and asks for the compiler's
    version.
    """
    config = mmengine.config.config
    # onedl-mmengine imports it only where it is called.
    place = config if hasattr(config, "FormatCode") else yapf.yapflib.yapf_api
    monkeypatch.setattr(place, "FormatCode", lambda code, **style: (code, True))
    monkeypatch.setattr(
        mmengine.runner.runner, "collect_env", lambda: dict(_collect_env())
    )


@pytest.fixture
def build(digits, tmp_path):
    """``build('faster_rcnn', ...)`` makes a real Runner in a folder of its own."""
    made = []

    def make(detector, **options):
        work_dir = options.pop("work_dir", tmp_path / f"run{len(made)}")
        runner = helpers.build_runner(detector, digits, work_dir, **options)
        made.append(runner)
        return runner

    make.made = made
    yield make
    for runner in made:
        runner.visualizer.close()


@pytest.fixture(autouse=True)
def _ledger_as_documented(monkeypatch):
    """Every line that any test makes a run write has the fields of the table."""
    write = Ledger.write

    def checked(self, iteration, event, verdict, **fields):
        documented = EVENTS[event].fields
        must = {f for f, meaning in documented.items() if not meaning.startswith("if ")}
        assert must <= set(fields) <= set(documented), (event, fields)
        line = dict(iter=iteration, event=event, verdict=verdict, **fields)
        assert EVENTS[event].words(line)
        write(self, iteration, event, verdict, **fields)

    monkeypatch.setattr(Ledger, "write", checked)


@pytest.fixture(autouse=True)
def _same_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    # Two threads on two cores gain little at this size and make timings erratic.
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
