"""Run the first batch of training before it is trained on, without a trace."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from .core.alone import alone
from .core.classifiers import ClassifierFinder
from .core.logits import infinity_is_overflow, logit_stats
from .core.preserved import preserved
from .precision import LowerPrecision
from .replay import Call, Replay, run_call
from .rng import capture_rng, undisturbed_rng
from .runtime import Runtime, bare_model
from .step_tap import active_scaler, iter_wrappers

_OUT_OF_MEMORY = torch.cuda.OutOfMemoryError.__name__


@dataclass
class Pass:
    """One forward and backward pass.

    Attributes:
        seen: Its losses, and what was not finite.
        peaks: Largest |gradient| of each parameter that got one, unscaled in FP32.
    """

    seen: Replay
    peaks: dict[str, float] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        """Whether the model does not raise."""
        return not self.seen.error

    @property
    def finite(self) -> bool:
        """Whether losses and gradients are."""
        return not (self.seen.fault or self.seen.nonfinite_grads)


class FirstBatch:
    """The first batch of training, before it is trained on.

    Nothing of it stays: not in the batch, of which a copy is used, nor in weights,
    buffers, attributes or random numbers. Parameters' ``.grad`` are not touched.

    Args:
        runner: In ``before_train_iter``.
        data_batch: As the loop gives it, before the data preprocessor.

    Attributes:
        model: Without DDP around it.
        wrappers: Each optimizer wrapper by its name.
        wrapper: The one whose precision is used.
        fp32: One that computes in FP32.
        call: What the model is called with.
        dtype: What training computes in.
        logits: Largest |logit| of each classifier layer in FP32, infinite if one is
            not finite.
        note: What was left out.
    """

    def __init__(self, runner: Runner, data_batch: Any) -> None:
        self.model: Any = bare_model(runner)
        self.wrappers = dict(iter_wrappers(runner.optim_wrapper))
        every = list(self.wrappers.values())
        mixed = [w for w in every if hasattr(w, "cast_dtype")]
        self.wrapper = (mixed or every)[0]
        self.fp32 = OptimWrapper(
            self.wrapper.optimizer, self.wrapper._accumulative_counts
        )
        self.mixed = bool(mixed)
        self.dtype = "float32"
        self.logits: dict[str, float] = {}
        self.note = ""
        self._runtime = Runtime.of(runner)
        self._batch = data_batch
        self.call = self._prepare(data_batch)

    def in_fp32(self) -> Pass:
        """Run it in FP32, with fewer images if there is no memory for all."""
        layers = Layers(self.model)
        images = most = count_images(self._batch)
        try:
            while True:
                try:
                    return self.run(self.fp32, 1.0)
                except torch.cuda.OutOfMemoryError:
                    if images < 2:
                        raise
                images //= 2
                torch.cuda.empty_cache()
                self.call = self._prepare(first_images(self._batch, images, most))
                self.note = f"FP32 has memory for {images} of the batch's {most} images"
        finally:
            self.logits = layers.close()

    def as_configured(self) -> Pass:
        """Run it as training is going to, with its loss scale."""
        scaler = active_scaler(self.wrapper)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        result = self.run(self.wrapper, scale)
        self.dtype = result.seen.dtype
        return result

    def runs_in(self, dtype: torch.dtype) -> bool:
        """Whether it can be trained on in another precision."""
        wrapper = copy.copy(self.wrapper)
        LowerPrecision(wrapper, 1.0).leave(dtype)
        return self.run(wrapper, 1.0).seen.finite

    def run(self, wrapper: OptimWrapper, scale: float, frames: int = 0) -> Pass:
        """Run it in the precision of an optimizer wrapper.

        Args:
            wrapper: Takes no step.
            scale: The loss is multiplied by it.
            frames: Watch every module, to see where a fault arises; slow.

        Raises:
            OutOfMemoryError: Forward or backward pass do not fit.
        """
        peaks: dict[str, float] = {}

        def on_grads(grads: dict[str, Tensor]) -> None:
            norms = [torch.linalg.vector_norm(g, torch.inf) for g in grads.values()]
            values = torch.stack([n.float() for n in norms]).tolist() if norms else []
            peaks.update(zip(grads, values))

        with self._runtime.quiet(), alone():
            seen = run_call(self.model, wrapper, self.call, scale, frames, on_grads)
        if _OUT_OF_MEMORY in seen.skipped:
            raise torch.cuda.OutOfMemoryError(seen.skipped)
        return Pass(seen, peaks)

    def _prepare(self, batch: Any) -> Call:
        model = self.model
        with undisturbed_rng(), preserved(model), alone():
            data = model.data_preprocessor(copy.deepcopy(batch), True)
            # As BaseModel._run_forward does.
            if isinstance(data, dict):
                return Call((), dict(data, mode="loss"), capture_rng())
            return Call(tuple(data), dict(mode="loss"), capture_rng())


class Layers:
    """Largest magnitude of each layer's output, and which of them are classifiers.

    Args:
        model: Is looked at in its forward passes until ``close``.
    """

    def __init__(self, model: nn.Module) -> None:
        self._finder = ClassifierFinder(model, self._note)
        self._modules = dict(model.named_modules())
        self._noted: dict[str, list[Tensor]] = {}

    def _note(self, name: str, output: Tensor) -> None:
        self._noted.setdefault(name, []).append(peak(self._modules[name], output))

    def close(self) -> dict[str, float]:
        """Stop looking; the largest |logit| of each classifier layer."""
        self._finder.close()
        return {name: worst(self._noted.get(name, [])) for name in self._finder.found}


def peak(module: nn.Module, output: Tensor) -> Tensor:
    """Largest magnitude, infinite if something overflowed or is NaN; on the device."""
    stats = logit_stats(output)
    bad = stats.nan + stats.inf if infinity_is_overflow(module) else stats.nan
    return torch.where(bad > 0, torch.inf, stats.absmax)


def worst(peaks: list[Tensor]) -> float:
    """The largest of some, 0.0 of none."""
    return float(torch.stack(peaks).max()) if peaks else 0.0


def count_images(batch: Any) -> int:
    """How many images a batch has: the length of its first list or tensor."""
    if isinstance(batch, dict):
        return next((n for v in batch.values() if (n := count_images(v))), 0)
    return len(batch) if isinstance(batch, (list, tuple, Tensor)) else 0


def first_images(batch: Any, images: int, of: int) -> Any:
    """The batch with its first images only; what is not one for each stays."""
    if isinstance(batch, dict):
        return {key: first_images(v, images, of) for key, v in batch.items()}
    if isinstance(batch, (list, tuple, Tensor)) and len(batch) == of:
        return batch[:images]
    return batch
