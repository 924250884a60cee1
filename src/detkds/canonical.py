"""One spelling for all terms that are the same loss up to a constant, so that no candidate is trained twice.

The rules know the pieces by name only. Each holds for every map size, batch size and per-position weight; where a
normalisation adds a small number to its denominator, it holds up to that number. The tests check them by value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from detkds.registry import parse_expression

# The arguments of the pieces that the rules look at, in order; a piece that is not named here is never rewritten.
_REQUIRED = object()
_SIGNATURES: dict[str, dict[str, Any]] = {
    "satt": {"tau": 0.5, "power": 0.5, "source": "own"},
    "catt": {"tau": 0.5, "power": 0.5, "source": "own"},
    "mask": {"ratio": 0.65, "shared": True},
    "scale": {"n": _REQUIRED, "pool": "max"},
    "local": {"n": _REQUIRED},
    "win": {"n": _REQUIRED},
    "norm": {"axis": _REQUIRED, "mode": "auto"},
    "norm_batch": {"unbiased": False},
    "minmax": {"scope": "sample"},
    "reshape": {"axis": _REQUIRED},
    "l1": {"per": "element"},
    "l2": {"per": "element"},
    "smooth_l1": {"beta": 1.0, "per": "element"},
    "kl": {"tau": 1.0, "mean": False},
    "cosine": {},
    "pearson": {},
    "ssim": {"window": 11, "sigma": 1.5},
    "correlation": {"alpha": 1.01},
}
# Arguments that must stand at these values for a rule to look at the piece.
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
# Knowledge whose weights are per position; a weight per channel would tell rows apart that the rules take as equal.
_WEIGHTED_BY_POSITION = frozenset(("global", "fgbg", "instance", "logits", "localization"))


class CanonicalSteps(NamedTuple):
    """A chain of expressions, and how many times its loss the loss that it stands for is."""

    transforms: tuple[str, ...]
    distance: str
    factor: float = 1.0


def canonical_steps(knowledge: str, transforms: tuple[str, ...], distance: str) -> CanonicalSteps:
    """The transforms and the distance, as expressions, that stand for every term with the same loss up to a factor.

    Pieces that the rules do not know pass through untouched, and stop the rules that look across them.

    Raises:
        UserError: an expression cannot be read.

    >>> canonical_steps("global", ("satt", "local(2)", "norm(C)"), "l2")
    CanonicalSteps(transforms=(), distance='pearson', factor=2.0)
    """
    steps = [step for step in map(_Step.parse, transforms) if not step.changes_nothing]
    measure = _Step.parse(distance)
    factor = 1.0
    if measure.name in _ELEMENTWISE and measure.plain and steps and steps[-1].name == "reshape":
        steps.pop()
    bounded = bool(steps) and steps[-1].name in _UNIT_RANGE
    if measure.name == "smooth_l1" and measure.plain and bounded and measure["beta"] >= 1:
        # Numbers in [0, 1] never differ by more than beta: d^2 / (2 beta).
        measure, factor = _Step.parse("l2"), 1 / (2 * measure["beta"])
    if _takes_means_by_position(knowledge):
        chain = _Chain.of(steps, measure)
        if chain is not None:
            chain.simplify()
            steps, measure, factor = chain.steps, chain.distance, factor * chain.factor
    return CanonicalSteps(tuple(map(str, steps)), str(measure), factor)


def alias_steps(transforms: tuple[str, ...]) -> tuple[str, ...]:
    """The transforms without those that change nothing, ``scale(1)`` and its like: the spelling that a space counts."""
    return tuple(str(step) for step in map(_Step.parse, transforms) if not step.changes_nothing)


@dataclass(frozen=True)
class _Step:
    """A parsed expression; ``arguments`` is None for a piece or a spelling the rules do not know."""

    text: str
    name: str
    arguments: dict[str, Any] | None

    @classmethod
    def parse(cls, text: str) -> _Step:
        name, args, kwargs = parse_expression(text)
        signature = _SIGNATURES.get(name)
        if signature is None or len(args) > len(signature) or not kwargs.keys() <= signature.keys():
            return cls(text.strip(), name, None)
        arguments = signature | dict(zip(signature, args, strict=False)) | kwargs
        if _REQUIRED in arguments.values():
            return cls(text.strip(), name, None)
        if name == "norm" and arguments["mode"] == "std" and arguments["axis"] != "N":
            arguments["mode"] = "auto"
        return cls(text.strip(), name, arguments)

    def __str__(self) -> str:
        if self.arguments is None:
            return self.text
        written = []
        for key, default in _SIGNATURES[self.name].items():
            value = self.arguments[key]
            if default is _REQUIRED:
                written.append(_literal(value))
            elif value != default:
                written.append(f"{key}={_literal(value)}")
        return f"{self.name}({', '.join(written)})" if written else self.name

    def __getitem__(self, key: str) -> Any:
        return self.arguments.get(key) if self.arguments is not None else None

    @property
    def plain(self) -> bool:
        """Whether the rules hold for it."""
        arguments = self.arguments
        return arguments is not None and all(arguments.get(key, value) == value for key, value in _PLAIN.items())

    @property
    def changes_nothing(self) -> bool:
        return (self.name in ("scale", "local") and self["n"] == 1) or (self.name == "mask" and self["ratio"] == 0)


@dataclass
class _Chain:
    """A term in the usual order attention, scale, normalise, distance; None where there is no such step."""

    attention: _Step | None
    scale: _Step | None
    normalise: _Step | None
    distance: _Step
    factor: float = 1.0

    @classmethod
    def of(cls, steps: list[_Step], distance: _Step) -> _Chain | None:
        """The chain of these steps; None where one is not plain, doubled or out of order."""
        slots: list[_Step | None] = [None, None, None]
        last = -1
        for step in steps:
            stage = next((index for index, names in enumerate(_STAGES) if step.name in names), None)
            if stage is None or stage <= last or not step.plain:
                return None
            slots[stage], last = step, stage
        return cls(slots[0], slots[1], slots[2], distance) if distance.plain else None

    @property
    def steps(self) -> list[_Step]:
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
        standardised = normalise.name == "norm" and (normalise["axis"], normalise["mode"]) == ("C", "auto")
        # Of masked cells a maximum may be 0 in all channels of one side: such a row has no correlation.
        flattened = self.attention is not None and self.attention.name == "mask" and not self._scale_is("local")
        if self.distance.name == "l2" and standardised and not flattened:
            # Standardised rows s and t: mean (s - t)^2 = 1 + 1 - 2 correlation.
            self.distance, self.factor = _Step.parse("pearson"), 2.0

    def _drop_normalisation_under_invariant_distance(self) -> None:
        name, normalise = self.distance.name, self.normalise
        if normalise is None:
            return
        if normalise.name == "norm" and normalise["axis"] == "C" and name in _DIRECTIONS:
            # Standardising a row centres it, and the cosine of centred rows is their correlation.
            if normalise["mode"] == "auto":
                self.distance = _Step.parse("pearson")
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
        normalised_over = self.normalise["axis"] if self.normalise is not None else None
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
        if self._scale_is("local") and name in _POSITIONWISE:
            per_position = normalise is None or normalise["axis"] == "C" or normalise["scope"] == "batch"
        elif self._scale_is("win") and name in _ELEMENTWISE:
            per_position = normalise is None or normalise["axis"] == "N"
        else:
            return
        if per_position:
            self.scale = None

    def _scale_is(self, *names: str) -> bool:
        return self.scale is None or self.scale.name in names


def _takes_means_by_position(knowledge: str) -> bool:
    """Whether the loss is a mean under a weight per position: a sum over elements and one over rows would differ."""
    name, _, arguments = parse_expression(knowledge)
    return name in _WEIGHTED_BY_POSITION and arguments.get("per", "weight") == "weight"


def _literal(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
