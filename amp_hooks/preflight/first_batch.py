"""Run the first batch of training before it is trained on, without a trace."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ..engine import private
from ..engine.of_others import has
from ..engine.preserved import alone
from ..engine.rng import capture_rng
from ..engine.run import active_scaler, bare_model, iter_wrappers
from ..engine.runtime import Runtime
from ..engine.tensors import peak_of
from ..engine.unnoticed import unnoticed
from ..forensics.replay import Call, Replay, dense, in_a_line, run_call
from ..monitor.classifiers import ClassifierFinder
from ..monitor.logits import infinity_is_overflow, logit_stats
from ..precision.lower_precision import LowerPrecision

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
        return not (self.seen.origin or self.seen.nonfinite_grads)


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
        cut: FP32 was run with fewer images.
        fits: FP32 has memory for the whole batch, as far as is known.
        dtype: What training computes in.
        logits: Largest |logit| of each classifier layer in FP32, infinite if one is
            not finite.
        differences: Relative difference of each loss term, as configured to FP32.
        notes: What was left out.
    """

    def __init__(self, runner: Runner, data_batch: Any) -> None:
        self.model: Any = bare_model(runner)
        self.wrappers = dict(iter_wrappers(runner.optim_wrapper))
        every = list(self.wrappers.values())
        mixed = [w for w in every if has(w, "cast_dtype")]
        self.wrapper = (mixed or every)[0]
        self.fp32 = OptimWrapper(
            self.wrapper.optimizer, private.accumulative_counts(self.wrapper)
        )
        self.mixed = bool(mixed)
        self.dtype = "float32"
        self.logits: dict[str, float] = {}
        self.differences: dict[str, float] = {}
        self.cut, self.fits = False, True
        self.notes: list[str] = []
        self._runtime = Runtime.of(runner)
        self._batch = self._of_fp32 = data_batch

    def images(self) -> Any:
        """What the model is given first, before any forward pass."""
        call = self._prepare(self._batch)
        return call.kwargs.get("inputs", next(iter(call.args), None))

    def in_fp32(self) -> Pass:
        """Run it in FP32, with fewer images if there is no memory for all."""
        layers = Layers(self.model)
        images = most = count_images(self._batch)
        try:
            while True:
                try:
                    return self.run(self.fp32, 1.0)
                except torch.cuda.OutOfMemoryError:
                    self.fits = False
                    if images < 2:
                        raise
                images //= 2
                torch.cuda.empty_cache()
                self._of_fp32 = first_images(self._batch, images, most)
                self.cut = True
        finally:
            self.logits = layers.close()
            if self.cut:
                self.notes.append(
                    f"FP32 has memory for {images} of the batch's {most} images, so "
                    "training will not fall back to it"
                )
            if layers.failed:
                self.notes.append(f"not all logits were looked at: {layers.failed}")

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
        result = self.run(wrapper, 1.0)
        return result.runs and result.finite

    def run(self, wrapper: OptimWrapper, scale: float, frames: int = 0) -> Pass:
        """Run it in the precision of an optimizer wrapper.

        Args:
            wrapper: Takes no step.
            scale: The loss is multiplied by it.
            frames: Watch every module, to see where NaN arises; slow.

        Raises:
            OutOfMemoryError: Forward or backward pass do not fit.
        """
        peaks: dict[str, float] = {}

        def on_grads(grads: dict[str, Tensor]) -> None:
            found = [largest(dense(g)) for g in grads.values()]
            values = torch.stack(found).tolist() if found else []
            peaks.update(zip(grads, values))

        # Anew for each pass: the model may work in it in place.
        call = self._prepare(self._of_fp32 if wrapper is self.fp32 else self._batch)
        with self._runtime.quiet(), alone():
            seen = run_call(self.model, wrapper, call, scale, frames, on_grads)
        if _OUT_OF_MEMORY in seen.skipped:
            raise torch.cuda.OutOfMemoryError(seen.skipped)
        return Pass(seen, peaks)

    def _prepare(self, batch: Any) -> Call:
        model = self.model
        with unnoticed(model), alone():
            data = model.data_preprocessor(copy.deepcopy(batch), True)
            # As BaseModel._run_forward does.
            if isinstance(data, dict):
                return Call((), dict(data, mode="loss"), capture_rng())
            return Call(tuple(data), dict(mode="loss"), capture_rng())


class Layers:
    """Largest magnitude of each layer's output, and which of them are classifiers.

    Args:
        model: Is looked at in its forward passes until ``close``.

    Attributes:
        failed: Why an output could not be measured; empty while all could.
    """

    def __init__(self, model: nn.Module) -> None:
        self.failed = ""
        self._finder = ClassifierFinder(model, self._note)
        self._modules = dict(model.named_modules())
        self._noted: dict[str, list[Tensor]] = {}

    def _note(self, name: str, output: Tensor) -> None:
        if not output.is_floating_point():
            return
        try:
            measured = peak(self._modules[name], output)
        except torch.cuda.OutOfMemoryError:
            raise  # then it is run with fewer images
        except Exception as e:  # ours, not the model's
            self.failed = self.failed or f"{name}: {in_a_line(e)}"
            return
        self._noted.setdefault(name, []).append(measured)

    def close(self) -> dict[str, float]:
        """Stop looking; the largest |logit| of each classifier layer."""
        self._finder.close()
        return {name: worst(self._noted.get(name, [])) for name in self._finder.found}


def peak(module: nn.Module, output: Tensor) -> Tensor:
    """Largest magnitude, infinite if something overflowed or is NaN; on the device."""
    stats = logit_stats(output)
    bad = stats.nan + stats.inf if infinity_is_overflow(module) else stats.nan
    return torch.where(bad > 0, torch.inf, stats.absmax)


def largest(values: Tensor) -> Tensor:
    """Largest magnitude in FP32, 0 of nothing; on the device."""
    values = dense(values)
    if not values.numel():
        return values.new_zeros((), dtype=torch.float32)
    return peak_of(values)


def worst(peaks: list[Tensor]) -> float:
    """The largest of some, 0.0 of none."""
    return float(torch.stack(peaks).max()) if peaks else 0.0


def count_images(batch: Any) -> int:
    """How many images a batch has: the length of its first list or tensor."""
    if isinstance(batch, dict):
        return next((n for v in batch.values() if (n := _length(v))), 0)
    return _length(batch[0] if _by_kind(batch) else batch)


def first_images(batch: Any, images: int, of: int) -> Any:
    """The batch with its first images only; what is not one for each stays."""
    if _by_kind(batch):
        parts = [_first(part, images, of) for part in batch]
        return tuple(parts) if isinstance(batch, tuple) else parts
    return _first(batch, images, of)


def _first(batch: Any, images: int, of: int) -> Any:
    if isinstance(batch, dict):
        return {key: _first(v, images, of) for key, v in batch.items()}
    return batch[:images] if _is_sequence(batch) and len(batch) == of else batch


def _by_kind(batch: Any) -> bool:
    """Whether it is ``[images, labels]``: one element for each kind of input.

    So it is if all have the same length, unless they are images of three channels each.
    """
    return (
        isinstance(batch, (list, tuple))
        and all(map(_is_sequence, batch))
        and len({len(part) for part in batch}) == 1
        and not all(isinstance(part, Tensor) and part.ndim == 3 for part in batch)
    )


def _length(batch: Any) -> int:
    if isinstance(batch, dict):
        return count_images(batch)
    return len(batch) if _is_sequence(batch) else 0


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (
        isinstance(value, Tensor) and value.ndim > 0
    )
