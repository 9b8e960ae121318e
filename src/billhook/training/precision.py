"""Where the training runs and in what precision: one place that talks to Accelerate."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from billhook.errors import RunError

Precision = Literal["auto", "fp32", "bf16"]
_T = TypeVar("_T")


@functools.cache
def cpu_has_fast_bf16() -> bool:
    """Whether bf16 convolutions run natively (AVX-512 BF16 or AMX); emulated bf16 is slower than fp32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and bool(torch.cpu._is_avx512_bf16_supported())


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """``auto`` is bf16 autocast where the device has it, fp32 otherwise."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if device.type == "cpu" and cpu_has_fast_bf16() else "fp32"


def _disconnect() -> None:
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Room:
    """The device, the precision and the processes of one run.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        precision: ``auto``, ``fp32`` or ``bf16`` (autocast).
    """

    def __init__(self, device: str = "auto", precision: Precision = "auto") -> None:
        # Training needs it; what only looks at a network or loads one does without, and starts sooner.
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs

        wants_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        # Accelerate keeps one state per process; a second run in a notebook may want another device.
        if AcceleratorState._shared_state and bool(AcceleratorState().device.type == "cpu") != wants_cpu:
            AcceleratorState._reset_state(reset_partial_state=True)
        # Buffers are agreed on after each step instead, so that no process ever holds others than the rest.
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
        self.accelerator = Accelerator(cpu=wants_cpu, mixed_precision="no", kwargs_handlers=[ddp])
        self.device = self.accelerator.device if device in ("auto", "cpu") else torch.device(device)
        self.precision = resolve_precision(precision, self.device)
        if self.world > 1:
            # A process that ends with its connections open is aborted by the ones that ended before it.
            atexit.unregister(_disconnect)
            atexit.register(_disconnect)

    @property
    def rank(self) -> int:
        """Index of this process."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def autocast(self, enabled: bool = True) -> contextlib.AbstractContextManager[object]:
        """bf16 autocast when the run is in bf16."""
        if enabled and self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over all processes, the same result on each."""
        if self.world == 1:
            return value
        summed: torch.Tensor = self.accelerator.reduce(value, reduction="sum")
        return summed

    def prepare(self, module: nn.Module) -> nn.Module:
        """The network as several processes train it; itself where there is one."""
        if self.world == 1:
            return module
        # Layouts differ where a gradient comes back contiguous: copied, and not worth a word to the user.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        with warnings.catch_warnings():
            # Newer PyTorch has another name for the same option.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            wrapped: nn.Module = self.accelerator.prepare_model(module)
        return wrapped

    def release(self) -> None:
        """Forget what :meth:`prepare` made: its hooks and connections outlive the training otherwise."""
        if self.world > 1:
            self.accelerator.free_memory()

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in some process; the same answer in each."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def first(self, work: Callable[[], object]) -> None:
        """Do something in the first process while the others wait; when it fails there, all of them fail.

        Raises:
            RunError: In the other processes; the first raises what ``work`` raised.
        """
        failure: Exception | None = None
        if self.is_main:
            try:
                work()
            except Exception as error:
                failure = error
        failed = self.any(failure is not None)
        if failure is not None:
            raise failure
        if failed:
            raise RunError("the first process failed", "its own message says why")

    def from_first(self, work: Callable[[], _T]) -> _T:
        """What ``work`` returns in the first process, in all of them: of a measurement each would have its own.

        Raises:
            RunError: It failed; the first process raises what ``work`` raised.
        """
        found: list[Any] = []
        self.first(lambda: found.append(work()))
        if self.world > 1:
            found = found or [None]
            torch.distributed.broadcast_object_list(found, src=0, device=self.device)
        result: _T = found[0]
        return result

    @torch.no_grad()
    def agree(self, module: nn.Module) -> None:
        """Give every process the mean of all processes' floating buffers (BatchNorm saw a share of the batch each)."""
        buffers = [b for b in module.buffers() if b.is_floating_point()] if self.world > 1 else []
        if not buffers:
            return
        mean = self.sum(torch.cat([b.reshape(-1) for b in buffers])) / self.world
        for buffer, part in zip(buffers, torch.split(mean, [b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))
