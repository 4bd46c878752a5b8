"""What not every torch has, and of GradScaler and foreach what is private.

The rest of the package is written for torch 2.13; what 2.0 to 2.12 do in another way is
told apart here, and nowhere else. Checked with torch 2.0, 2.1, 2.3, 2.5, 2.8 and 2.13.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, _weights_only_unpickler, nn

from ..errors import UnsupportedError
from . import restricted_unpickler
from .patch import wrap

if TYPE_CHECKING:
    from collections.abc import Iterator

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])

# --- GradScaler -----------------------------------------------------------------------


def check_rehearsal() -> None:
    """See that FP16 can be rehearsed on a CPU.

    Raises:
        UnsupportedError: Before torch 2.3, whose autocast and GradScaler cannot.
    """
    if TORCH < (2, 3):
        raise UnsupportedError(
            f"FP16 cannot be rehearsed on a CPU with torch {torch.__version__}: that "
            "takes torch 2.3. Without it: AmpOptimWrapper on a GPU, or here "
            "dtype='bfloat16' with loss_scale=dict(enabled=False)."
        )


def cpu_grad_scaler(enabled: bool = True, **options: Any) -> Any:
    """A GradScaler for losses on the CPU.

    Raises:
        UnsupportedError: See :func:`check_rehearsal`.
    """
    if TORCH < (2, 3) and not enabled:
        return torch.cuda.amp.GradScaler(enabled=False)
    check_rehearsal()
    return torch.amp.GradScaler("cpu", enabled=enabled, **options)


def step_state(scaler: Any, optimizer: Any) -> dict[str, Any]:
    """GradScaler's state of an optimizer's present step.

    ``update()`` replaces this dict; the old one keeps its ``found_inf_per_device``.
    """
    state: dict[str, Any] = scaler._per_optimizer_states[id(optimizer)]
    return state


def forget_step(scaler: Any, optimizer: Any) -> None:
    """Let an optimizer's step that has not come to its end be forgotten.

    ``unscale_`` refuses to be called twice before ``update()``.
    """
    scaler._per_optimizer_states.pop(id(optimizer), None)


def is_unscaled(state: Mapping[str, Any]) -> bool:
    """Whether the gradients of that step have been unscaled already."""
    return getattr(state.get("stage"), "name", None) == "UNSCALED"


def scale_tensor(scaler: Any) -> Tensor:
    """The loss scale on its device, 0-d; ``get_scale()`` would wait for it."""
    scale: Tensor = scaler._scale
    return scale.reshape(())


def growth_tensor(scaler: Any) -> Tensor:
    """Clean steps since the loss scale changed, on its device, 0-d."""
    tracker: Tensor = scaler._growth_tracker
    return tracker.reshape(())


def initial_scale(scaler: Any) -> float:
    """The loss scale as configured."""
    return float(scaler._init_scale)


# --- autocast -------------------------------------------------------------------------


def is_autocast_enabled(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    if TORCH >= (2, 4):
        return torch.is_autocast_enabled(device)
    if device == "cuda":
        return torch.is_autocast_enabled()
    # torch.is_autocast_cpu_enabled, torch.is_autocast_xpu_enabled, ...
    return bool(getattr(torch, f"is_autocast_{device}_enabled", bool)())


def autocast_dtype(device: str) -> torch.dtype:
    """What autocast computes in there, if it is on."""
    if TORCH >= (2, 4):
        return torch.get_autocast_dtype(device)
    name = "gpu" if device == "cuda" else device
    dtype: torch.dtype = getattr(torch, f"get_autocast_{name}_dtype")()
    return dtype


def set_cpu_autocast(enabled: bool, dtype: torch.dtype) -> None:
    """Switch it for a CPU; the context manager would refuse float32."""
    if TORCH >= (2, 4):
        torch.set_autocast_enabled("cpu", enabled)
        torch.set_autocast_dtype("cpu", dtype)
    else:
        torch.set_autocast_cpu_enabled(enabled)
        torch.set_autocast_cpu_dtype(dtype)


# --- optimizers that are told on the device -------------------------------------------


def can_refuse(optimizer: Any) -> bool:
    """Whether its step can be told on the device not to be taken.

    Fused optimizers can (torch.optim's with ``fused=True``), by what GradScaler uses.
    """
    supports = getattr(optimizer, "_step_supports_amp_scaling", False)
    return bool(supports) and all(g.get("fused") for g in optimizer.param_groups)


@contextmanager
def refusing(optimizer: Any, found_inf: Tensor) -> Iterator[None]:
    """Within it the step is not taken where ``found_inf`` is 1.0.

    Args:
        optimizer: One of :func:`can_refuse`.
        found_inf: 0-d float32.
    """
    optimizer.found_inf = found_inf
    try:
        yield
    finally:
        del optimizer.found_inf


# --- many tensors in few launches -----------------------------------------------------


def kinds_of(
    tensors: Sequence[Tensor],
) -> dict[tuple[torch.dtype, torch.device], list[int]]:
    """Indices of those of one dtype and device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, t in enumerate(tensors):
        kinds.setdefault((t.dtype, t.device), []).append(i)
    return kinds


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """``copy_`` of many tensors, in a launch for each dtype and device.

    Of several at once torch would launch a kernel for each tensor.
    """
    if TORCH >= (2, 1):
        for kind in kinds_of(targets).values():
            torch._foreach_copy_([targets[i] for i in kind], [sources[i] for i in kind])
    else:
        for target, source in zip(targets, sources):
            target.copy_(source)


def multiply_all(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """``mul_`` of many tensors in few launches."""
    torch._foreach_mul_(list(tensors), factor)


def without_negative(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies in which values below 0 are 0, -inf too; NaN stays. In one launch."""
    return list(torch._foreach_clamp_min(list(tensors), 0.0))


def peaks_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Largest magnitude of each tensor, 0-d; NaN where one of its values is."""
    return list(torch._foreach_norm(list(tensors), math.inf))


def norms_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """L2 norm of each tensor, 0-d float32, in few launches."""
    tensors = list(tensors)
    types = {t.dtype for t in tensors}
    if types == {torch.float32}:
        return list(torch._foreach_norm(tensors, 2))
    # Its `dtype` narrows nothing: neither float64 nor complex.
    wide = [t.is_complex() or t.dtype is torch.float64 for t in tensors]
    if TORCH >= (2, 4) and not any(wide):
        return list(torch._foreach_norm(tensors, 2, dtype=torch.float32))
    dtypes = [None if is_wide else torch.float32 for is_wide in wide]
    norm = torch.linalg.vector_norm
    return [norm(t, dtype=dtype).float() for t, dtype in zip(tensors, dtypes)]


def min_and_max(x: Tensor) -> tuple[Tensor, Tensor]:
    """``torch.aminmax``, also of half precision on a CPU."""
    if TORCH < (2, 3) and x.device.type == "cpu":
        x = x.float()
    low, high = torch.aminmax(x)
    return low, high


# --- modules --------------------------------------------------------------------------


def after_each_call(
    module: nn.Module, hook: Callable[[nn.Module, Any, Any], Any]
) -> Callable[[], None]:
    """A forward hook that is called also if the module raises, then with ``None``.

    Returns:
        What takes it away.
    """
    if TORCH >= (2, 1):
        return module.register_forward_hook(hook, always_call=True).remove

    def forward(original: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except BaseException:
            hook(module, args, None)
            raise

    stack = ExitStack()
    stack.callback(module.register_forward_hook(hook).remove)
    stack.callback(wrap(module, "forward", forward))
    return stack.close


# --- checkpoints ----------------------------------------------------------------------


def add_safe_globals(allowed: Mapping[str, Any]) -> None:
    """Let ``weights_only`` loads in this process accept these, by their full names."""
    if TORCH >= (2, 6):
        torch.serialization.add_safe_globals([(f, n) for n, f in allowed.items()])
    elif TORCH >= (2, 4):
        torch.serialization.add_safe_globals(list(allowed.values()))
    else:
        restricted_unpickler.ALLOWED.update(allowed)


def load_weights_only(file: Any, **options: Any) -> Any:
    """``torch.load(file, weights_only=True)``, with the list of a later torch.

    Raises:
        pickle.UnpicklingError: The file asks for something else.
    """
    if TORCH >= (2, 4):
        return torch.load(file, weights_only=True, **options)
    if TORCH < (2, 1):
        options.pop("mmap", None)
    if options.get("mmap"):
        file = os.fspath(file)  # torch 2.1 maps no other kind of path
    own = _weights_only_unpickler._get_allowed_globals()
    for name, allowed in {**own, "torch.device": torch.device}.items():
        restricted_unpickler.ALLOWED.setdefault(name, allowed)
    return torch.load(file, pickle_module=restricted_unpickler, **options)
