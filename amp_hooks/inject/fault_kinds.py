"""How each kind of fault is brought about in a run."""

from __future__ import annotations

import errno
import os
import time
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.batches import boxes_of, data_samples, image_size, instances_of
from ..engine.files import Save
from ..engine.named import named_buffers, named_modules, named_parameters
from ..engine.patch import replace, wrap
from ..engine.run import bare_model, iter_wrappers
from ..engine.runtime import Runtime
from ..engine.sharded import is_sharded
from ..engine.tensors import map_tensors
from .damage import damage_loss, spoil_boxes
from .occurrence import Occurrence, ema_models


# --- in the batch, before any other hook sees it ----------------------------------
def _images(fault: Occurrence, batch: Any) -> None:
    if isinstance(batch, dict) and "inputs" in batch:
        batch["inputs"] = map_tensors(
            lambda image: fault.damaged(image.float(), "inputs"), batch["inputs"]
        )


def _boxes(fault: Occurrence, batch: Any) -> None:
    tree = batch.get("data_samples") if isinstance(batch, dict) else None
    for i, sample in enumerate(data_samples(tree)):
        boxes, old = boxes_of(sample)
        if old is None or not len(old) or old.shape[-1] != 4:
            continue
        where, instances = instances_of(sample)
        name = f"data_samples[{i}].{where}.bboxes"
        rows = fault.places(len(old), name)
        size = image_size(sample)
        width = float(size[1] if size else old.max())
        bad = spoil_boxes(old, fault.fault.parsed, rows, width)
        if boxes is old:
            instances.bboxes = bad
        else:
            instances.bboxes = boxes.clone()
            instances.bboxes.tensor = bad
        fault.hit(name)


# --- in the state, after every snapshot of this iteration -------------------------
def _parameter(fault: Occurrence) -> None:
    for name, p in fault.matching(named_parameters(bare_model(fault.runner))):
        fault.damage(p, name)


def _buffer(fault: Occurrence) -> None:
    for name, b in fault.matching(named_buffers(bare_model(fault.runner))):
        fault.damage(b, name)


def _optimizer(fault: Occurrence) -> None:
    for _, wrapper in iter_wrappers(fault.runner.optim_wrapper):
        state = wrapper.optimizer.state
        for name, p in fault.matching(named_parameters(bare_model(fault.runner))):
            for key, t in state.get(p, {}).items():
                if isinstance(t, Tensor) and key != "step":  # Adam counts in floats
                    fault.damage(t, f"{name}.{key}")


def _ema(fault: Occurrence) -> None:
    for model in ema_models(fault.runner):
        for name, p in fault.matching(named_parameters(model)):
            fault.damage(p, name)


# --- during train_step ------------------------------------------------------------
def _modules(fault: Occurrence) -> list[tuple[str, nn.Module]]:
    return fault.matching(named_modules(bare_model(fault.runner)))


def _forward(fault: Occurrence, stack: ExitStack) -> None:
    for name, module in _modules(fault):

        def hook(m: nn.Module, args: Any, output: Any, name: str = name) -> Any:
            if not (m.training or torch.is_grad_enabled()):
                return None
            return map_tensors(lambda t: fault.damaged(t, name), output)

        # First in line, so that monitors see it and a clamp takes hold of it.
        handle = module.register_forward_hook(hook, prepend=True)
        stack.callback(handle.remove)


def _gradient(fault: Occurrence, stack: ExitStack) -> None:
    if is_sharded(fault.runner):
        _gradient_of_shards(fault, stack)
        return
    for name, p in fault.matching(named_parameters(bare_model(fault.runner))):
        if p.requires_grad:

            def hook(grad: Tensor, name: str = name) -> Tensor:
                return fault.damaged(grad, name)

            stack.callback(p.register_hook(hook).remove)


def _gradient_of_shards(fault: Occurrence, stack: ExitStack) -> None:
    """FSDP reduces gradients past the hooks of parameters: what this rank then has."""
    named = fault.matching(named_parameters(bare_model(fault.runner)))

    def backward(original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        for name, p in named:
            if p.grad is not None:
                fault.damage(p.grad, name)
        return result

    for _, wrapper in iter_wrappers(fault.runner.optim_wrapper):
        stack.callback(wrap(wrapper, "backward", backward))


def _loss(fault: Occurrence, stack: ExitStack) -> None:
    model: Any = bare_model(fault.runner)
    original = model.parse_losses

    def parse_losses(losses: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        losses = dict(losses)
        for name, loss in fault.matching(iter(losses.items())):
            losses[name] = damage_loss(loss, fault.fault.parsed)
            fault.hit(name)
        return original(losses, *args, **kwargs)

    replace(model, "parse_losses", parse_losses, stack)


def _raise(fault: Occurrence, stack: ExitStack) -> None:
    def fail(name: str) -> None:
        fault.hit(name)
        raise ValueError(fault.fault.parsed)

    for name, module in _modules(fault):

        def hook(m: nn.Module, args: Any, name: str = name) -> None:
            if m.training or torch.is_grad_enabled():
                fail(name)

        handle = module.register_forward_pre_hook(hook, prepend=True)
        stack.callback(handle.remove)
    if not fault.fault.where:
        model: Any = bare_model(fault.runner)

        def parse_losses(*args: Any, **kwargs: Any) -> None:
            fail("parse_losses")

        replace(model, "parse_losses", parse_losses, stack)


# --- from the first hook of the iteration until the next iteration ----------------
def disk(fault: Occurrence, stack: ExitStack) -> None:
    """Let this runner's checkpoints fail, or take long.

    ``torch.save`` is replaced only while the runner saves one, so that nothing is left
    of it in the process however training ends.
    """
    original = fault.runner.save_checkpoint
    runtime = Runtime.of(fault.runner)
    saver = runtime.saver

    def broken(save: Save, path: str) -> Save:
        def torch_save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
            if seconds is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            time.sleep(seconds)
            return save(obj, f, *args, **kwargs)

        seconds = fault.fault.parsed
        fault.hit(os.path.basename(path))
        fault.tell()
        return torch_save

    def save_checkpoint(out_dir: str, filename: str, *args: Any, **kwargs: Any) -> Any:
        save = torch.save

        def torch_save(*args: Any, **kwargs: Any) -> Any:
            return broken(save, os.path.join(out_dir, filename))(*args, **kwargs)

        with ExitStack() as inner:
            replace(torch, "save", torch_save, inner)
            return original(out_dir, filename, *args, **kwargs)

    replace(fault.runner, "save_checkpoint", save_checkpoint, stack)
    # What is written in the background.
    replace(runtime, "saver", lambda path: broken(saver(path), path), stack)


IN_BATCH = {"images": _images, "boxes": _boxes}
IN_STATE = {
    "parameter": _parameter,
    "buffer": _buffer,
    "optimizer": _optimizer,
    "ema": _ema,
}
IN_STEP = {"forward": _forward, "gradient": _gradient, "loss": _loss, "raise": _raise}
