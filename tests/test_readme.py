"""What the README shows is what the code does."""

import re

import pytest

import amp_hooks.hooks  # noqa: F401  (registers)
from amp_hooks.core.events import EVENTS
from amp_hooks.core.scalars import SCALARS
from amp_hooks.registry import HOOKS
from tests import helpers

README = (helpers.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_config_of_the_readme_trains(build, block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # some name a folder of their own
    shown = {}
    exec(block, {}, shown)
    hooks = shown.pop("custom_hooks", helpers.SUITE)
    runner = build("faster_rcnn", iters=2, hooks=hooks, options=shown)
    runner.train()
    assert runner.iter == 2


def test_the_table_of_scalars_is_complete():
    for name, scalar in SCALARS.items():
        assert f"| `{name}` | {scalar.unit} | {scalar.meaning} |" in README


def test_the_table_of_events_is_complete():
    for name, event in EVENTS.items():
        fields = "; ".join(f"`{f}`: {text}" for f, text in event.fields.items())
        assert f"| `{name}` | {event.meaning} | {fields} |" in README


@pytest.mark.parametrize("name", [n for n in amp_hooks.__all__ if n.endswith("Hook")])
def test_the_table_of_hooks_gives_the_real_defaults(name):
    row = re.search(rf"^\| `{name}` \|.*\| (.*) \|$", README, re.MULTILINE)
    hook = HOOKS.get(name)(**helpers.REQUIRED.get(name, {}))
    for argument, shown in re.findall(r"`(\w+)=([^`]+)`", row[1]):
        value = getattr(hook, argument)
        assert repr(value) == shown or (value in ([], {}) and shown == "None")


def test_nothing_unfinished():
    assert "@@" not in README
