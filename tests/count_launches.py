"""Count the kernels that a GPU would be given, on a CPU."""

import sys
from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode

from tests import helpers

sys.path.insert(0, str(helpers.ROOT / "scripts"))

from bench_counts import launches_of  # noqa: E402  (as the benchmark counts them)


class CountLaunches(TorchDispatchMode):
    """Counts launches by operator, where it is entered.

    Attributes:
        names: How often each was launched.
    """

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if launches := launches_of(func, args):
            self.names[func._schema.name.split("::")[-1]] += launches
        return func(*args, **(kwargs or {}))

    def __len__(self):
        return sum(self.names.values())
