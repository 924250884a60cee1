"""The space of the second stage: how much of each kind of knowledge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from detkds.errors import ConfigError
from detkds.policy import Policy, Term
from detkds.policy_search.space import Option, Params


@dataclass(frozen=True)
class CombinationSpace:
    """Weight vectors over one fixed term per kind of knowledge; weight 0 switches a term off.

    The vector of zeros, which is the plain student, is not part of the space.

    Attributes:
        terms: the term of every kind of knowledge.
        weights: the options of every weight; 0 is added where it is missing.
    """

    terms: Mapping[str, Term]
    weights: Sequence[float]
    genes: dict[str, tuple[Option, ...]] = field(init=False, repr=False)
    _keys: dict[tuple[Option, ...], str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.terms:
            raise ConfigError("combination space: expected at least one term, got none")
        weights = tuple(sorted({0.0, *map(float, self.weights)}))
        if len(weights) < 2 or not all(0 <= weight < math.inf for weight in weights):
            raise ConfigError(f"combination space: expected finite weights >= 0, one above 0, got {self.weights}")
        object.__setattr__(self, "genes", {name: cast(tuple[Option, ...], weights) for name in self.terms})

    def __hash__(self) -> int:
        return hash((tuple(self.terms.items()), tuple(self.weights)))

    def legal(self, params: Params) -> bool:
        """Whether any weight is above 0."""
        return any(params[name] for name in self.terms)

    def policy(self, params: Params) -> Policy:
        """The terms whose weight is above 0."""
        return Policy([replace(term, weight=float(params[name])) for name, term in self.terms.items() if params[name]])

    def key(self, params: Params) -> str:
        """The text of the canonical policy; remembered."""
        choice = tuple(params[name] for name in self.genes)
        if choice not in self._keys:
            self._keys[choice] = self.policy(params).key
        return self._keys[choice]

    @property
    def size(self) -> int:
        """Weight vectors other than zero."""
        return math.prod(len(options) for options in self.genes.values()) - 1

    def nearest(self, weights: Mapping[str, float]) -> dict[str, Option]:
        """The vector nearest to the wanted weights (0 stays 0, others by their logarithm)."""
        options = [float(option) for option in next(iter(self.genes.values())) if option]
        return {
            name: min(options, key=lambda option: abs(math.log(option / weights[name]))) if weights.get(name) else 0.0
            for name in self.terms
        }

    def describe(self) -> dict[str, Any]:
        """Plain data: terms and weights."""
        terms = {name: str(replace(term, weight=1.0)) for name, term in self.terms.items()}
        return {"terms": terms, "weights": [float(option) for option in next(iter(self.genes.values()))]}
