"""What the hooks need, looked at when they are imported.

pip does not: a requirement on torch would have it replace the torch that mmcv was
compiled for, which ends with an undefined symbol. MMEngine names none either.
"""

from __future__ import annotations

import re
from importlib import import_module

from ..errors import MissingError

NEEDED = {"torch": (2, 0), "mmengine": (0, 8)}


def minor(version: str) -> tuple[int, ...]:
    """Its first two numbers: ``2.1.2+cu118`` is (2, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def check_installed() -> None:
    """See that torch and MMEngine are there, and new enough.

    Raises:
        MissingError: Says what is missing, and what to do.
    """
    for name, least in NEEDED.items():
        needs = f"amp_hooks needs {name} {least[0]}.{least[1]} or later"
        try:
            version = str(import_module(name).__version__)
        except ModuleNotFoundError as e:
            if e.name != name:
                raise
            raise MissingError(
                f"{needs}, which is not installed. Install the {name} that your mmcv "
                "was built for: https://mmcv.readthedocs.io/en/latest/get_started/"
                "installation.html"
            ) from None
        if minor(version) < least:
            raise MissingError(
                f"{needs}, and this is {name} {version}. A newer one needs an mmcv "
                "that was built for it."
            )
