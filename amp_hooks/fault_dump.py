"""The folder that a fault is kept in, so that it can be run again."""

from __future__ import annotations

import json
import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from .batches import batch_tensors
from .core.files import flush_to_disk
from .core.ledger import strict_json
from .fault_report import as_text
from .replay import Call
from .rng import capture_rng, rng_state, set_rng_state, undisturbed_rng
from .safe_load import allow_mmengine_checkpoints

REPORT, TEXT = "report.json", "report.txt"
BATCH, WEIGHTS = "batch.pth", "weights.pth"
_MIB = 2**20


def save_dump(
    folder: str,
    data: dict[str, Any],
    call: Call,
    model: nn.Module | None,
    max_bytes: float,
) -> dict[str, Any]:
    """Write a fault's folder, whole or not at all.

    Args:
        folder: Must not exist; its parents are made.
        data: Of :func:`fault_report.report`; gets a note on what found no room.
        call: Its batch is written, if it fits.
        model: Its weights and buffers are written, if they fit; ``None``: they are not
            wanted.
        max_bytes: Room for the tensors.

    Returns:
        ``data``, with ``bytes``: of the files.

    Raises:
        OSError: It cannot be written. Nothing of it is left.
    """
    notes = list(data["notes"])
    batch = _moved(dict(args=call.args, kwargs=call.kwargs))
    files: dict[str, Any] = {}
    wanted: list[tuple[str, Any]] = [(BATCH, dict(batch, rng=rng_state(call.rng)))]
    if model is not None:
        wanted.append((WEIGHTS, _weights(model)))
    for name, content in wanted:
        size = sum(t.numel() * t.element_size() for _, t in batch_tensors(content))
        if size > max_bytes:
            notes.append(
                f"{name} was left out: it needs {size / _MIB:.0f} MiB, and max_mib "
                f"leaves {max_bytes / _MIB:.0f}."
            )
            continue
        max_bytes -= size
        files[name] = content
    data = dict(data, notes=notes)
    temporary = folder + ".tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        os.makedirs(temporary)
        for name, content in files.items():
            torch.save(_moved(content), os.path.join(temporary, name))
        sizes = (os.path.getsize(os.path.join(temporary, name)) for name in files)
        data["bytes"] = sum(sizes)
        text = json.dumps(strict_json(data), indent=1, allow_nan=False)
        Path(temporary, REPORT).write_text(text, encoding="utf-8")
        Path(temporary, TEXT).write_text(as_text(data), encoding="utf-8")
        os.replace(temporary, folder)
        flush_to_disk(os.path.dirname(folder))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return data


def load_report(folder: str) -> dict[str, Any]:
    """The report of a fault's folder.

    Raises:
        FileNotFoundError: It is not such a folder.
    """
    data: dict[str, Any] = json.loads(Path(folder, REPORT).read_text(encoding="utf-8"))
    return data


def load_call(folder: str, trust: bool = False) -> Call:
    """What the model was called with.

    Args:
        folder: Of :func:`save_dump`.
        trust: The file may run code of its own while it is read, as any pickle may.

    Raises:
        FileNotFoundError: The batch was not kept.
        pickle.UnpicklingError: It holds classes other than torch's, numpy's, mmengine's
            and mmdet's, and is not trusted.
    """
    allow_mmengine_checkpoints()
    torch.serialization.add_safe_globals(_structures())
    batch = torch.load(Path(folder, BATCH), map_location="cpu", weights_only=not trust)
    with undisturbed_rng():
        set_rng_state(batch["rng"])
        return Call(tuple(batch["args"]), batch["kwargs"], capture_rng())


def to_device(call: Call, device: torch.device) -> Call:
    """The same call, with its tensors on another device."""
    return Call(_moved(call.args, device), _moved(call.kwargs, device), call.rng)


def load_weights(model: nn.Module, folder: str) -> None:
    """Give a model the weights and buffers of a fault.

    Raises:
        FileNotFoundError: The weights were not kept.
        RuntimeError: They are of another model; torch's message tells the names.
    """
    kept = torch.load(Path(folder, WEIGHTS), map_location="cpu", weights_only=True)
    model.load_state_dict(kept["state_dict"])
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        for name, value in kept["buffers"].items():
            if name in buffers and buffers[name].shape == value.shape:
                buffers[name].copy_(value)


def _weights(model: nn.Module) -> dict[str, Any]:
    """As a checkpoint holds them, and beside them the buffers that it leaves out."""
    state = model.state_dict()
    left_out = {n: b.detach() for n, b in model.named_buffers() if n not in state}
    return dict(state_dict=dict(state), buffers=left_out)


def _moved(tree: Any, device: Any = "cpu") -> Any:
    """The same on a device, with tensors that bring no larger storage along."""
    if isinstance(tree, BaseDataElement):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: _moved(value, device) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_moved(value, device) for value in tree)
    return tree.detach().to(device).clone() if isinstance(tree, Tensor) else tree


def _structures() -> list[Any]:
    """Classes that a batch of mmengine or mmdet consists of."""
    found = [BaseDataElement, InstanceData, PixelData]
    try:
        detection = import_module("mmdet.structures")
    except ImportError:
        return found
    boxes, masks = detection.bbox.HorizontalBoxes, detection.mask
    return [
        *found,
        detection.DetDataSample,
        boxes,
        masks.BitmapMasks,
        masks.PolygonMasks,
    ]
