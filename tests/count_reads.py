"""Count what makes the host wait for the device."""

from torch.overrides import TorchFunctionMode


class CountReads(TorchFunctionMode):
    """Counts what makes the host wait for a tensor's value."""

    READS = frozenset({"item", "tolist", "numpy", "cpu", "__bool__", "__float__"})

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.reads += getattr(func, "__name__", "") in self.READS
        return func(*args, **(kwargs or {}))
