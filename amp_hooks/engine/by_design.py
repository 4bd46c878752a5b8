"""Tensors of a model that may be NaN or infinite, because they always were."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from . import private
from .messages import warn
from .named import (
    named_buffers,
    named_modules,
    named_parameters,
    named_tensors_of,
)
from .tensors import is_bound, nonfinite_names
from .words import first_names

_PREFIX = re.compile(r"(model|buffers|ema\[\d+\]\.module)\.")


class ByDesign:
    """Only what was finite and is no more is a disease.

    Attention masks hold -inf, unused or frozen parameters whatever was in memory, and a
    buffer may be made as late as in the first forward pass or the first evaluation. So
    what is not finite when the first healthy step has been taken is left alone from
    then on, and so are buffers that were not there. Before that step everything is that
    was not finite when training began, and every buffer but BatchNorm's statistics.

    ``in`` takes names of the learned state: ``model.<name>``, ``buffers.<name>``,
    ``ema[0].module.<name>``.

    Attributes:
        names: What is not finite by design, by its name in the model.
        settled: The first healthy step has been taken.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.settled = False
        self._begun = False
        self._statistics: set[str] = set()
        self._buffers: set[str] = set()  # of the first healthy step
        self._parameters: set[str] = set()

    def begin(self, model: nn.Module) -> None:
        """Look at the model as training finds it; once for all hooks."""
        if self._begun:
            return
        self._begun = True
        self._statistics = {
            f"{path}.{name}" if path else name
            for path, module in named_modules(model)
            if private.is_norm(module)
            for name in private.buffers_of(module)
        }
        self._parameters = {name for name, _ in named_parameters(model)}
        self._buffers = {name for name, _ in named_buffers(model)}
        self.names = nonfinite_in_model(model)

    @property
    def learned(self) -> list[str]:
        """Those of the names that training is to make something of."""
        return sorted(self.names & (self._parameters | self._statistics))

    def masks(self, name: str, tensor: Tensor) -> bool:
        """Whether it is infinite as it may be at any time.

        So are a buffer that masks a part with -inf and an optimizer's bound.
        """
        prefix = _PREFIX.match(name)
        if prefix is None:
            return is_bound(name, tensor)
        bare = name[prefix.end() :]
        if bare in self._parameters or bare in self._statistics:
            return False
        return not bool(tensor.isnan().any() or tensor.isposinf().any())

    @classmethod
    def of_new(cls, model: nn.Module) -> ByDesign:
        """Of a model that was just built, for a checkpoint that it is to read."""
        by_design = cls()
        by_design.begin(model)
        by_design.settled = True
        return by_design

    def settle(self, model: nn.Module) -> None:
        """The first healthy step has just been taken."""
        if self.settled or not self._begun:
            return
        self.settled = True
        self._buffers = {name for name, _ in named_buffers(model)}
        # What a step has broken was finite before it.
        learned = self._parameters | self._statistics
        now = nonfinite_in_model(model)
        self.names = {n for n in now if n in self.names or n not in learned}
        if not self.names:
            return
        text = (
            f"not finite from the beginning: {first_names(sorted(self.names))}. They "
            "are taken to be so by design and are not watched."
        )
        if bad := sorted(self.names & self._statistics):
            text += (
                f" But BatchNorm's statistics ({first_names(bad)}) ruin every "
                "evaluation: load another checkpoint, or reset_running_stats()."
            )
        warn(text)

    def __contains__(self, name: object) -> bool:
        """Whether a tensor may hold what it likes."""
        prefix = _PREFIX.match(str(name))
        if prefix is None:  # an optimizer's
            return False
        bare = str(name)[prefix.end() :]
        if bare in self._parameters or bare in self._statistics:
            return bare in self.names
        return not self.settled or bare in self.names or bare not in self._buffers


def nonfinite_in_model(model: nn.Module) -> set[str]:
    """Names of parameters and buffers that hold NaN or infinity; waits for them."""
    tensors = named_tensors_of(model)
    with torch.no_grad():
        return set(nonfinite_names(tensors, limit=len(tensors)))
