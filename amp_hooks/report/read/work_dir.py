"""Read a work_dir."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .config import parse_config
from .history import Checkpoint, Line, RunHistory, Start, merge
from .scalars import from_lines, from_tensorboard, json_lines


class NoRunError(Exception):
    """The folder holds no training run; the message says what to give instead."""


def read_run(work_dir: Path, use_checkpoint: bool = True) -> RunHistory:
    """Everything that a training left in its work_dir, as one run.

    Files that are missing, cut short or of another version leave gaps, and a note.

    Args:
        work_dir: Holds one ``<timestamp>`` folder per start.
        use_checkpoint: Read the newest checkpoint too: the loss of every iteration.

    Raises:
        NoRunError: There is nothing of a training in it.
    """
    if not work_dir.is_dir():
        raise NoRunError(f"{work_dir} is not a folder. Give a run's work_dir.")
    notes: list[str] = []
    folders = sorted(p for p in work_dir.iterdir() if p.is_dir())
    starts = [read_start(folder, notes) for folder in folders]
    starts = [s for s in starts if s.lines or s.curves]
    checkpoint = _checkpoint(work_dir, notes) if use_checkpoint else None
    if not starts and not (checkpoint and checkpoint.curves):
        inside = (work_dir / "vis_data").is_dir() or (
            work_dir / "stability.jsonl"
        ).is_file()
        raise NoRunError(
            f"{work_dir} is one start of a run. Give the folder above it, the run's "
            "work_dir."
            if inside
            else f"{work_dir} holds no training run: in no folder of it there is a "
            "stability.jsonl, vis_data/scalars.json or readable TensorBoard file. Give "
            "the work_dir of the run, the folder with one <timestamp> folder per start."
            + "".join(f" {note}" for note in notes)
        )
    if starts and not any(start.config for start in starts):
        starts[-1].config = _config_beside(work_dir)
    return merge(str(work_dir), starts, checkpoint, notes)


def read_start(folder: Path, notes: list[str]) -> Start:
    """One ``<timestamp>`` folder; empty if it is something else."""
    start = Start(folder.name, lines=_ledger(folder / "stability.jsonl", notes))
    data = folder / "vis_data"
    own = data / f"{folder.name}.json"
    scalars = data / "scalars.json" if (data / "scalars.json").is_file() else own
    try:
        if scalars.is_file():
            start.curves, start.validations = from_lines(_lines(scalars, notes))
        elif any(data.rglob("events.out.tfevents*")):
            start.curves, start.validations = from_tensorboard(data)
    except ImportError:
        notes.append(
            f"{data} holds TensorBoard files only, and tensorboard is not installed: "
            "pip install tensorboard."
        )
    except OSError as e:
        notes.append(f"{scalars} could not be read: {e}.")
    if not (start.lines or start.curves):
        return start
    dump = data / "config.py"
    if dump.is_file():
        start.config = _config(dump, notes)
    return start


def _config(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        return parse_config(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError) as e:
        notes.append(f"{path} could not be read: {e}.")
        return {}


def _config_beside(work_dir: Path) -> dict[str, Any]:
    """The dump in work_dir, which each start replaces; LocalVisBackend writes others.

    Only if there is one: with more it is not known which was used last.
    """
    dumps = list(work_dir.glob("*.py"))
    return _config(dumps[0], []) if len(dumps) == 1 else {}


def _ledger(path: Path, notes: list[str]) -> list[Line]:
    try:
        lines: list[Line] = [*_lines(path, notes)] if path.is_file() else []
    except OSError as e:
        notes.append(f"{path} could not be read: {e}.")
        return []
    events = [line for line in lines if _is_event(line)]
    if path.is_file() and not events:
        notes.append(f"{path} has no line that can be read.")
    return events


def _is_event(line: Line) -> bool:
    """Of what may be a line of anything."""
    now, event = line.get("iter"), line.get("event")
    return isinstance(event, str) and isinstance(now, int) and 0 <= now < 2**53


def _lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    lines, broken = json_lines(path)
    if broken > 1:  # one is what a kill in the middle of a line leaves
        notes.append(f"{broken} lines of {path} are not JSON and were left out.")
    return lines


def _checkpoint(work_dir: Path, notes: list[str]) -> Checkpoint | None:
    path = newest_checkpoint(work_dir)
    if path is None:
        return None
    try:
        from .checkpoint import read_checkpoint  # torch takes a while

        return read_checkpoint(path)
    except Exception as e:  # of many kinds: the file may be anything
        reason = str(e).split("\n", 1)[0][:200]
        notes.append(f"{path} could not be read ({type(e).__name__}: {reason}).")
        return None


def newest_checkpoint(work_dir: Path) -> Path | None:
    """What ``last_checkpoint`` names, also if the folder was moved since."""
    try:
        named = Path((work_dir / "last_checkpoint").read_text().strip())
    except (OSError, UnicodeDecodeError):
        return None
    places = [named, work_dir / named.name, work_dir / "rollback" / named.name]
    return next((path for path in places if path.is_file()), None)
