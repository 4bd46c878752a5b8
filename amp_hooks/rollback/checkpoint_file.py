"""Checkpoint files: what is wrong with one, and how far it goes."""

from __future__ import annotations

import os
import re
import time
import zipfile
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..engine.safe_read import read_safely, refused_global
from ..engine.tensors import is_bound, named_tensors, nonfinite_names
from ..engine.words import first_names

# What must be finite in a checkpoint. The log history beside it may well hold NaN.
LEARNED_KEYS = ("state_dict", "optimizer", "ema_state_dict")
_OF_MODEL = re.compile(r"^(ema_state_dict\.module|state_dict|ema_state_dict)\.")
# How the words of `damage` begin for a file that torch will not unpickle.
REFUSED = "torch's weights_only protection refuses it"

_PART = re.compile(r"rank(\d+)\.pth")
_ZIP = b"PK\x03\x04"  # what torch.save writes since torch 1.6


def damage(path: str, ignore: Container[str] = frozenset()) -> str | None:
    """What keeps a run from going on from a checkpoint file, in words.

    The file is read as a whole and nothing in it is executed: it is unpickled with
    ``weights_only=True`` on every torch. Its records are compared with their checksums,
    which ``torch.load`` does not do.

    Args:
        path: Local.
        ignore: What may hold NaN or infinity, as ``model.<name>``, beside what the
            file itself names as such.

    Returns:
        ``None`` for a complete, finite MMEngine checkpoint.
    """
    if not os.path.exists(path):
        return "it does not exist"
    if parts := parts_of(path):
        return _damage_of_parts(parts, ignore)
    if not os.path.isfile(path):
        return "it is not a file"
    try:
        if os.path.getsize(path) == 0:
            return "it is empty"
        if words := _broken_archive(path):
            return words
        checkpoint = read_safely(path, map_location="cpu")
    except OSError as e:
        return f"it cannot be read ({e.strerror or e})"
    except Exception as e:  # what a damaged pickle leads to may be anything
        return _not_loaded(e)
    return _not_a_checkpoint(checkpoint) or _bad_numbers(checkpoint, ignore)


def part_of_rank(path: str, rank: int) -> str:
    """Of a checkpoint of a sharded model, which is a folder, the file of a rank."""
    return os.path.join(path, f"rank{rank}.pth")


def parts_of(path: str) -> list[str]:
    """The files of a checkpoint of a sharded model, by rank; empty if it is none."""
    names = os.listdir(path) if os.path.isdir(path) else []
    known = [match for match in map(_PART.fullmatch, names) if match]
    known.sort(key=lambda match: int(match[1]))
    return [os.path.join(path, match[0]) for match in known]


def _damage_of_parts(parts: list[str], ignore: Container[str]) -> str | None:
    for path in parts:
        if words := damage(path, ignore):
            if "ShardedTensor" in words:
                return "it holds FSDP's own ShardedTensors, which weights_only refuses"
            return f"of {os.path.basename(path)}: {words}"
    metas = [read_safely(p, map_location="cpu", mmap=True)["meta"] for p in parts]
    ranks = metas[0].get("ranks", len(parts))
    if ranks != len(parts):
        return f"{len(parts)} of its {ranks} files are there"
    same = ("iter", "ranks", "units")
    if any(meta.get(key) != metas[0].get(key) for meta in metas for key in same):
        return "its files are of different snapshots"
    return None


def nonfinite_in(
    checkpoint: Mapping[str, Any], ignore: Container[str] = frozenset()
) -> list[str]:
    """Names of tensors in an MMEngine checkpoint that hold NaN or infinity.

    Args:
        checkpoint: As MMEngine saves it.
        ignore: As for :func:`damage`.
    """
    own = _by_design(checkpoint)
    learned = {key: checkpoint[key] for key in LEARNED_KEYS if key in checkpoint}
    names = nonfinite_names(learned, limit=1000)
    tensors = dict(named_tensors(learned)) if names else {}
    found = []
    for name in names:
        bare = _OF_MODEL.sub("", name, count=1)
        if bare == name:  # an optimizer's
            if not is_bound(name, tensors[name]):
                found.append(name)
            continue
        inside = f"model.{bare}"
        if inside in ignore or bare in own:
            continue
        value = checkpoint.get("state_dict", {}).get(bare)
        masks = getattr(ignore, "masks", None)
        if value is None or masks is None or not masks(inside, value):
            found.append(name)
    return found


def _by_design(checkpoint: Mapping[str, Any]) -> set[str]:
    """What RollbackHook says in a checkpoint may hold NaN or infinity."""
    hooks = checkpoint.get("amp_hooks")
    states = hooks.values() if isinstance(hooks, Mapping) else ()
    names = [s.get("by_design", ()) for s in states if isinstance(s, Mapping)]
    return {str(name) for of_hook in names for name in of_hook}


@dataclass(frozen=True)
class Header:
    """What a checkpoint says of itself.

    Attributes:
        iter: Complete iterations.
        time: When it was saved, as ``20240131_235959``, local time.
        optimizer: Whether it holds an optimizer's state.
        ema: Whether it holds an EMAHook's.
        schedulers: Whether it holds those of the schedulers.
    """

    iter: int
    time: str
    optimizer: bool
    ema: bool = False
    schedulers: bool = field(default=True, compare=False)


def read_header(path: str) -> Header | None:
    """The header of a checkpoint file, or ``None`` if it cannot be read.

    Tensors are left on the disk where the format allows it.
    """
    try:
        path = next(iter(parts_of(path)), path)
        with open(path, "rb") as f:
            mapped = f.read(len(_ZIP)) == _ZIP
        checkpoint = read_safely(path, map_location="cpu", mmap=mapped)
        if _not_a_checkpoint(checkpoint):
            return None
        meta = checkpoint["meta"]
        saved = meta.get("time")
        if not isinstance(saved, str):
            moment = time.localtime(os.path.getmtime(path))
            saved = time.strftime("%Y%m%d_%H%M%S", moment)
        return Header(
            meta["iter"],
            saved,
            "optimizer" in checkpoint,
            "ema_state_dict" in checkpoint,
            "param_schedulers" in checkpoint,
        )
    except Exception:  # `damage` has the words for it
        return None


def _broken_archive(path: str) -> str | None:
    with open(path, "rb") as f:
        if f.read(len(_ZIP)) != _ZIP:
            return None  # of an older torch; it has no checksums
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(record.CRC for record in archive.infolist()):
                return None  # torch.serialization.set_crc32_options(False)
            record = archive.testzip()
    except OSError:
        raise
    except Exception as e:  # BadZipFile, and what a wrong length or method leads to
        return f"it is truncated or damaged ({e})"
    return (
        None if record is None else f"it is damaged: the checksum of {record} differs"
    )


def _not_loaded(error: Exception) -> str:
    text = str(error)
    if refused := refused_global(error):
        return (
            f"{REFUSED}: it asks for {refused}, which no checkpoint of MMEngine needs"
        )
    if isinstance(error, AttributeError):  # of the stand-in for getattr, see safe_load
        return f"{REFUSED}: {text}"
    first = text.strip().split("\n")[0][:200]
    return f"it cannot be loaded ({type(error).__name__}: {first})"


def _not_a_checkpoint(checkpoint: Any) -> str | None:
    wrong = "it is not a checkpoint of MMEngine"
    if not isinstance(checkpoint, Mapping):
        return f"{wrong} but a {type(checkpoint).__name__}"
    meta = checkpoint.get("meta")
    if not isinstance(meta, Mapping) or not isinstance(meta.get("iter"), int):
        return f"{wrong}: it has no meta.iter"
    if not isinstance(checkpoint.get("state_dict"), Mapping):
        return f"{wrong}: it has no state_dict"
    return None


def _bad_numbers(checkpoint: Mapping[str, Any], ignore: Container[str]) -> str | None:
    if names := nonfinite_in(checkpoint, ignore):
        return f"it is not finite: {first_names(names)}"
    for name, value in _hyper_parameters(checkpoint.get("optimizer", {})):
        low = 0.0 if name == "loss scale" else -float("inf")
        if not low < value < float("inf"):
            return f"its {name} is {value}"
    return None


def _hyper_parameters(state: Any) -> Iterator[tuple[str, float]]:
    """The numbers that are no tensors and can ruin a run, of one optimizer or more."""
    if not isinstance(state, Mapping):
        return
    scaler, groups = state.get("loss_scaler"), state.get("param_groups")
    if isinstance(scaler, Mapping):
        scale = scaler.get("scale")
        if isinstance(scale, (int, float)):
            yield "loss scale", scale
    for group in groups if isinstance(groups, list) else ():
        lr = group.get("lr") if isinstance(group, Mapping) else None
        if isinstance(lr, (int, float)):
            yield "learning rate", lr
    for key, value in state.items():
        if key not in ("loss_scaler", "param_groups", "state"):
            yield from _hyper_parameters(value)
