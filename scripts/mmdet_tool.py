"""Print where one of MMDetection's own tools is.

    python scripts/mmdet_tool.py train.py

A wheel has them in mmdet/.mim/tools, a checkout beside the package in tools/.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path


def find(name: str) -> Path:
    """The path of ``train.py``, ``test.py``, ``dist_train.sh`` and others.

    Raises:
        FileNotFoundError: Names the folders that do not have it.
    """
    spec = find_spec("mmdet")  # which does not import it
    packages = [Path(p) for p in (spec and spec.submodule_search_locations) or ()]
    folders = [f for p in packages for f in (p / ".mim/tools", p.parent / "tools")]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"MMDetection's tools/{name} is not in {' or '.join(map(str, folders))}"
        if folders
        else "MMDetection is not installed: pip install mmdet"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("name", help="train.py, test.py, dist_train.sh, ...")
    try:
        print(find(parser.parse_args().name))
    except FileNotFoundError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()
