"""Explain how a run went and what to change, from the files it left.

    python scripts/stability_report.py WORK_DIR [--html FILE] [--no-checkpoint]

The same as ``python -m amp_hooks.report``: the exit status is 0 for a healthy run, 1
for one that recovered, 2 for one that was lost.
"""

import sys

from amp_hooks.report.cli import main

if __name__ == "__main__":
    sys.exit(main())
