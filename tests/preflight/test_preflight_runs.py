"""Nothing is found in healthy recipes, and several processes agree on what is."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor
from mmengine.runner import Runner

from tests import helpers, small
from tests.integration.test_ddp import run_on_two_ranks, train_on_two_ranks
from tests.test_suite import small_recipe

PREFLIGHT = dict(type="amp_hooks.AmpPreflightHook", config_check=False)
CONFIGS = helpers.ROOT / "configs/digits"


def assert_nothing_found(runner):
    (line,) = helpers.ledger(runner, "preflight")
    assert line["findings"] == []
    hook = helpers.hook_of(runner, "AmpPreflightHook")
    assert hook.findings == []
    assert hook.notes == []


class Noise(BaseDataPreprocessor):
    """Draws one of a pair of numbers; the data loader has drawn the other one."""

    def forward(self, data, training=False):
        data = super().forward(data, training)
        data["x"] = data["x"] + 0.1 * np.random.standard_normal()  # noqa: NPY002
        return data


class Noisy(small.Small):
    def __init__(self):
        super().__init__()
        self.data_preprocessor = Noise()


class Draw(small.Hook):
    priority = "VERY_HIGH"

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        np.random.standard_normal()  # noqa: NPY002


def test_numpys_generator_goes_on_as_without_it(tmp_path):
    """It makes normal numbers in pairs, and keeps the second where nobody sees it."""
    losses = []
    for hooks in ([], [PREFLIGHT]):
        seen = small.Seen()
        small.build(tmp_path, [Draw(), seen, *hooks], model=Noisy, iters=6).train()
        losses.append(seen.losses)
    assert losses[0] == losses[1]


# --- healthy recipes ------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # of mmdet, told by torch
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize(
    "detector", ["faster_rcnn", "cascade_rcnn", "retinanet", "fcos", "rtmdet", "detr"]
)
def test_nothing_is_found_in_small_detectors(monkeypatch, digits, detector):
    monkeypatch.syspath_prepend(str(helpers.ROOT / "scripts"))
    import fault_matrix

    runner = fault_matrix.make_runner(
        detector, "float16", "iter", 1, [PREFLIGHT], str(digits)
    )
    runner._val_loop = runner._val_dataloader = runner._val_evaluator = None
    runner.train()
    assert_nothing_found(runner)


@pytest.mark.parametrize(
    "name", ["faster-rcnn_r18_fpn_fp16", "retinanet_r18_fpn_fp16_stability"]
)
def test_nothing_is_found_in_the_example_configs(digits, tmp_path, name):
    """At their real size, FP16 validation asked for."""
    cfg = Config.fromfile(CONFIGS / f"{name}.py")
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = cfg.visualizer.name = f"preflight-{name}"
    cfg.log_level = "ERROR"
    cfg.custom_hooks = [PREFLIGHT]
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = str(digits)
    cfg.val_evaluator.ann_file = str(digits / "val.json")
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=1, val_begin=10)
    cfg.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=True)
    cfg.param_scheduler = None
    cfg.val_cfg.fp16 = True
    runner = Runner.from_cfg(cfg)
    runner.train()
    runner.visualizer.close()
    assert_nothing_found(runner)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize(
    "config",
    ["yolox/yolox_tiny_8xb8-300e_coco.py", "rtmdet/rtmdet_tiny_8xb32-300e_coco.py"],
)
def test_nothing_is_found_in_real_recipes(digits, tmp_path, config):
    """YOLOX takes raw pixels by design; both augment batches with random numbers."""
    states = []
    for hooks in ([], [PREFLIGHT]):
        work_dir = tmp_path / str(len(hooks))
        cfg = small_recipe(config, digits, work_dir)
        cfg.experiment_name = cfg.visualizer.name = f"{work_dir}/{config}"
        cfg.optim_wrapper.update(
            type="amp_hooks.CpuAmpOptimWrapper", loss_scale="dynamic"
        )
        cfg.custom_hooks += hooks
        cfg.randomness = dict(seed=1)
        runner = Runner.from_cfg(cfg)
        runner.train()
        runner.visualizer.close()
        states.append(helpers.state(runner))
    assert_nothing_found(runner)
    assert [n for n in states[0] if not torch.equal(states[0][n], states[1][n])] == []


# --- several processes ----------------------------------------------------------------


def test_two_ranks_train_as_without_it(digits, tmp_path):
    options = {"optim_wrapper.loss_scale": 128.0}
    a, b = (
        train_on_two_ranks(
            digits, tmp_path / str(i), iters=3, hooks=hooks, options=options
        )
        for i, hooks in enumerate([[], [PREFLIGHT]])
    )
    for rank in (0, 1):
        assert repr(a[rank]["losses"]) == repr(b[rank]["losses"])
        one, other = a[rank]["state"], b[rank]["state"]
        assert [n for n in one if not torch.equal(one[n], other[n])] == []
    (path,) = (tmp_path / "1").glob("*/stability.jsonl")
    (line,) = [e for e in helpers.read_ledger(path) if e["event"] == "preflight"]
    assert line["findings"] == []


def huge_images_on_rank_1():
    """Beyond FP16, not beyond FP32."""
    return helpers.fault("images", 0, value=1e9, count="all", rank=1)


def test_what_one_rank_finds_all_ranks_act_on(digits, tmp_path):
    hooks = [huge_images_on_rank_1(), dict(PREFLIGHT, on_fail="bf16")]
    a, b = train_on_two_ranks(digits, tmp_path / "w", iters=2, hooks=hooks)
    (path,) = (tmp_path / "w").glob("*/stability.jsonl")
    lines = helpers.read_ledger(path)
    (line,) = [e for e in lines if e["event"] == "preflight"]
    assert line["fails"] == ["nonfinite_amp"]
    assert line["done"] in ("bfloat16", "float32")
    parameters = [k for k in a["state"] if "running_" not in k and "ema" not in k]
    assert [
        k for k in parameters if not torch.equal(a["state"][k], b["state"][k])
    ] == []
    assert a["scale"] == b["scale"] == 65536.0


@helpers.NEEDS_FP16
def test_what_one_rank_finds_ends_all_ranks(digits, tmp_path):
    hooks = [huge_images_on_rank_1(), dict(PREFLIGHT, on_fail="raise")]
    done, out = run_on_two_ranks(digits, tmp_path / "w", iters=2, hooks=hooks)
    assert done.returncode != 0
    assert done.stderr.count("PreflightError: pre-flight: ") == 2
    assert "(Rank 1.)" in done.stderr
    assert not out.with_name(f"{out.name}.0").exists()
