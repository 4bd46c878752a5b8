"""Messages for the user, through the logger of the runner."""

from __future__ import annotations

import logging

from mmengine.logging import print_log


def warn(message: str) -> None:
    """Log a warning through the runner's logger."""
    print_log(f"[amp_hooks] {message}", logger="current", level=logging.WARNING)
