"""Which checkpoint a run goes on from."""

from __future__ import annotations

import os
import os.path as osp
import re
import socket
import time
from dataclasses import dataclass
from typing import Any

import mmengine.dist as dist
from mmengine.fileio import FileClient, get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import BaseLoop, Runner

from ..engine import private
from ..engine.by_design import ByDesign
from ..engine.failures import traceback_of
from ..engine.messages import warn
from ..engine.run import bare_model
from ..engine.safe_load import allow_mmengine_checkpoints
from ..engine.safe_read import allow_enum, allowed_enums
from ..errors import NoCheckpointError
from .checkpoint_file import Header, damage, part_of_rank, parts_of, read_header
from .disk import Pointer, same_file
from .save_attempt import is_local
from .sharded_resume import unfit

_LATE = 10.0  # seconds after which a network file system shows a new file
_TEMPLATES = ("epoch_{}.pth", "iter_{}.pth")  # CheckpointHook's defaults


def choose_resume(runner: Runner) -> str | None:
    """Let ``resume=True`` go on from the newest checkpoint that is whole and finite.

    To be called in ``before_run``, before MMEngine follows ``last_checkpoint``. Looked
    at are RollbackHook's checkpoints, those of every CheckpointHook, and the one that
    ``last_checkpoint`` names. What is passed over is named in a warning.

    Rank 0 looks, the others follow. Nothing is done to a run that is not resumed; a
    checkpoint that the user names (``load_from``) is only looked at.

    Returns:
        The checkpoint that was chosen, or ``None`` if MMEngine is to do what it would
        do anyway.

    Raises:
        NoCheckpointError: On every rank, if there are checkpoints and none can be used,
            or if one of several machines does not have the one that is chosen.
    """
    loop = private.train_loop(runner)
    begins = isinstance(loop, BaseLoop) and loop.iter == 0  # and no test run
    if not begins or not private.resumes(runner) or private.has_loaded(runner):
        return None
    allow_mmengine_checkpoints()
    # A path and an error: an exception of rank 0 alone would leave the others waiting.
    answer: list[Any] = [None, None, []]
    if dist.is_main_process():
        try:
            if private.load_from(runner) is None:
                answer[0] = _choose(runner)
            else:
                _check(runner, str(private.load_from(runner)))
        except NoCheckpointError as e:
            answer[1] = e
        except Exception as e:  # ours: MMEngine then goes on as it would without us
            answer[1] = RuntimeError(f"{e!r} on rank 0\n{traceback_of(e)}")
        answer[2] = allowed_enums()
    dist.broadcast_object_list(answer)
    path, error, enums = answer
    for name in enums:
        allow_enum(name)
    if error is not None:
        raise error
    if path is not None:
        _see_that_all_have_it(path)
        private.set_load_from(runner, path)  # MMEngine resumes from it
    return path


def _see_that_all_have_it(path: str) -> None:
    """MMEngine lets every rank read the file, and rank 0's disk may be its own."""
    deadline = time.monotonic() + _LATE
    mine = part_of_rank(path, dist.get_rank()) if osp.isdir(path) else path
    while not (found := osp.isfile(mine)) and time.monotonic() < deadline:
        time.sleep(0.5)
    here = None if found else socket.gethostname()
    answers: list[Any] = dist.all_gather_object(here)
    without = {rank: host for rank, host in enumerate(answers) if host is not None}
    if without:
        hosts = ", ".join(dict.fromkeys(without.values()))
        raise NoCheckpointError(
            f"resume=True, and rank 0 would go on from\n{path}\nwhich ranks "
            f"{', '.join(map(str, without))} (on {hosts}) do not have. Every rank "
            "reads it: let work_dir be in a folder that all machines share, or copy "
            "the file to the same path on each."
        )


def _check(runner: Runner, path: str) -> None:
    if not (osp.isfile(path) or parts_of(path)):
        return  # an address, or MMEngine says that it is missing
    ignore = ByDesign.of_new(bare_model(runner))
    if words := unfit(runner, path) or damage(path, ignore):
        raise NoCheckpointError(
            f"load_from={path!r} with resume=True: {words}. Name another checkpoint, "
            "or leave load_from out: the newest good one is then found by itself."
        )


def _choose(runner: Runner) -> str | None:
    pointer = Pointer(runner.work_dir)
    named = pointer.named
    if named is not None and "://" in named:
        return None  # in a store, which we never let it name: nothing here is newer
    found = _find(runner)
    if named is not None and not any(same_file(path, named) for path in found):
        found[named] = False
    headers = {path: read_header(path) for path in found}
    readable = [
        Candidate(path, header, found[path])
        for path, header in headers.items()
        if header is not None
    ]
    # One that cannot be read may be the newest, so it is passed over first.
    paths = [path for path, header in headers.items() if header is None]
    scheduled = runner.param_schedulers is not None
    paths += [c.path for c in in_order(readable, named, scheduled)]
    if not paths:
        _forget_empty_pointer(runner.work_dir)
        return None
    ignore = ByDesign.of_new(bare_model(runner))
    passed = []
    for path in paths:
        words, header = unfit(runner, path) or damage(path, ignore), headers[path]
        if words is None and header is not None:
            runner.logger.info(
                f"[amp_hooks] Resuming at iteration {header.iter}, from"
                + ("" if header.optimizer else " a file without optimizer state:")
                + f"\n{path}"
            )
            _tell_newer(readable, path, header, paths)
            if named is None or not same_file(path, named):
                pointer.offer(path, header.iter)
            return path
        words = words or "it cannot be read"
        warn(
            f"resume passes over\n{path}\nfor {words}. The next newest checkpoint is "
            "tried. Delete the file, or put a good copy in its place."
        )
        passed.append(f"{path}: {words}")
    raise NoCheckpointError(
        f"resume=True, but no checkpoint of {runner.work_dir} can be used. "
        f"{'; '.join(passed)}. Put a good copy in the place of one, name another "
        "(load_from=..., or --resume PATH), or, to start from the beginning, delete "
        "them and last_checkpoint."
    )


def _tell_newer(
    readable: list[Candidate], path: str, chosen: Header, paths: list[str]
) -> None:
    """That a run goes further back because what is newer does not hold all of it."""
    behind = paths[paths.index(path) :]
    newer = [
        c.path
        for c in readable
        if c.header.iter > chosen.iter and c.path in behind and not c.complete
    ]
    if newer:
        warn(
            "what is newer than the checkpoint taken holds no state of the optimizer "
            "or the schedulers: the learning rate would not go on where it was. Let "
            "CheckpointHook save both (save_optimizer=True, save_param_scheduler=True)."
            + "".join(f"\n{one}" for one in newer[:3])
        )


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that a run could go on from.

    Attributes:
        path: Local.
        header: What it says of itself.
        ours: It is one of RollbackHook's.
    """

    path: str
    header: Header
    ours: bool = False

    @property
    def complete(self) -> bool:
        """Whether a run that has schedules can go on as it was."""
        return self.header.optimizer and self.header.schedulers


def in_order(
    found: list[Candidate], named: str | None, scheduled: bool = True
) -> list[Candidate]:
    """Candidates, the one to try first at the front.

    The present run's first; of these the complete ones; of these the one with most
    iterations; at a tie, ours.

    Args:
        found: In any order.
        named: By ``last_checkpoint``.
        scheduled: The run has schedulers.
    """
    given_up = of_older_runs(found, named)
    return sorted(
        found,
        key=lambda c: (
            c in given_up,
            c.header.iter == 0,  # complete, but nothing has been learned
            # A run can go on without the rest, but not as it was.
            not c.header.optimizer,
            scheduled and not c.header.schedulers,
            -c.header.iter,
            not c.ours,
        ),
    )


def of_older_runs(found: list[Candidate], named: str | None) -> set[Candidate]:
    """Those of runs that were given up, and may have come further than the present one.

    What ``last_checkpoint`` names belongs to the present run; if it cannot be read,
    what was saved last does. Within a run iterations grow with time. So, going back in
    time from there, an older run begins where there are more iterations than before.
    """
    if not found:
        return set()
    pointed = [c for c in found if named is not None and same_file(c.path, named)]
    # Iteration 0 has learned nothing, and so does not give up what there was before.
    last = max(found, key=lambda c: (c.header.iter > 0, c.header.time, c.header.iter))
    start = (pointed or [last])[0].header
    past = [c for c in found if c.header.time < start.time]
    past.sort(key=lambda c: (c.header.time, c.header.iter), reverse=True)
    fewest = start.iter
    for i, candidate in enumerate(past):
        if candidate.header.iter > fewest:
            return set(past[i:])
        fewest = candidate.header.iter
    return set()


def _find(runner: Runner) -> dict[str, bool]:
    """Files by their names, each with whether it is RollbackHook's."""
    found = dict.fromkeys(
        _matching(osp.join(runner.work_dir, "rollback"), "iter_{}.pth"), True
    )
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    places = [(runner.work_dir, template) for template in _TEMPLATES]
    for hook in hooks:
        folder = _folder_of(hook, runner)
        if folder is not None:
            places += [(folder, t) for t in (*_TEMPLATES, hook.filename_tmpl)]
    for folder, template in places:
        for path in _matching(folder, template):
            found.setdefault(path, False)
    return found


def _folder_of(hook: CheckpointHook, runner: Runner) -> str | None:
    """Where a CheckpointHook will save, which itself finds out after a resume."""
    if hook.out_dir is None or str(hook.out_dir) == runner.work_dir:
        return runner.work_dir
    if hook.file_client_args is None:
        backend = get_file_backend(hook.out_dir, backend_args=hook.backend_args)
    else:
        backend = FileClient.infer_client(hook.file_client_args, hook.out_dir)
    if not is_local(backend):
        return None
    name = osp.basename(runner.work_dir.rstrip(osp.sep))
    return osp.join(str(hook.out_dir), name)


def _matching(folder: str, template: str) -> list[str]:
    """Files named as the template says, which excludes best_* and published ones."""
    parts = re.split(r"\{[^}]*\}", template)
    pattern = re.compile(r"\d+".join(map(re.escape, parts)))
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    paths = [osp.join(folder, name) for name in names if pattern.fullmatch(name)]
    return [path for path in paths if osp.isfile(path) or parts_of(path)]


def _forget_empty_pointer(work_dir: str) -> None:
    # Left by a kill at the wrong moment. MMEngine would try to load a file named "".
    path = osp.join(work_dir, "last_checkpoint")
    if osp.exists(path):
        warn(f"there is no checkpoint, the run starts afresh; it was empty:\n{path}")
        os.remove(path)
