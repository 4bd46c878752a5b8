"""What README and pages show is what the code does."""

import copy
import inspect
import re
import shlex
import uuid
from argparse import ArgumentParser

import pytest
from mmengine.config import Config, DictAction
from mmengine.hub import get_config

import amp_hooks.hooks  # noqa: F401  (registers)
from amp_hooks import CpuAmpOptimWrapper, StabilityHook
from amp_hooks.engine.events import EVENTS
from amp_hooks.health import thresholds as t
from amp_hooks.members import MEMBERS
from amp_hooks.panel.scalars import SCALARS
from amp_hooks.registry import HOOKS, OPTIM_WRAPPERS
from tests import helpers

DOCS = helpers.ROOT / "docs"
# Blocks of the Chinese pages are the same: test_pages_zh.py.
PAGES = [helpers.ROOT / "README.md", *sorted((DOCS / "en").glob("*.md"))]
BOTH = [
    *PAGES,
    helpers.ROOT / "README_zh-CN.md",
    *sorted((DOCS / "zh_cn").glob("*.md")),
]
# Every fenced block as (page and line, tag, content).
FENCES = [
    (f"{page.name}:{page.read_text()[: m.start()].count(chr(10)) + 1}", m[1], m[2])
    for page in PAGES
    for m in re.finditer(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.DOTALL)
]
PYTHON = [
    pytest.param(text, id=where) for where, tag, text in FENCES if tag == "python"
]
INHERITS = [block for block in PYTHON if "_base_" in block.values[0]]
BLOCKS = [block for block in PYTHON if block not in INHERITS]


# Said once per process, by DINO's encoder.
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
@pytest.mark.parametrize("block", BLOCKS)
def test_every_config_trains(build, block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # some name a folder of their own
    shown = {}
    exec(block, {}, shown)
    hooks = shown.pop("custom_hooks", helpers.SUITE)
    if shown.get("optim_wrapper", {}).get("type") == "AmpOptimWrapper":
        shown["optim_wrapper"]["type"] = "amp_hooks.CpuAmpOptimWrapper"
    if isinstance(shown.get("optim_wrapper", {}).get("loss_scale"), dict):
        # Our base config has another one; MMDetection's have none.
        shown["optim_wrapper"]["loss_scale"]["_delete_"] = True
    if "visualizer" in shown:  # MMEngine keeps one of each name for the whole process
        shown["visualizer"]["name"] = uuid.uuid4().hex
    length = dict(iters=2)
    if "train_cfg" in shown:  # an epoch of two iterations
        shown["train_cfg"]["max_epochs"] = 1
        shown["train_dataloader"] = dict(dataset=dict(indices=4))
        length = dict(epochs=1)
    detector = "faster_rcnn"
    if '"*.ffn"' in block:
        detector = "dino"
    elif shown.get("optim_wrapper", {}).get("dtype") == "bfloat16":
        detector = "retinanet"  # mmcv's NMS in an RPN refuses BF16 on a CPU
    runner = build(detector, hooks=hooks, options=shown, **length)
    runner.train()
    assert runner.iter == 2


@pytest.mark.parametrize("block", INHERITS)
def test_every_config_that_inherits_keeps_the_hooks_it_had(block, tmp_path):
    """That they train together is in tests/test_suite.py."""
    path = tmp_path / "config.py"
    path.write_text(block)
    (base,) = re.findall(r'^_base_ = "(.*)"$', block, re.M)
    *inherited, ours = (hook.type for hook in Config.fromfile(path).custom_hooks)
    assert inherited == [hook.type for hook in get_config(base).custom_hooks]
    assert ours == "amp_hooks.StabilityHook"


def test_a_config_is_run_or_marked_as_one_of_2():
    """No block escapes the test above by another tag."""
    for where, tag, text in FENCES:
        assert tag in ("python", "py", "bash", "text", ""), where
        if tag == "py":
            assert text.startswith("# MMDetection 2.x"), where
        elif tag != "python":
            assert not re.search(
                r"^(\w+ = |\w+ \+= )|amp_hooks\.\w+Hook\"", text, re.M
            ), where


# Commands that say what MMEngine shall merge into the config.
COMMANDS = [
    pytest.param(command, id=where)
    for where, tag, text in FENCES
    if tag == "bash"
    for command in text.replace("\\\n", " ").splitlines()
    if "--cfg-options" in command and "K=V" not in command
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_attaches_what_it_names(command):
    """As a shell and tools/train.py read it; tests/integration trains with them."""
    parser = ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    options = parser.parse_known_args(shlex.split(command))[0].cfg_options
    cfg = get_config("mmdet::yolox/yolox_s_8xb8-300e_coco.py")
    before = copy.deepcopy(cfg.custom_hooks)
    cfg.merge_from_dict(options)
    assert cfg.custom_hooks == before
    if "optim_wrapper.type" in options:
        assert OPTIM_WRAPPERS.get(cfg.optim_wrapper.type) is CpuAmpOptimWrapper
    else:
        assert isinstance(HOOKS.build(cfg.default_hooks.stability), StabilityHook)


def text(name):
    return (DOCS / "en" / name).read_text()


def test_links_between_pages_lead_somewhere():
    for page in BOTH:
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            file = (page.parent / path) if path else page
            assert file.exists(), (page, target)
            if anchor:
                titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                slugs = [
                    re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles
                ]
                assert anchor in slugs, (page, target)


def test_the_table_of_scalars_is_complete():
    page = text("scalars.md")
    for name, scalar in SCALARS.items():
        assert f"| `{name}` | {scalar.unit} | {scalar.meaning} |" in page


def test_the_table_of_events_is_complete():
    page = text("ledger.md")
    for name, event in EVENTS.items():
        fields = "; ".join(f"`{f}`: {text}" for f, text in event.fields.items())
        fields = fields.replace("|", "\\|")  # or GitHub takes it for a cell's end
        assert f"| `{name}` | {event.meaning} | {fields} |" in page


@pytest.mark.parametrize("name", [n for n in amp_hooks.__all__ if n.endswith("Hook")])
def test_the_table_of_hooks_gives_the_real_defaults(name):
    assert f"| `{name}` |" in PAGES[0].read_text() or name == "StabilityHook"
    row = re.search(rf"^\| `{name}` \|.*\| (.*) \|$", text("hooks.md"), re.MULTILINE)
    cls = HOOKS.get(name)
    hook = cls(**helpers.REQUIRED.get(name, {}))
    shown = dict(re.findall(r"`(\w+)(?:=([^`]+))?`", row[1]))
    shown.pop("None", None)  # what leaves a member out
    assert set(shown) == set(inspect.signature(cls.__init__).parameters) - {"self"}
    for argument, default in shown.items():
        if default:
            value = getattr(hook, argument)
            assert repr(value) == default or (value in ([], {}) and default == "None")
        elif name == "StabilityHook":
            assert argument in MEMBERS
        else:
            assert argument in helpers.REQUIRED[name]


def test_the_table_of_health_has_the_real_thresholds():
    told = {
        "range of the loss": (t.RANGE, t.RANGE_SPREADS),
        "healthy past": (t.WINDOW,),
        "patience": (t.PATIENCE,),
        "what one batch may add": (100 * t.CLIP / t.PATIENCE,),
        "watched": (100 * t.WATCH,),
        "well again by itself": (t.CALM,),
        "dead gradients": (t.DEAD, t.DEAD_PATIENCE),
        "clamped logits": (t.CLAMPED_PATIENCE,),
        "optimizers that compete": (t.AGAINST_EACH_OTHER,),
    }
    for what, values in told.items():
        row = rf"^\| {what} \| (.*?) \|"
        (cell,) = re.findall(row, text("health.md"), re.MULTILINE)
        numbers = [float(number) for number in re.findall(r"[\d.]*\d", cell)]
        assert set(values) <= set(numbers), what
    assert (t.CLAMPED, t.METRIC_FALLEN) == (0.5, 0.1)  # told in words


@pytest.mark.parametrize("page", BOTH, ids=str)
def test_nothing_unfinished(page):
    assert "@@" not in page.read_text()


def test_the_readme_is_short():
    assert all(
        len(page.read_text().splitlines()) <= 150
        for page in BOTH
        if page.parent == helpers.ROOT
    )


def test_every_page_is_in_the_index_of_its_language():
    for language in ("en", "zh_cn"):
        index = (DOCS / language / "index.md").read_text()
        entries = re.findall(r"^(\w[\w-]*)$", index, re.MULTILINE)
        pages = {page.stem for page in (DOCS / language).glob("*.md")}
        assert sorted(entries) == sorted(pages - {"index"})
