"""Run the first batch of validation in FP32 and in FP16, without a trace."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..engine import private, torch_api
from ..engine.batches import batch_tensors
from ..engine.describe import batch_size
from ..engine.finding import Finding
from ..engine.preserved import alone
from ..engine.rng import undisturbed_rng
from ..engine.run import bare_model
from ..engine.runtime import Runtime
from ..engine.tensors import nonfinite_names
from ..engine.unnoticed import unnoticed
from ..precision.half_rehearsal import half_rehearsal
from .first_batch import peak, worst
from .setup_rules import Predictions, validation


def asks_for_fp16(runner: Runner) -> bool:
    """Whether validation or test is configured to run in FP16."""
    return any(
        loop.get("fp16") if isinstance(loop, dict) else getattr(loop, "fp16", False)
        for loop in (private.val_loop(runner), private.test_loop(runner))
    )


def fp16_off(runner: Runner) -> None:
    """Let validation and test run in FP32."""
    for loop in (private.val_loop(runner), private.test_loop(runner)):
        if isinstance(loop, dict):  # the config that it is going to be built from
            if "fp16" in loop:
                loop["fp16"] = False
        elif hasattr(loop, "fp16"):
            vars(loop).update(fp16=False)


def validation_findings(runner: Runner, layers: list[str]) -> list[Finding]:
    """Compare FP16 validation with FP32.

    Args:
        runner: Its validation loop has a data loader; neither of them is touched.
        layers: Names of the classifier layers, to look at the logits as well.
    """
    loop = private.val_loop(runner)
    if not isinstance(loop, BaseLoop):
        raise ValueError("there is no validation loop with a batch to take")
    model = bare_model(runner)
    device = next(model.parameters()).device.type
    if device == "cpu":
        torch_api.check_rehearsal()
        half: AbstractContextManager[Any] = half_rehearsal()
    else:
        half = torch.autocast(device, dtype=torch.float16)
    with undisturbed_rng():
        batch = first_batch(loop.dataloader)
        fp32 = _predict(runner, model, batch, layers, nullcontext())
        fp16 = _predict(runner, model, batch, layers, half)
    return validation(fp32, fp16)


def first_batch(loader: DataLoader) -> Any:
    """The first samples of a data loader, whose sampler and workers stay as they are.

    In a worker of its own if the loader has workers: what a dataset opens there (LMDB,
    HDF5) must not be open in this process when others are forked from it.
    """
    dataset: Any = loader.dataset
    indices = list(range(min(batch_size(loader) or 1, len(dataset))))
    few = DataLoader(
        dataset,
        batch_sampler=[indices],
        num_workers=min(1, loader.num_workers),
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )
    return next(iter(few))


def _predict(
    runner: Runner,
    model: Any,
    batch: Any,
    layers: list[str],
    precision: AbstractContextManager[Any],
) -> Predictions:
    peaks: dict[str, list[Tensor]] = {name: [] for name in layers}
    with ExitStack() as stack:
        for context in (
            Runtime.of(runner).quiet(),
            alone(),
            unnoticed(model),
            torch.no_grad(),
        ):
            stack.enter_context(context)
        for name in layers:
            handle = _watch(model.get_submodule(name), peaks[name])
            stack.callback(handle.remove)
        model.eval()
        for module in _without_statistics(model):
            module.train()
        try:
            with precision:
                outputs = model.val_step(copy.deepcopy(batch))
        except torch.cuda.OutOfMemoryError:
            raise  # not of validation, which is over before training goes on
        except Exception as e:
            return Predictions(error=f"{type(e).__name__}: {e}")
    named = dict(_predicted(outputs))
    tensors = {n: t for name, p in named.items() for n, t in batch_tensors(p, name)}
    boxes = [len(p) for p in named.values() if _is_instances(p)]
    return Predictions(
        sum(boxes) if boxes else None,
        nonfinite_names(tensors),
        {name: worst(seen) for name, seen in peaks.items() if seen},
    )


def _watch(module: nn.Module, seen: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        for _, tensor in batch_tensors(output):
            if tensor.is_floating_point():
                seen.append(peak(module, tensor))

    return module.register_forward_hook(hook)


def _without_statistics(model: nn.Module) -> list[nn.Module]:
    """BatchNorm layers that have averaged nothing yet.

    In evaluation they do not normalise at all, and activations of a deep network that
    is to be trained from scratch grow beyond anything that it will see later.
    """
    return [
        module
        for module in model.modules()
        if private.is_batch_norm(module)
        and module.running_mean is not None
        and not module.num_batches_tracked
        and not module.running_mean.any()
    ]


def _predicted(outputs: Any) -> Iterator[tuple[str, Any]]:
    """What was predicted, by name: ``pred_*`` of data samples."""
    if not isinstance(outputs, (list, tuple)):
        outputs = [outputs]
    for i, sample in enumerate(outputs):
        fields = sample.items() if hasattr(sample, "items") else ()
        for name, value in fields:
            if str(name).startswith("pred"):
                yield f"{name} of image {i}", value


def _is_instances(value: Any) -> bool:
    return hasattr(value, "scores") or hasattr(value, "bboxes")
