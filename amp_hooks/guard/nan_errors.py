"""Exceptions that are NaN in disguise."""

from __future__ import annotations

import linecache
import re
from collections.abc import Sequence

# How code reports that it was given NaN or infinities, as regular expressions.
NAN_ERRORS = (
    # scipy's linear_sum_assignment, in Hungarian assigners (mmdetection#8155, #4549)
    r"matrix contains invalid numeric entries",
    r"cost matrix is infeasible",
    # binary_cross_entropy on a CPU, in SimOTAAssigner (YOLOX)
    r"all elements of (input|target) should be between 0 and 1",
    # mmdet's PISASSDHead and YOLACTHead
    r"become infinite or NaN",
    # asserts without a message, by their source line: mmdet's ATSSHead and
    # CenterNetUpdateHead
    r"assert .*\b(isnan|isfinite|isinf)\(",
    r"cannot convert float (NaN|infinity) to integer",
)


def is_nan_error(error: BaseException, patterns: Sequence[str] = NAN_ERRORS) -> bool:
    """Whether an exception says that it was caused by NaN or infinities.

    Args:
        error: As caught. Of an AssertionError the source line that failed is looked at
            too, since such asserts often have no message.
        patterns: Regular expressions, searched in both without regard to case.
    """
    text = str(error)
    if isinstance(error, AssertionError):
        text += "\n" + _failed_line(error)
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)


def _failed_line(error: BaseException) -> str:
    traceback = error.__traceback__
    if traceback is None:
        return ""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    filename = traceback.tb_frame.f_code.co_filename
    return linecache.getline(filename, traceback.tb_lineno).strip()
