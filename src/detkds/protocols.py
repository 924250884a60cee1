"""What the pieces of a term promise: knowledge, transforms, adapters, schedules and distances.

Each piece is a frozen dataclass, registered by its name (:mod:`detkds.registry`); what passes between them is in
:mod:`detkds.structures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from detkds.structures import DetectorInfo, DetectorOutput, Kind, Pair, Target


class Knowledge(Protocol):
    """What is imitated: reads both outputs and yields pairs. A frozen dataclass registered in ``KNOWLEDGE``.

    Knowledge of features that reads the responses as well has ``reads_responses = True``, and is given aligned ones.
    Knowledge with learned parts has ``learned(channels, generator)``: a module, built for the channels of the
    compared maps by level, that is called in its place and is trained with the student. A module that draws
    random numbers has ``draws = True`` and is given a generator after the levels.
    """

    name: str
    yields: Kind

    def __call__(
        self,
        student: DetectorOutput,
        teacher: DetectorOutput,
        targets: Sequence[Target] | None,
        levels: Mapping[str, float],
    ) -> Iterator[Pair]:
        """Yield the pairs of one step; ``levels`` maps the names both sides have to their stride in pixels."""
        ...

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        """Why this pair cannot offer this knowledge; None where it can."""
        ...


class Transform(Protocol):
    """An operation applied alike to both sides of a pair. A frozen dataclass registered in ``TRANSFORMS``.

    ``kinds`` maps each kind it accepts to the kind it gives; ``stage`` is its place in a term's order. One that not
    every pair of detectors serves has ``refusal(student, teacher)``, as knowledge has.
    """

    name: str
    stage: Literal["attention", "scale", "normalise", "response"]
    kinds: Mapping[Kind, Kind]

    def __call__(self, pair: Pair) -> Pair: ...


class Adapter(Protocol):
    """What is learned on the student's map of a level. A frozen dataclass registered in ``ADAPTERS``."""

    name: str

    def build(self, student: int, teacher: int, generator: torch.Generator) -> nn.Module | None:
        """A module from the student's channels to the teacher's, its weights drawn from the generator alone.

        None where nothing is to be done. A module that draws random numbers has ``draws = True`` and is given a
        generator with every map.
        """
        ...


class Schedule(Protocol):
    """The factor of a term's weight at a step, counted from 0. A frozen dataclass registered in ``SCHEDULES``."""

    name: str
    needs_total: bool

    def __call__(self, step: int, total: int | None) -> float: ...


class Distance(Protocol):
    """Turns a pair into a scalar, 0 when both sides are equal. A frozen dataclass registered in ``DISTANCES``."""

    name: str
    kinds: frozenset[Kind]

    def __call__(self, pair: Pair) -> Tensor: ...
