"""The folder of the checkpoints, before the first: one that all ranks write to?"""

from __future__ import annotations

import os.path as osp
import uuid

import mmengine.dist as dist

from ..engine.files import remove, write_text
from ..engine.messages import warn
from ..engine.run import any_rank
from ..errors import UnwritableError
from .disk import RollbackFiles


def prepare(files: RollbackFiles, iteration: int) -> bool:
    """Rank 0 makes it; to be called by all ranks.

    Args:
        files: In it.
        iteration: At which this run begins.

    Returns:
        Whether checkpoints can be written: of a sharded model by all ranks to one
        folder, which a work_dir on each machine's own disk is not.

    Raises:
        UnwritableError: On all ranks, if it cannot be written.
    """
    told = ["", f".probe_{uuid.uuid4().hex}"]
    probe = osp.join(files.folder, told[1])
    if dist.is_main_process():
        try:
            files.prepare(iteration)
            if files.sharded:
                write_text(probe, "")
        except UnwritableError as e:
            told[0] = str(e)
        except OSError as e:  # full
            told[0] = f"{files.folder!r} cannot be written: {e}"
    dist.broadcast_object_list(told)
    if told[0]:
        raise UnwritableError(told[0])
    if not files.sharded:
        return True
    probe = osp.join(files.folder, told[1])
    apart = any_rank(not osp.exists(probe))
    remove(probe)
    if apart:
        warn(
            f"not all ranks have the same {files.folder}, so no checkpoint is written "
            "there, as each holds a part of the model only: snapshots are in memory. "
            "Give a work_dir on a disk that all machines share."
        )
    return not apart
