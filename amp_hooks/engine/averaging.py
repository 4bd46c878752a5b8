"""Let hooks that average weights see an iteration only when it has been judged."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import BaseOptimWrapper
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from .messages import warn
from .of_others import is_among
from .patch import wrap
from .run import bare_model, iter_wrappers, trained_parameters
from .tensors import is_named_tuple

_EVERY = 20  # iterations, after which hooks are looked at again
_DEEP = 3  # containers within each other, and objects of the user's own
_LONG = 10_000  # more are no tensors of a model


def averaging_hooks(runner: Runner) -> list[Hook]:
    """Hooks that average weights after each iteration: EMAHook, MeanTeacherHook."""
    return [
        hook
        for hook in runner.hooks
        if any(
            cls.__name__ in ("EMAHook", "MeanTeacherHook") for cls in type(hook).__mro__
        )
    ]


def ema_hooks(runner: Runner) -> list[EMAHook]:
    """Hooks that keep an averaged model, with those of subclasses."""
    return [hook for hook in runner.hooks if isinstance(hook, EMAHook)]


@torch.no_grad()
def begin_with_the_weights(runner: Runner) -> None:
    """Give an EMA that has averaged nothing yet the weights, as its first step would.

    MMEngine copies the model for it before ``init_weights``, so until then it holds
    what a parameter is born with: in DINO's ``level_embed`` that is whatever was in
    memory, NaN now and then.
    """
    for hook in ema_hooks(runner):
        if int(hook.ema_model.steps) == 0:
            weights = hook.src_model.state_dict()
            for name, average in hook.ema_model.module.state_dict().items():
                average.copy_(weights[name])


def keepers_of_a_copy(runner: Runner) -> list[tuple[Hook, str]]:
    """Hooks that keep tensors shaped like what is trained, and the attribute.

    Whatever their class: an average of one's own is a module, or a dict or list of
    tensors. What the run itself trains does not count, and nothing is read.
    """
    model = bare_model(runner)
    live = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    trained = Counter(
        p.shape
        for _, wrapper in iter_wrappers(runner.optim_wrapper)
        for p in trained_parameters(wrapper)
        if p.requires_grad
    )
    kept = []
    for hook in runner.hooks if trained else ():
        if type(hook).after_train_iter is Hook.after_train_iter:
            continue
        for name, value in list(vars(hook).items()):
            others = (t for t in _tensors(value) if t.data_ptr() not in live)
            if not trained - Counter(t.shape for t in others):
                kept.append((hook, name))
                break
    return kept


def _attributes(hooks: Iterable[Hook]) -> Iterator[tuple[int, str, int, int]]:
    """What they hold that may be an average, in a form that tells if it is another."""
    for hook in hooks:
        if type(hook).after_train_iter is not Hook.after_train_iter:
            for name, value in vars(hook).items():
                if not isinstance(value, (int, float, str, bool, type(None))):
                    several = isinstance(value, (dict, list, tuple, deque))
                    yield id(hook), name, id(value), len(value) if several else 0


def _tensors(thing: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, nn.Module):
        yield from thing.parameters()
        yield from thing.buffers()
    elif depth == _DEEP or isinstance(
        thing, (Runner, BaseLoop, Optimizer, BaseOptimWrapper, Hook, type)
    ):
        return  # their tensors are the run's own
    elif isinstance(thing, (Mapping, list, tuple, deque)):
        # Not of classes of the user's own, which may load what they are asked for.
        plain = type(thing) in (dict, OrderedDict, list, tuple, deque)
        plain |= is_named_tuple(thing)
        values = thing.values() if isinstance(thing, Mapping) else thing
        for value in list(values) if plain and len(thing) <= _LONG else ():
            yield from _tensors(value, depth + 1)
    elif hasattr(thing, "__dict__") and not callable(thing):
        yield from _tensors(vars(thing), depth + 1)


class Averaging:
    """Wraps ``after_train_iter`` of the averaging hooks, once for the whole suite.

    An average that was taken before the iteration is judged would keep what is going to
    be undone. So where such a hook comes first, by whatever priority, the hooks of this
    package between it and the last that undoes are called before it, in their order,
    and not again at their own turn. The average itself is taken when the user said.

    Attributes:
        undone: The iteration that left no trace; nothing is averaged after it.
        judges: The hooks of this package.
    """

    def __init__(self) -> None:
        self.undone = -1
        self.judges: list[Hook] = []
        self._owners: list[Hook] = []
        self._looked: set[tuple[int, str, int, int]] = set()
        self._judged: dict[int, int] = {}  # by the hook's id: the iteration
        self._wrapped: list[Hook] = []
        self._undo = ExitStack()

    def attach(self, runner: Runner, owner: Hook) -> None:
        """Wrap them, for a hook that undoes iterations."""
        self._owners.append(owner)
        for hook in averaging_hooks(runner):
            self._wrap(hook)
        self.look(runner)

    def look_again(self, runner: Runner, iterations: int) -> None:
        """Now and then: an average may be begun at any time.

        Args:
            runner: The run.
            iterations: Since training began.
        """
        if iterations == 3 or iterations % _EVERY == 0:
            self.look(runner)

    def look(self, runner: Runner) -> None:
        """Look for hooks that keep an average of their own, and tell of each once."""
        if not self._owners:
            return
        known = [*self._wrapped, *self.judges]
        there = set(_attributes(h for h in runner.hooks if not is_among(h, known)))
        if there <= self._looked:
            return
        self._looked = there
        try:
            keepers = keepers_of_a_copy(runner)
        except Exception:  # of objects of the user's own, or parameters without a shape
            return
        for hook, name in keepers:
            if is_among(hook, self._wrapped) or is_among(hook, self.judges):
                continue
            self._wrap(hook, always=True)
            warn(
                f"{type(hook).__name__} keeps a copy of the model in its attribute "
                f"{name!r}. If that is an average of weights: it is taken when "
                "the iteration has been judged, and so of what was left standing; but "
                "no rollback takes it back, and no snapshot holds it, as they do with "
                "an EMAHook. This is said once."
            )

    def has_acted(self, judge: Hook, iteration: int) -> bool:
        """Whether that hook was called in this iteration before its turn."""
        return self._judged.get(id(judge)) == iteration

    def detach(self) -> None:
        """Give the hooks back as they were."""
        self._undo.close()
        for hooks in (self._wrapped, self._owners, self.judges):
            hooks.clear()
        self._judged.clear()
        self._looked.clear()

    def _wrap(self, hook: Hook, always: bool = False) -> None:
        if is_among(hook, self._wrapped):
            return

        def after_train_iter(
            original: Any, runner: Runner, *args: Any, **kwargs: Any
        ) -> None:
            self._judge(hook, runner, *args, **kwargs)
            # A hook that is not known may do more than average.
            if always or self.undone != runner.iter:
                original(runner, *args, **kwargs)

        self._undo.callback(wrap(hook, "after_train_iter", after_train_iter))
        self._wrapped.append(hook)

    def _judge(self, hook: Hook, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Have the iteration judged, where that has not come yet."""
        place = {id(h): i for i, h in enumerate(runner.hooks)}
        if id(hook) not in place:  # somebody calls it without having it registered
            return
        last = max((place.get(id(owner), -1) for owner in self._owners), default=-1)
        for judge in runner.hooks[place[id(hook)] + 1 : last + 1]:
            if is_among(judge, self.judges) and not self.has_acted(judge, runner.iter):
                judge.after_train_iter(runner, *args, **kwargs)
                self._judged[id(judge)] = runner.iter
