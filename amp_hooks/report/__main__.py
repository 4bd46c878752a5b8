"""``python -m amp_hooks.report WORK_DIR``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
