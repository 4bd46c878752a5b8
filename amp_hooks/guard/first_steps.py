"""An optimizer's state is made in its first step, also in one that is refused."""

from __future__ import annotations

from mmengine.optim import OptimWrapper

from ..engine import torch_api


class FirstSteps:
    """Takes away the state that a refused step has made.

    A fused optimizer is called for a step that GradScaler refuses, and told so on the
    device. SGD then leaves a momentum that was never written, and takes that for its
    momentum in the next step (seen in torch 2.1 to 2.13; LibreYOLO#771). Without that
    state the next step is the first one.
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}  # parameters with state, by optimizer

    def begin(self) -> None:
        """An iteration begins."""
        self._known.clear()

    def before_step(self, name: str, wrapper: OptimWrapper) -> None:
        """Know what an optimizer has before a step that it may be told not to take."""
        if torch_api.can_refuse(wrapper.optimizer):
            self._known[name] = len(wrapper.optimizer.state)

    def refused(self, name: str, wrapper: OptimWrapper) -> None:
        """Take away what the last step has made: the last entries of the dict."""
        state = wrapper.optimizer.state
        known = self._known.get(name, len(state))
        for parameter in list(state)[known:]:
            del state[parameter]
