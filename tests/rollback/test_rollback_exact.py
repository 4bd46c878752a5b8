"""After a rollback a run is, bit for bit, the run that never was disturbed.

Run A trains to iteration 4, takes a snapshot, suffers for 20 iterations and goes back.
Run B resumes from the snapshot's file in a fresh process. Four batches make a cycle, so
that both see the same data from there on. Nothing of the position in the run (learning
rate, order of the data) depends on the iteration.
"""

import shutil

import pytest
import torch

from amp_hooks.engine.safe_load import allow_mmengine_checkpoints
from amp_hooks.engine.safe_read import read_safely
from amp_hooks.engine.tensors import named_tensors
from tests import helpers, processes
from tests.integration.test_optim_wrapper_dict import options as two_optimizers

K, DISTURBED, AFTER = 4, 20, 50
WEIGHT = "bbox_head.retina_cls.weight"
SPAN = dict(at=K, iters=DISTURBED)
# Finite, so that only the rollback takes them back, and a loss that is not.
FAULTS = [
    dict(what="parameter", where="bbox_head.*weight", value=0.5, count=3, **SPAN),
    dict(what="buffer", where="backbone.*running_mean", value=9.0, **SPAN),
    dict(what="optimizer", where="backbone.*weight", value=7.0, **SPAN),
    dict(what="loss", value="nan", **SPAN),
]
EMA_FAULT = dict(what="ema", where=WEIGHT, value=3.0, **SPAN)


def hooks(accumulate, faults=()):
    injection = [dict(type="amp_hooks.FaultInjectionHook", faults=faults)]
    return [
        *(injection if faults else []),
        dict(type="amp_hooks.StepGuardHook"),
        dict(
            type="amp_hooks.RollbackHook",
            interval=K,
            probation=0,
            keep=30,
            patience=DISTURBED // accumulate,  # it counts accumulations
            window=100,
            share=1.0,
            scale_factor=1.0,
            lr_factor=1.0,
            warmup_iters=0,
        ),
    ]


def config(digits, work_dir, loop, last, case, **more):
    loop = dict(iters=last) if loop == "iter" else dict(epochs=last // 4)
    case = dict(case)
    options = {
        "train_dataloader.dataset.indices": 8,
        "train_dataloader.sampler.shuffle": False,
        "default_hooks.checkpoint.interval": 10**6,
        "default_hooks.checkpoint.save_last": True,
        **case.pop("options", {}),
        **more.pop("options", {}),
    }
    cfg = helpers.make_config(
        "retinanet", digits, work_dir, options=options, **loop, **case, **more
    )
    cfg.param_scheduler = None
    imports = ["tests.integration.test_optim_wrapper_dict", "tests.rollback.files_stay"]
    cfg.custom_imports = dict(imports=imports)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    return cfg


def train(cfg, path):
    """In a process of its own, as a user trains."""
    cfg.dump(path)
    processes.fork(*processes.train(path)[1:])


def learned(path):
    allow_mmengine_checkpoints()
    saved = read_safely(path)
    keys = [
        key for key in ("state_dict", "optimizer", "ema_state_dict") if key in saved
    ]
    tensors = dict(named_tensors({key: saved[key] for key in keys}))
    groups = saved["optimizer"]
    groups = groups.values() if "param_groups" not in groups else [groups]
    scales = [group.get("loss_scaler") for group in groups]
    return tensors, scales


CASES = {
    "fp32-ema-epoch": ("epoch", dict(precision="float32")),
    "bf16-ema-accumulation-iter": ("iter", dict(precision="bfloat16", accumulate=2)),
    "fp16-ema-two-optimizers-iter": ("iter", dict(options=two_optimizers())),
}


@pytest.mark.parametrize(("loop", "case"), CASES.values(), ids=CASES)
def test_weights_optimizer_scaler_and_ema_are_those_of_a_fresh_process(
    digits, tmp_path, loop, case
):
    faults = [*FAULTS, *([EMA_FAULT] if case.get("ema", True) else [])]
    a, b = tmp_path / "a", tmp_path / "b"
    last = K + DISTURBED + AFTER
    # Epochs end at multiples of four iterations.
    last += -last % 4
    accumulations = case.get("accumulate", 1)
    cfg = config(digits, a, loop, last, case, hooks=hooks(accumulations, faults))
    train(cfg, tmp_path / "a.py")
    (ledger,) = a.glob("*/stability.jsonl")
    events = [e for e in helpers.read_ledger(ledger) if e["event"] == "rollback"]
    assert [(e["iter"], e["target_iter"]) for e in events] == [(K + DISTURBED - 1, K)]

    b.mkdir()
    shutil.copy(a / "rollback" / f"iter_{K}.pth", b / "from.pth")
    cfg = config(digits, b, loop, last - DISTURBED, case, hooks=hooks(accumulations))
    cfg.load_from, cfg.resume = str(b / "from.pth"), True
    train(cfg, tmp_path / "b.py")

    ends = [(work_dir / "last_checkpoint").read_text() for work_dir in (a, b)]
    (tensors_a, scales_a), (tensors_b, scales_b) = map(learned, ends)
    assert scales_a == scales_b
    assert tensors_a.keys() == tensors_b.keys()
    differ = [n for n, t in tensors_a.items() if not torch.equal(t, tensors_b[n])]
    assert differ == []
    # They did train: nothing here is equal to what the snapshot held.
    start, _ = learned(b / "from.pth")
    moved = [n for n in start if n.endswith("weight") and "state_dict." in n]
    assert any(not torch.equal(start[n], tensors_b[n]) for n in moved)
