"""Messages for the user, through the logger of the runner."""

from __future__ import annotations

import logging

import mmengine.dist as dist
from mmengine.logging import print_log

from .remark import Remark


class WarnOnce:
    """Warns of each thing once."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, message: str, what: str = "") -> None:
        """Warn.

        Args:
            message: As for :func:`warn`.
            what: Of what; the message itself, if it is left out.
        """
        if (what or message) not in self._known:
            self._known.add(what or message)
            warn(message)


def warn(message: str) -> None:
    """Log a warning through the runner's logger, which rank 0 alone shows.

    A ``Remark`` is logged as information.
    """
    level = logging.INFO if isinstance(message, Remark) else logging.WARNING
    print_log(f"[amp_hooks] {message}", logger="current", level=level)


def warn_of_this_rank(message: str) -> None:
    """Log a warning on rank 0, and on another what only that knows, as an error."""
    (warn if dist.is_main_process() else warn_on_any_rank)(message)


def warn_on_any_rank(message: str) -> None:
    """Log what may be true of this rank only: as an error, which all show."""
    print_log(f"[amp_hooks] {message}", logger="current", level=logging.ERROR)
