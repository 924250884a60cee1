"""What the pieces of a term promise: knowledge, transforms, adapters, schedules and distances.

Each piece is a frozen dataclass, registered by its name (:mod:`detkds.registry`), which sets ``name``. It inherits from
its protocol, which gives the defaults of what it does not declare. What passes between pieces is in
:mod:`detkds.structures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from detkds.structures import DetectorInfo, Kind, KnowledgeInput, Pair

Stage = Literal["attention", "scale", "normalise", "response"]
"""The place of a transform in the order of a term."""


class Knowledge(Protocol):
    """What is imitated: reads both outputs and yields pairs. A frozen dataclass registered in ``KNOWLEDGE``."""

    name: ClassVar[str] = ""
    yields: ClassVar[Kind]

    def __call__(self, inputs: KnowledgeInput) -> Iterator[Pair]:
        """The pairs of one step."""
        raise NotImplementedError(f"{self.name} is called through what it has learned")

    def learned(self, channels: Mapping[str, int], generator: torch.Generator) -> nn.Module | None:
        """A module that is called in its place and is trained with the student; None where nothing is learned.

        Args:
            channels: of the compared maps, by level.
            generator: of the module's initial weights.
        """
        return None

    @property
    def reads_responses(self) -> bool:
        """Whether it reads the responses of the heads, which are then aligned."""
        return self.yields != "feature"

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        """Why this pair cannot offer this knowledge; None where it can."""
        return None


class Transform(Protocol):
    """An operation applied alike to both sides of a pair. A frozen dataclass registered in ``TRANSFORMS``.

    ``kinds`` maps each kind it accepts to the kind it gives; ``stage`` is its place in a term's order.
    """

    name: ClassVar[str] = ""
    stage: ClassVar[Stage]
    kinds: ClassVar[Mapping[Kind, Kind]]

    def __call__(self, pair: Pair) -> Pair: ...

    @property
    def neutral(self) -> bool:
        """Whether it gives back every pair as it came, so that a term is the same loss without it."""
        return False

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        """Why this pair of detectors cannot be transformed like this; None where it can."""
        return None


class Adapter(Protocol):
    """What is learned on the student's map of a level. A frozen dataclass registered in ``ADAPTERS``.

    ``draws`` says whether its modules draw random numbers, and are given a generator with every map.
    """

    name: ClassVar[str] = ""
    draws: ClassVar[bool] = False

    def build(self, student: int, teacher: int, generator: torch.Generator) -> nn.Module | None:
        """A module from the student's channels to the teacher's, its weights drawn from the generator alone.

        None where nothing is to be done.
        """
        ...


class Schedule(Protocol):
    """The factor of a term's weight at a step, counted from 0. A frozen dataclass registered in ``SCHEDULES``.

    ``needs_total`` says whether it counts from the end, and is given the number of steps.
    """

    name: ClassVar[str] = ""
    needs_total: ClassVar[bool] = False

    def __call__(self, step: int, total: int | None) -> float: ...


class Distance(Protocol):
    """Turns a pair into a scalar, 0 when both sides are equal. A frozen dataclass registered in ``DISTANCES``."""

    name: ClassVar[str] = ""
    kinds: ClassVar[frozenset[Kind]]

    def __call__(self, pair: Pair) -> Tensor: ...
