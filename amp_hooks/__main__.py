"""``python -m amp_hooks COMMAND``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
