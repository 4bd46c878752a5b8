"""The folder that an incident is kept in, so that it can be run again."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from ..engine.batches import batch_tensors, has_tensor
from ..engine.files import remove
from ..engine.ledger import strict_json
from ..engine.rng import capture_rng, rng_state, set_rng_state, undisturbed_rng
from ..engine.run import left_out_buffers
from ..engine.safe_load import allow_mmengine_checkpoints
from ..engine.safe_read import allow_under_names, read_safely
from ..engine.tensors import is_named_tuple
from .replay import Call
from .report import as_text

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
    """Write an incident's folder, whole or not at all.

    Args:
        folder: Must not exist; its parents are made.
        data: Of :func:`~amp_hooks.forensics.report.report`; gets a note on what found
            no room.
        call: Its batch is written, if it fits.
        model: Its weights and buffers are written, if they fit; ``None``: they are not
            wanted.
        max_bytes: Room for the tensors.

    Returns:
        ``data``, with ``bytes``: of the files.

    Raises:
        OSError: It cannot be written. Nothing of it is left.
    """
    temporary = folder + ".tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    notes, used = list(data["notes"]), 0
    wanted: dict[str, Callable[[], Any]] = {
        BATCH: lambda: dict(args=call.args, kwargs=call.kwargs, rng=rng_state(call.rng))
    }
    if model is not None:
        wanted[WEIGHTS] = lambda: _weights(model)
    try:
        os.makedirs(temporary)
        for name, content in wanted.items():
            note, size = _save(
                content(), os.path.join(temporary, name), max_bytes - used
            )
            notes += [f"{name} was left out: {note}."] if note else []
            used += size
        data = dict(data, notes=notes, bytes=used)
        text = json.dumps(strict_json(data), indent=1, allow_nan=False, default=str)
        Path(temporary, REPORT).write_text(text, encoding="utf-8")
        Path(temporary, TEXT).write_text(as_text(data), encoding="utf-8")
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return data


def _save(content: Any, path: str, room: float) -> tuple[str, int]:
    """Why a file was not kept, or '', and its size in bytes."""
    size = sum(t.numel() * t.element_size() for _, t in batch_tensors(content))
    if size <= room:
        try:
            torch.save(_moved(content), path)
        except OSError:
            raise
        except Exception as e:  # of a class that cannot be pickled
            remove(path)
            return f"{type(e).__name__}: {e}", 0
        size = os.path.getsize(path)  # masks are no tensors
        if size <= room:
            return "", size
        remove(path)
    needed, left = size / _MIB, max(room, 0) / _MIB
    return f"it needs {needed:.1f} MiB, and max_mib leaves {left:.1f}", 0


def load_report(folder: str) -> dict[str, Any]:
    """The report of an incident's folder.

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
    allow_under_names(_structures())
    path = Path(folder, BATCH)
    batch = (
        torch.load(path, map_location="cpu", weights_only=False)
        if trust
        else read_safely(path, map_location="cpu")
    )
    with undisturbed_rng():
        set_rng_state(batch["rng"])
        return Call(tuple(batch["args"]), batch["kwargs"], capture_rng())


def to_device(call: Call, device: torch.device) -> Call:
    """The same call, with its tensors on another device."""
    return Call(_moved(call.args, device), _moved(call.kwargs, device), call.rng)


def load_weights(model: nn.Module, folder: str) -> None:
    """Give a model the weights and buffers of an incident.

    Raises:
        FileNotFoundError: The weights were not kept.
        RuntimeError: They are of another model; torch's message tells the names.
    """
    kept = read_safely(Path(folder, WEIGHTS), map_location="cpu")
    model.load_state_dict(kept["state_dict"])
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        for name, value in kept["buffers"].items():
            if name in buffers and buffers[name].shape == value.shape:
                buffers[name].copy_(value)


def _weights(model: nn.Module) -> dict[str, Any]:
    """As a checkpoint holds them, and beside them the buffers that it leaves out."""
    state = model.state_dict()
    return dict(state_dict=dict(state), buffers=left_out_buffers(model, state))


def _moved(tree: Any, device: Any = "cpu") -> Any:
    """The same on a device, with tensors that bring no larger storage along."""
    if isinstance(tree, Tensor):
        return tree.detach().to(device).clone()
    if isinstance(tree, dict):
        return {key: _moved(value, device) for key, value in tree.items()}
    if is_named_tuple(tree):
        return type(tree)(*(_moved(value, device) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(_moved(value, device) for value in tree)
    if isinstance(tree, BaseDataElement):
        moved = tree.new()
        for name, value in tree.items():
            moved.set_data({name: _moved(value, device)})
        return moved
    if has_tensor(tree):
        moved = copy.copy(tree)
        moved.tensor = _moved(tree.tensor, device)
        return moved
    return tree


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
