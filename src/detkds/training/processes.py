"""The processes of one training that ``torchrun`` starts, one per device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from detkds.errors import ConfigError

_TIMEOUT = timedelta(days=1)
"""How long processes wait for the first one, which may have to train the teacher."""


@dataclass(frozen=True)
class Processes:
    """This process among those that share one training; ``device`` is its own, None for the configured one."""

    rank: int = 0
    world: int = 1
    device: str | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes and evaluates."""
        return self.rank == 0

    @property
    def distributed(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    def wait(self) -> None:
        """Until all processes are here."""
        if self.distributed:
            distributed.barrier()

    def share(self, value: Any) -> Any:
        """The first process's value, in all processes."""
        if not self.distributed:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]


ALONE = Processes()
"""A training in this process alone."""


def process_rank() -> int:
    """The rank that ``torchrun`` gave this process; 0 without it."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def joined(device: str | None) -> Iterator[Processes]:
    """Join the other processes of ``torchrun``; without it this is the only one.

    Raises:
        ConfigError: there are more processes than accelerators, or a device is named for all.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    cuda = torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
    own = "cpu"
    if cuda:
        local, available = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= available:
            raise ConfigError(
                f"torchrun: expected at most {available} processes on this machine, one per GPU, got more"
            )
        own = f"cuda:{local}"
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=_TIMEOUT)
    try:
        yield Processes(process_rank(), world, own)
    finally:
        distributed.destroy_process_group()
