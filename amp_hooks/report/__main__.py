"""``python -m amp_hooks.report WORK_DIR``: ``amp-hooks report``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
