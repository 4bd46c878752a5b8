"""Private names of MMEngine and torch that the suite depends on, each in one place.

What an upgrade can break is here and in :mod:`.torch_api`, with why nothing public will
do. A test keeps private names out of every other module. Checked with mmengine 0.8.0 to
0.10.7 and onedl-mmengine 0.10.12.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import os.path as osp
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd

from .of_others import attribute, has

if TYPE_CHECKING:
    from typing import TypeGuard

# --- mmengine.optim.OptimWrapper ------------------------------------------------------


def accumulative_counts(wrapper: Any) -> int:
    """Backward passes that make one optimizer step, as configured."""
    return int(wrapper._accumulative_counts)


def count_backward(wrapper: Any) -> None:
    """Count one backward pass, as the wrapper does after each."""
    wrapper._inner_count += 1


def count_step(wrapper: Any) -> None:
    """Count one step as MMEngine's schedulers do: they warn if there was none."""
    if has(wrapper, "_global_step"):
        wrapper._global_step += 1


def uncount_accumulated(wrapper: Any) -> None:
    """Forget the backward passes since the last step: accumulation begins anew."""
    wrapper._inner_count -= wrapper._inner_count % wrapper._accumulative_counts


def loss_divisor(wrapper: Any) -> int:
    """What ``update_params`` divides the loss by for the next backward pass."""
    counts, most = int(wrapper._accumulative_counts), wrapper._max_counts
    if counts == 1 or most == -1:
        return counts
    last = wrapper._inner_count >= most - wrapper._remainder_counts
    return int(wrapper._remainder_counts) if last else counts


def static_scale(wrapper: Any) -> float | None:
    """The static loss scale that MMEngine writes back at the end of every step."""
    scale: float | None = attribute(wrapper, "_scale_update_param")
    return scale


def set_static_scale(wrapper: Any, scale: float | None) -> None:
    """Let MMEngine write back another one, or none: then the scale is dynamic."""
    wrapper._scale_update_param = scale


# --- mmengine.runner.Runner -----------------------------------------------------------


def resumes(runner: Any) -> bool:
    """Whether this start was asked to resume; set before a checkpoint is chosen."""
    return bool(runner._resume)


def is_resumed(runner: Any) -> bool:
    """Whether this start goes on from a checkpoint that has been read."""
    return bool(runner._resume and runner._has_loaded)


def has_loaded(runner: Any) -> bool:
    """Whether a checkpoint has been read, to resume or to begin with."""
    return bool(runner._has_loaded)


def load_from(runner: Any) -> Any:
    """The checkpoint that is going to be read, or has been."""
    if isinstance(runner._resume, str):  # FlexibleRunner's resume='PATH'
        return runner._resume
    return runner._load_from


def set_load_from(runner: Any, path: str) -> None:
    """Let MMEngine read that checkpoint."""
    runner._load_from = path


def train_loop(runner: Any) -> Any:
    """The loop, or the dict it is going to be built from; the property would build."""
    return runner._train_loop


def val_loop(runner: Any) -> Any:
    """The validation loop, a dict, or None."""
    return runner._val_loop


def test_loop(runner: Any) -> Any:
    """The test loop, a dict, or None."""
    return runner._test_loop


# --- other parts of mmengine ----------------------------------------------------------


def swap_ema_state(ema_hook: Any, checkpoint: dict[str, Any]) -> None:
    """Exchange model and EMA in a checkpoint, as EMAHook does to save and to load."""
    ema_hook._swap_ema_state_dict(checkpoint)


def vis_backends(visualizer: Any) -> Mapping[str, Any]:
    """The visualization backends, by the names that the user gave them."""
    backends: Mapping[str, Any] = visualizer._vis_backends
    return backends


def save_dir(backend: Any) -> str:
    """The folder that a visualization backend writes to."""
    return str(backend._save_dir)


# CheckpointHook's methods that save a checkpoint; where they are called is its own.
CHECKPOINT_METHODS = ("_save_checkpoint_with_step", "_save_best_checkpoint")


def base_configs(config: Any, path: str) -> Iterator[str]:
    """Paths of the configs that a file names as its bases.

    Args:
        config: The class ``mmengine.config.Config``.
        path: Of the file.
    """
    if not config._is_lazy_import(path):
        for name in config._get_base_files(path):
            yield config._get_cfg_path(name, path)[0]
        return
    with open(path, encoding="utf-8") as f:
        parsed = ast.parse(f.read())
    for name in config._get_base_modules(parsed.body):
        module = name.lstrip(".")
        if level := len(name) - len(module):
            up = [".."] * (level - 1)
            file = osp.join(osp.dirname(path), *up, module.replace(".", "/") + ".py")
            yield osp.normpath(file)
        elif (spec := importlib.util.find_spec(module)) and spec.origin:
            yield spec.origin


def is_pure_python(config: Any) -> bool | None:
    """Whether a config's file is of MMEngine's pure Python kind; None without a file.

    Args:
        config: An ``mmengine.config.Config``.
    """
    try:
        return bool(config._is_lazy_import(config.filename))
    except Exception:  # no file, or one that has gone or changed since
        return None


def hub_state_without_history(hub: Any) -> dict[str, Any]:
    """``MessageHub.state_dict()``, which copies all of the histories, without them."""
    bare = copy.copy(hub)
    bare._log_scalars = OrderedDict()
    state: dict[str, Any] = bare.state_dict()
    return state


# --- torch ----------------------------------------------------------------------------


def replace_index_sampler(
    dataloader: Any, made_of: Callable[[Any], Any], stack: ExitStack
) -> None:
    """Exchange what a DataLoader takes its indices from, until the stack is closed.

    Its ``__setattr__`` refuses that.
    """
    own = vars(dataloader)
    name = "sampler" if own["batch_sampler"] is None else "batch_sampler"
    stack.callback(own.__setitem__, name, own[name])
    own[name] = made_of(own[name])


def event_writer(writer: Any) -> Any:
    """What a SummaryWriter writes events with."""
    return writer._get_file_writer()


def copy_metadata(source: Any, target: Any) -> None:
    """A state dict's versions of its layers, if it has any."""
    if hasattr(source, "_metadata"):
        target._metadata = source._metadata


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The module's own buffers, to read and to replace."""
    return module._buffers


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The module's own parameters, to read and to exchange."""
    return module._parameters


def is_norm(module: nn.Module) -> bool:
    """Whether it is a BatchNorm or InstanceNorm, with statistics or without."""
    return isinstance(module, _NormBase)


def is_batch_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether it is a BatchNorm."""
    return isinstance(module, _BatchNorm)


def is_convolution(module: nn.Module) -> bool:
    """Whether it is a convolution, transposed or not."""
    return isinstance(module, _ConvNd)


def sparse_values(gradient: Tensor) -> Tensor:
    """The values of a sparse gradient, not coalesced: to write to in place."""
    return gradient._values()


def forward_hooks_of(module: nn.Module) -> list[Any]:
    """What is called before and after its forward pass."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def with_gradient_hooks(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Those on which ``register_hook`` has put something."""
    return [p for p in parameters if p._backward_hooks]


def gradient_hooks(parameter: Tensor) -> OrderedDict[int, Any] | None:
    """What ``register_hook`` has put on a parameter, in the order of its calls."""
    hooks: Any = parameter._backward_hooks
    return hooks if isinstance(hooks, OrderedDict) else None


def call_first(parameter: Tensor, handle: int) -> None:
    """Let one of the hooks of a parameter be called before the others."""
    hooks = gradient_hooks(parameter)
    if hooks:
        # torch walks the dict itself, to which `move_to_end` means nothing.
        order = [(handle, hooks.pop(handle)), *hooks.items()]
        hooks.clear()
        hooks.update(order)


def iteration(runner: Any) -> int:
    """``runner.iter``, which passes through three properties."""
    try:
        known = runner._train_loop._iter
    except AttributeError:  # a loop of the user's own, or none yet
        known = None
    return known if isinstance(known, int) else int(runner.iter)


def version_of(tensor: Tensor) -> int:
    """How often it, or what it shares memory with, was written to in place."""
    return tensor._version


def in_backward() -> bool:
    """Whether a backward pass runs: activation checkpointing calls modules again."""
    return torch._C._current_graph_task_id() != -1


def without_function_modes() -> AbstractContextManager[Any]:
    """A context in which TorchFunctionModes see nothing."""
    return torch._C.DisableTorchFunction()


def store_of_the_ranks() -> Any:
    """Where the ranks have found each other; ``None`` without several.

    A key can be set and looked for there outside all collectives.
    """
    if not torch.distributed.is_initialized():
        return None
    return torch.distributed.distributed_c10d._get_default_store()
