"""What is in metainfo and message hub is read back, or left out and told at once."""

import enum
import pickle
import re
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from torch.utils.data import Dataset

from amp_hooks.engine.safe_load import allow_mmengine_checkpoints
from amp_hooks.engine.safe_read import allow_enum, read_safely
from amp_hooks.rollback.checkpoint_file import damage
from amp_hooks.rollback.storable import Made, ReadableParts
from tests import helpers, small


class Mode(enum.Enum):
    NIGHT = "night"
    DAY = ("day", 2)


class Level(enum.IntFlag):
    LOW = 1
    HIGH = 2


class Outer:
    class Nested(enum.Enum):
        A = 1


class Thing:
    def __eq__(self, other):
        return type(other) is Thing


NOW = datetime(2024, 1, 31, 23, 59, 59, 7, tzinfo=timezone(timedelta(hours=8)))
VALUES = {
    "ConfigDict": ConfigDict(mapping={0: 1}, deep=dict(a=[ConfigDict(b=1)])),
    "OrderedDict": OrderedDict(a=1, b=OrderedDict(c=2)),
    "defaultdict": defaultdict(list, a=[1], b=[]),
    "defaultdict of deques": defaultdict(None, a=deque([1])),
    "set": {1, 2},
    "frozenset": frozenset("ab"),
    "Counter": Counter("abb"),
    "deque": deque([1, deque([2], 4)], maxlen=3),
    "empty deque": deque([], 5),
    "Path": Path("/data/coco"),
    "datetime": NOW,
    "date": [date(2024, 1, 31), timedelta(days=1, seconds=3)],
    "Enum": Mode.NIGHT,
    "Enum of a tuple": {Mode.DAY: Mode.DAY},
    "Flag": Level.LOW | Level.HIGH,
    "names": np.array(["car", "bus"]),
    "objects": np.array(["car", None, 3], dtype=object),
    "tuple": ("car", (1, 2)),
}


@pytest.fixture(autouse=True)
def _allowed():
    allow_mmengine_checkpoints()


@pytest.mark.parametrize("kind", VALUES)
def test_it_comes_back_as_what_it_was(tmp_path, kind):
    value = VALUES[kind]
    checkpoint = dict(message_hub=dict(x=value))
    readable = ReadableParts()
    readable.keep_types(checkpoint)
    readable.leave_out(checkpoint)
    torch.save(checkpoint, tmp_path / "x.pth")
    back = read_safely(tmp_path / "x.pth")["message_hub"]["x"]
    assert type(back) is type(value)
    assert (
        np.array_equal(back, value) if isinstance(value, np.ndarray) else back == value
    )
    assert getattr(back, "maxlen", None) == getattr(value, "maxlen", None)
    assert getattr(back, "default_factory", 0) == getattr(value, "default_factory", 0)


@pytest.mark.parametrize("kind", VALUES)
def test_a_file_of_stock_is_read(tmp_path, kind):
    """Deques and defaultdicts as lists and dicts, for torch fills nothing else."""
    torch.save(VALUES[kind], tmp_path / "x.pth")
    back = read_safely(tmp_path / "x.pth")
    assert len(back) == len(VALUES[kind]) if hasattr(back, "__len__") else True


def test_nothing_of_ours_is_in_the_file(tmp_path):
    """So that a run without this package reads it."""
    assert pickle.loads(pickle.dumps(Made(deque, [1], 2))) == deque([1], 2)  # noqa: S301


def test_the_users_own_objects_are_not_touched():
    hub = dict(history=deque([1]), plain=dict(a=1))
    checkpoint = dict(meta=hub, message_hub=hub)
    ReadableParts().keep_types(checkpoint)
    assert hub["history"] == deque([1])
    assert checkpoint["meta"] is not hub
    assert checkpoint["meta"]["plain"] is hub["plain"]


def test_only_an_enum_that_is_there_is_allowed():
    assert allow_enum(f"{__name__}.Mode")
    assert not allow_enum(f"{__name__}.Thing")
    assert not allow_enum("os.system")
    assert not allow_enum("no.such.Module")


def test_a_file_changes_no_enum(tmp_path):
    class Change:
        def __reduce__(self):
            return Mode, ("night",), dict(_value_="changed")

    torch.save(Change(), tmp_path / "x.pth")
    with pytest.raises(pickle.UnpicklingError):
        read_safely(tmp_path / "x.pth")
    assert Mode.NIGHT.value == "night"


# --- real runs --------------------------------------------------------------------
class WithMeta(Dataset):
    def __init__(self, metainfo):
        self.samples, self.metainfo = small.samples(), metainfo

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        return self.samples[i]


class IntoHub(Hook):
    def __init__(self, value):
        self.value = value

    def before_train(self, runner):
        if "mine" not in runner.message_hub.runtime_info:
            runner.message_hub.update_info("mine", self.value)


def run(work_dir, value, iters, resume=False, hub=False):
    rollback = dict(type="amp_hooks.RollbackHook", interval=6, probation=1)
    runner = small.build(
        work_dir,
        work_dir=work_dir,
        hooks=[rollback],
        iters=iters,
        resume=resume,
        log_level="WARNING",
        dataset=WithMeta({} if hub else dict(mine=value)),
        checkpoint=dict(interval=10),
    )
    if hub:
        runner.register_hook(IntoHub(value))
    runner.train()
    return runner, " ".join(helpers.log(runner).split())


@pytest.mark.parametrize("hub", [False, True])
def test_a_run_with_all_of_it_is_resumed(tmp_path, hub):
    _, log = run(tmp_path, VALUES, 10, hub=hub)
    assert "cannot be" not in log
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "iter_10.pth")
    runner, log = run(tmp_path, VALUES, 14, resume=True, hub=hub)
    (line,) = small.ledger(runner, "resume")
    assert line["iter"] == 10
    if hub:
        back = runner.message_hub.get_info("mine")
        assert [type(v) for v in back.values()] == [type(v) for v in VALUES.values()]
        assert back["deque"].maxlen == 3


@pytest.mark.parametrize("value", [Thing(), Outer.Nested.A], ids=["class", "nested"])
@pytest.mark.parametrize("hub", [False, True])
def test_what_cannot_be_read_is_told_at_the_first_snapshot(tmp_path, hub, value):
    """A resume is possible all the same, from the files that go without it."""
    runner, log = run(tmp_path, dict(a=[1, value], b=3), 10, hub=hub)
    place = "message_hub.runtime_info.mine.a" if hub else "meta.dataset_meta.mine.a"
    name = "Thing" if isinstance(value, Thing) else "Nested"
    assert log.count("cannot be read back") == 1
    assert f"{place}[1] ({__name__}." in log
    assert name in log
    assert re.search(
        r"it cannot be resumed from, for .*?:\s\S*/iter_10\.pth(\s|$)", log
    )
    assert log.index("cannot be read back") < log.index("cannot be resumed from")
    named = Path((tmp_path / "last_checkpoint").read_text())
    assert named.parent.name == "rollback"
    assert damage(str(named)) is None
    runner, log = run(tmp_path, dict(a=[1, value], b=3), 14, resume=True, hub=hub)
    (line,) = small.ledger(runner, "resume")
    assert line["iter"] == 6
