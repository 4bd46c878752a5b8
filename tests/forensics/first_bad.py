"""Another way to find where NaN begins: by ATen operation, not by module hook."""

import math

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


def finite(tree):
    return all(
        not isinstance(x, float) or math.isfinite(x)
        for x in tree_flatten(tree)[0]
        if not isinstance(x, torch.Tensor)
    ) and all(
        bool(torch.isfinite(t).all())
        for t in tree_flatten(tree)[0]
        if isinstance(t, torch.Tensor) and t.is_floating_point()
    )


class FirstBad(TorchDispatchMode):
    """The first operation that makes finite values non-finite, and the module then.

    Attributes:
        found: ``(path of the module, operation)``.
    """

    def __init__(self, model):
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.stack, self.found = [], None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        was_finite = self.found is None and finite((args, kwargs))
        result = func(*args, **kwargs)
        if was_finite and not finite(result):
            self.found = self.stack[-1], str(func)
        return result

    def __enter__(self):
        self.call = nn.Module.__call__

        def call(module, *args, **kwargs):
            self.stack.append(self.names.get(module, ""))
            try:
                return self.call(module, *args, **kwargs)
            finally:
                self.stack.pop()

        nn.Module.__call__ = call
        return super().__enter__()

    def __exit__(self, *error):
        nn.Module.__call__ = self.call
        return super().__exit__(*error)
