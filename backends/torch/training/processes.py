"""The processes of a run: one, or those that `torchrun` started."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regraft.backends.torch.training.shards import divide
from regraft.ir.errors import UsageError


@dataclass(frozen=True, slots=True)
class Group:
    """Processes that train one module together.

    Args:
        rank: Which of them this is.
        size: How many there are.
        shards: Whether each holds a part of the weights (FSDP2), not all of them (DDP).
    """

    rank: int = 0
    size: int = 1
    shards: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def share(self, batches_per_step: int) -> int:
        """Returns how many batches of a step this process takes.

        Raises:
            UsageError: When they cannot be divided evenly.
        """
        if batches_per_step % self.size:
            raise UsageError(
                f"{batches_per_step} batches per step for {self.size} processes",
                hint=f"make `batches_per_step` a multiple of {self.size}",
            )
        return batches_per_step // self.size

    def wrap(self, net: nn.Module, device: str) -> nn.Module:
        """Returns a net whose gradients are averaged over the processes."""
        if self.size == 1:
            return net
        if self.shards:
            divide(net, device, self.size)
            return net
        devices = [torch.device(device)] if device.startswith("cuda") else None
        return DistributedDataParallel(net, device_ids=devices)

    def without_exchange(self, net: nn.Module) -> AbstractContextManager[None]:
        """Returns the context of a backward pass after which more gradients are added."""
        if isinstance(net, DistributedDataParallel):
            context: AbstractContextManager[None] = net.no_sync()
            return context
        return _without_sums(net) if self.shards and self.size > 1 else nullcontext()

    def mean(self, value: Tensor) -> float:
        """Returns the average over the processes of a number that each has."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return float(value)

    def wait(self) -> None:
        """Waits until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def _without_sums(net: Any) -> Iterator[None]:
    net.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        net.set_requires_gradient_sync(True)


_LAST_SUM_S = 0.2
"""For what gloo's threads do after the last sum: microseconds, on a busy machine milliseconds."""


@contextmanager
def joined_group(device: str, *, shards: bool = False) -> Iterator[Group]:
    """Yields the group of this process; joins it as the variables of `torchrun` say, if it must.

    Args:
        device: Where its net runs.
        shards: Whether each process holds a part of the weights.
    """
    if dist.is_available() and dist.is_initialized():
        yield Group(dist.get_rank(), dist.get_world_size(), shards)
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Group()
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size(), shards)
        dist.barrier()  # gloo aborts a process that leaves while another one still sums
        # gloo's threads take the interpreter's lock to let go of the last sum, and the end of the
        # group waits for them while it holds that lock
        time.sleep(_LAST_SUM_S)
    finally:
        dist.destroy_process_group()
