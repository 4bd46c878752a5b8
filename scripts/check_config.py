"""Find what is known to hurt training in a config, before it starts.

    python scripts/check_config.py CONFIG [--gpus N] [--resume [PATH]]
        [--work-dir DIR] [--cfg-options K=V ...]

Needs no GPU and no data set. The exit status is 0 if nothing is found, 1 with findings;
--help lists the others.
"""

import sys

from amp_hooks.config_check.cli import main

if __name__ == "__main__":
    sys.exit(main())
