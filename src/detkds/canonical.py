"""One form for all terms that are the same loss up to a constant, so that no candidate is trained twice.

The rules know the pieces by name only. Each holds for every map size, batch size and per-position weight; where a
normalisation adds a small number to its denominator, it holds up to that number. The tests check them by value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from detkds.protocols import Distance, Knowledge, Transform
from detkds.registry import DISTANCES

# Arguments that must stand at these values for a rule to look at a piece that has them.
_PLAIN = {"per": "element", "source": "own", "mean": False}
_STAGES = (
    frozenset(("satt", "catt", "mask")),
    frozenset(("scale", "local", "win")),
    frozenset(("norm", "norm_batch", "minmax")),
)
_ELEMENTWISE = frozenset(("l1", "l2", "smooth_l1"))
_UNIT_RANGE = frozenset(("minmax", "softmax"))
_DIRECTIONS = frozenset(("cosine", "pearson"))
_POSITIONWISE = _ELEMENTWISE | _DIRECTIONS | {"kl", "correlation"}
_DISTANCES = _POSITIONWISE | {"ssim"}
# Knowledge whose weights are per position; a weight per channel would tell rows apart that the rules take as equal.
_WEIGHTED_BY_POSITION = frozenset(("global", "fgbg", "instance", "logits", "localization"))


class CanonicalSteps(NamedTuple):
    """The steps of a term, and how many times their loss the loss that they stand for is."""

    transforms: tuple[Transform, ...]
    distance: Distance
    factor: float = 1.0


def canonical_steps(knowledge: Knowledge, transforms: Sequence[Transform], distance: Distance) -> CanonicalSteps:
    """The transforms and the distance that stand for every term with the same loss up to a factor.

    Pieces that the rules do not know pass through untouched, and stop the rules that look across them.
    """
    steps = [_usual_spelling(transform) for transform in transforms if not transform.neutral]
    measure: Any = distance
    factor = 1.0
    if measure.name in _ELEMENTWISE and _is_plain(measure) and steps and steps[-1].name == "reshape":
        steps.pop()
    bounded = bool(steps) and steps[-1].name in _UNIT_RANGE
    if measure.name == "smooth_l1" and _is_plain(measure) and bounded and measure.beta >= 1:
        # Numbers in [0, 1] never differ by more than beta: d^2 / (2 beta).
        measure, factor = DISTANCES.build("l2"), 1 / (2 * measure.beta)
    if _takes_means_by_position(knowledge):
        chain = _Chain.of(steps, measure)
        if chain is not None:
            chain.simplify()
            steps, measure, factor = chain.steps, chain.distance, factor * chain.factor
    return CanonicalSteps(tuple(steps), measure, factor)


def _usual_spelling(step: Any) -> Any:
    return replace(step, mode="auto") if step.name == "norm" and step.mode == "std" and step.axis != "N" else step


def _is_plain(piece: Any) -> bool:
    """Whether the rules hold for its arguments."""
    return all(getattr(piece, key, value) == value for key, value in _PLAIN.items())


def _takes_means_by_position(knowledge: Any) -> bool:
    """Whether the loss is a mean under a weight per position: a sum over elements and one over rows would differ."""
    return knowledge.name in _WEIGHTED_BY_POSITION and getattr(knowledge, "per", "weight") == "weight"


@dataclass
class _Chain:
    """A term in the usual order attention, scale, normalise, distance; None where there is no such step."""

    attention: Any
    scale: Any
    normalise: Any
    distance: Any
    factor: float = 1.0

    @classmethod
    def of(cls, steps: Sequence[Any], distance: Any) -> _Chain | None:
        """The chain of these steps; None where one is unknown, not plain, doubled or out of order."""
        slots: list[Any] = [None, None, None]
        last = -1
        for step in steps:
            stage = next((index for index, names in enumerate(_STAGES) if step.name in names), None)
            if stage is None or stage <= last or not _is_plain(step):
                return None
            slots[stage], last = step, stage
        known = distance.name in _DISTANCES and _is_plain(distance)
        return cls(slots[0], slots[1], slots[2], distance) if known else None

    @property
    def steps(self) -> list[Any]:
        return [step for step in (self.attention, self.scale, self.normalise) if step is not None]

    def simplify(self) -> None:
        """Apply the rules; each looks only at what the ones before it leave, so that one pass is enough."""
        self._write_squares_as_correlation()
        if self._scale_is("scale", "local"):
            self._drop_normalisation_under_invariant_distance()
        self._drop_attention_that_normalisation_undoes()
        self._drop_local_where_positions_stay_apart()

    def _write_squares_as_correlation(self) -> None:
        normalise = self.normalise
        if normalise is None:
            return
        standardised = normalise.name == "norm" and (normalise.axis, normalise.mode) == ("C", "auto")
        # Of masked cells a maximum may be 0 in all channels of one side: such a row has no correlation.
        flattened = self.attention is not None and self.attention.name == "mask" and not self._scale_is("local")
        if self.distance.name == "l2" and standardised and not flattened:
            # Standardised rows s and t: mean (s - t)^2 = 1 + 1 - 2 correlation.
            self.distance, self.factor = DISTANCES.build("pearson"), 2.0

    def _drop_normalisation_under_invariant_distance(self) -> None:
        name, normalise = self.distance.name, self.normalise
        if normalise is None:
            return
        if normalise.name == "norm" and normalise.axis == "C" and name in _DIRECTIONS:
            # Standardising a row centres it, and the cosine of centred rows is their correlation.
            if normalise.mode == "auto":
                self.distance = DISTANCES.build("pearson")
            self.normalise = None
        elif normalise.name == "minmax":
            # One factor and one shift per sample leave the correlation along each row.
            if name == "pearson":
                self.normalise = None
        elif normalise.name == "norm_batch" and name == "correlation":
            self.normalise = None

    def _drop_attention_that_normalisation_undoes(self) -> None:
        if self.attention is None:
            return
        normalised_over = getattr(self.normalise, "axis", None)
        if self.attention.name == "catt":
            # One factor per image and channel survives pooling and cutting, and each map's scale is normalised away.
            undone = normalised_over == "HW"
        else:
            # One factor per position: gone where each position's scale goes, unless pooling mixed positions first.
            directed = self.normalise is None and self.distance.name in _DIRECTIONS
            undone = self.attention.name == "satt" and self._scale_is("local") and (normalised_over == "C" or directed)
        if undone:
            self.attention = None

    def _drop_local_where_positions_stay_apart(self) -> None:
        normalise, name = self.normalise, self.distance.name
        axis, scope = getattr(normalise, "axis", None), getattr(normalise, "scope", None)
        if self._scale_is("local") and name in _POSITIONWISE:
            per_position = normalise is None or axis == "C" or scope == "batch"
        elif self._scale_is("win") and name in _ELEMENTWISE:
            per_position = normalise is None or axis == "N"
        else:
            return
        if per_position:
            self.scale = None

    def _scale_is(self, *names: str) -> bool:
        return self.scale is None or self.scale.name in names
