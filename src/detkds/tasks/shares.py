"""How work and machines are divided among workers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detkds.policy_search.result import SearchError


@dataclass(frozen=True)
class Share:
    """What each worker gets.

    Attributes:
        workers: how many there are.
        device: ``cuda`` is the GPU that a worker is given.
        threads: of torch on the CPU.
        cpus, gpus: what it takes of the machines; less than one GPU where several workers share one.
    """

    workers: int
    device: str
    threads: int
    cpus: int
    gpus: float

    def __str__(self) -> str:
        many = "s" * (self.workers > 1)
        return f"{self.workers} worker{many} on {self.device}, {self.threads} thread{'s' * (self.threads > 1)} each"


def share(
    nodes: Sequence[Mapping[str, float]],
    device: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
) -> Share:
    """Divide machines among workers.

    Args:
        nodes: the resources ``CPU`` and ``GPU`` of each machine.
        device: null: GPUs where there are any.
        workers: null: one per GPU, or on CPUs one per ``threads`` of them. More workers than GPUs share them.
        threads: of torch on the CPU; null: 1 where ``workers`` is null too and there is no GPU, else as many as there
            are CPUs for each worker.

    Raises:
        SearchError: the machines have too little for that.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    device = device or ("cuda" if gpus else "cpu")
    if device.startswith("cuda"):
        if not gpus:
            raise SearchError(f"executor: device {device!r}: expected a GPU, got none")
        workers = workers or gpus
        threads = threads or max(1, sum(cpus) // workers)
        return Share(workers, "cuda", threads, 0, 1 / math.ceil(workers / gpus))

    def room(each: int) -> int:
        return sum(count // each for count in cpus)

    workers = workers or room(threads or 1)
    fitting = [each for each in ([threads] if threads else range(1, max(cpus, default=0) + 1)) if room(each) >= workers]
    if not fitting or not workers:
        raise SearchError(
            f"workers: expected {workers or 1} workers with {threads or 1} CPUs each (threads), "
            f"got {len(nodes)} machine{'s' * (len(nodes) != 1)} with {', '.join(map(str, cpus)) or 'no'} CPUs"
        )
    return Share(workers, device, max(fitting), max(fitting), 0)


def portions(groups: Sequence[str], population: int, workers: int, whole_groups: bool = False) -> list[list[int]]:
    """Positions of candidates, in portions of equal size that keep all workers busy.

    Args:
        groups: of each candidate.
        population: the largest portion.
        whole_groups: keep candidates of one group in one portion, even where that makes it larger.

    >>> portions([""] * 5, population=8, workers=2)
    [[0, 1, 2], [3, 4]]
    """
    if not groups:
        return []
    rounds = math.ceil(len(groups) / (population * workers))
    size = math.ceil(len(groups) / (rounds * workers))
    units: dict[Any, list[int]] = {}
    for index, group in enumerate(groups):
        units.setdefault(group if whole_groups else index, []).append(index)
    portioned: list[list[int]] = []
    for unit in units.values():
        if portioned and len(portioned[-1]) + len(unit) <= size:
            portioned[-1] += unit
        else:
            portioned.append(unit)
    return portioned
