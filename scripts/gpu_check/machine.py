"""The card, or what takes its place where the checks are rehearsed on a CPU.

``python -m gpu_check.machine`` describes it.
"""

from __future__ import annotations

import json
import resource
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from gpu_check.sites import CopySites, OperatorSites, site_of, stack

T = TypeVar("T")
_WAITS = "called a synchronizing CUDA operation"  # torch's warning


class Card:
    """A GPU.

    Attributes:
        device: Of torch.
        rehearsed: Whether it is none.
        backend: For ``torch.distributed``.
        dtypes: In which operators are compared.

    It is not touched before something is asked of it: one that is set to serve a single
    process would not serve what a check has started.
    """

    device, rehearsed, backend = "cuda", False, "nccl"
    dtypes = (torch.float32, torch.float16)

    @property
    def name(self) -> str:
        """Of the card."""
        return torch.cuda.get_device_name()

    @property
    def capability(self) -> tuple[int, int]:
        """Its compute capability."""
        return torch.cuda.get_device_capability()

    def describe(self) -> dict[str, Any]:
        """For the report."""
        properties = torch.cuda.get_device_properties(0)
        return dict(
            card=self.name,
            capability=".".join(map(str, self.capability)),
            memory_mib=properties.total_memory >> 20,
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
        )

    def pick(self, full: T, tiny: T) -> T:
        """A size: what is to be done here."""
        return full

    def clock(self) -> float:
        """Seconds."""
        return time.perf_counter()

    def waits(self, call: Callable[[], Any]) -> Counter[str]:
        """How often the host waits for the device in a call, by line of code.

        An extension that calls CUDA's own functions is not seen.
        """
        found: Counter[str] = Counter()

        def note(message: Any, *where: Any, **more: Any) -> None:
            if _WAITS in str(message):
                found[site_of(stack())] += 1

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            torch.cuda.set_sync_debug_mode("warn")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return found

    def peak_memory(self, call: Callable[[], Any]) -> int:
        """The most bytes that are held during a call."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    def bf16(self) -> bool:
        """Whether torch says that it computes in BF16, and does not emulate it."""
        try:
            return torch.cuda.is_bf16_supported(including_emulation=False)
        except TypeError:  # of a torch that knows of no emulation
            return torch.cuda.is_bf16_supported()


class Rehearsal(Card):
    """A CPU, made use of as far as it goes."""

    device, rehearsed, backend = "cpu", True, "gloo"
    name, capability = "a CPU in the place of a card", (9, 0)
    # Half precision is for the card; a CPU has no such operators.
    dtypes = (torch.float32,)

    def describe(self) -> dict[str, Any]:
        """For the report."""
        return dict(card=None)

    def pick(self, full: T, tiny: T) -> T:
        """A size: as little as lets every line run."""
        return tiny

    def clock(self) -> float:
        """Of this process, so that other programs do not count."""
        return time.process_time()

    def waits(self, call: Callable[[], Any]) -> Counter[str]:
        """Operations that would wait on a GPU."""
        found: Counter[str] = Counter()
        with CopySites(found), OperatorSites(found):
            call()
        return found

    def peak_memory(self, call: Callable[[], Any]) -> int:
        """The most that the process ever held, which is all that is known."""
        call()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def bf16(self) -> bool:
        """As of the capability that is put on."""
        return True


def this_machine() -> Card:
    """With a card or without."""
    return Card() if torch.cuda.is_available() else Rehearsal()


if __name__ == "__main__":
    print(json.dumps(this_machine().describe()))
