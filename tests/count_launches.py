"""Count the kernels that a GPU would be given, on a CPU."""

from collections import Counter

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# They launch nothing: memory, other names of the same memory, and a read.
_NONE = ("detach", "alias", "empty", "empty_like", "empty_strided", "new_empty")
_NONE += ("_local_scalar_dense", "lift_fresh", "is_same_size", "set_")
_NONE += ("_record_function_enter_new", "_record_function_exit")


class CountLaunches(TorchDispatchMode):
    """Counts launches by operator, where it is entered.

    A foreach operator is one launch if its tensors are of one dtype and device, and as
    many as there are tensors if not; so it is on CUDA.

    Attributes:
        names: How often each was launched.
    """

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[-1]
        if name.startswith("_foreach"):
            lists = [a for a in args if isinstance(a, (list, tuple))]
            tensors = [t for a in lists for t in a if isinstance(t, Tensor)]
            kinds = {(t.dtype, t.device) for t in tensors}
            self.names[name] += 1 if len(kinds) == 1 else len(lists[0])
        elif not func.is_view and name not in _NONE:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))

    def __len__(self):
        return sum(self.names.values())
