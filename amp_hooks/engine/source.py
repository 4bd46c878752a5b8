"""Python code for a parsed piece of a config."""

from __future__ import annotations

import ast
import sys
from typing import Callable

if sys.version_info >= (3, 9):
    _unparse: Callable[[ast.AST], str] = ast.unparse
else:
    from astunparse import unparse as _unparse


def source_of(node: ast.AST) -> str:
    """``ast.unparse``."""
    return _unparse(node).strip()
