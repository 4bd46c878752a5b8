"""RollbackHook's defaults that the report reasons with as well, and their reasons."""

from __future__ import annotations

PATIENCE = 3  # bad iterations in a row: one bad batch is data, two are bad luck
# 7 of 20: a run that limps without ever failing three times in a row.
WINDOW, SHARE = 20, 0.35
LR_FACTOR = 0.1  # what dlib takes when training diverges
