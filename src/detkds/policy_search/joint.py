"""The undivided space: policies of at most one term of every kind of knowledge, searched all at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from detkds.errors import ConfigError
from detkds.policy import Policy
from detkds.policy_search.space import Option, Params, Space

OFF = 0.0
"""The weight of a term that is left out."""


@dataclass(frozen=True)
class JointSpace:
    """Every kind of knowledge with all its genes, each named ``kind.gene``; weight 0 leaves a term out.

    The policy without terms, which is the plain student, is not part of the space.

    Source: DetKDS (ICML 2024), Table 12, the search without divide-and-conquer.

    Attributes:
        spaces: the space of every kind of knowledge, by name.

    Raises:
        ConfigError: no space, or two of the same kind of knowledge.
    """

    spaces: Mapping[str, Space]
    genes: dict[str, tuple[Option, ...]] = field(init=False, repr=False)
    _names: dict[str, dict[str, str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kinds = [space.knowledge for space in self.spaces.values()]
        if not kinds or len(set(kinds)) != len(kinds):
            raise ConfigError(f"joint space: expected spaces of different kinds of knowledge, got {kinds or 'none'}")
        names = {kind: {gene: f"{kind}.{gene}" for gene in space.genes} for kind, space in self.spaces.items()}
        genes = {
            name: (OFF, *space.genes[gene]) if gene == "weight" else space.genes[gene]
            for kind, space in self.spaces.items()
            for gene, name in names[kind].items()
        }
        object.__setattr__(self, "genes", genes)
        object.__setattr__(self, "_names", names)

    def __hash__(self) -> int:
        return hash(tuple(self.spaces.items()))

    def legal(self, params: Params) -> bool:
        """Whether there is a term, and distance and transforms of every term fit together."""
        parts = self.parts(params)
        return bool(parts) and all(self.spaces[kind].legal(part) for kind, part in parts.items())

    def policy(self, params: Params) -> Policy:
        """The terms whose weight is above 0."""
        return Policy([self.spaces[kind].term(part) for kind, part in self.parts(params).items()])

    def key(self, params: Params) -> str:
        """The text of the canonical policy, put together from those of its terms."""
        return "; ".join(sorted(self.spaces[kind].key(part) for kind, part in self.parts(params).items()))

    @property
    def size(self) -> int:
        """Policies, as written; some are the same loss."""
        return math.prod(space.size + 1 for space in self.spaces.values()) - 1

    def count_canonical(self) -> int:
        """Distinct losses, from those of every kind of knowledge."""
        return math.prod(space.count_canonical() + 1 for space in self.spaces.values()) - 1

    def parts(self, params: Params) -> dict[str, dict[str, Option]]:
        """The choice in each kind's own space, of the terms that are not left out."""
        return {
            kind: {gene: params[name] for gene, name in names.items()}
            for kind, names in self._names.items()
            if params[names["weight"]] != OFF
        }

    def join(self, parts: Mapping[str, Params]) -> dict[str, Option]:
        """The choice made of one in each kind's own space; kinds that are not named are left out."""
        off = {name: OFF if name.endswith(".weight") else options[0] for name, options in self.genes.items()}
        return off | {self._names[kind][gene]: option for kind, part in parts.items() for gene, option in part.items()}

    def describe(self) -> dict[str, Any]:
        """Plain data: that of every kind's space."""
        return {kind: space.describe() for kind, space in self.spaces.items()}


def active(params: Params) -> dict[str, Option]:
    """The genes that have a say: in a joint space those of the terms that are not left out, and every weight.

    >>> active({"global.distance": "l1", "global.weight": 2.0, "logits.distance": "kl", "logits.weight": 0.0})
    {'global.distance': 'l1', 'global.weight': 2.0, 'logits.weight': 0.0}
    >>> active({"distance": "l1", "weight": 2.0})
    {'distance': 'l1', 'weight': 2.0}
    """
    off = {name.removesuffix(".weight") for name, option in params.items() if option == OFF}
    return {
        name: option
        for name, option in params.items()
        if name.rpartition(".")[0] not in off or name.endswith(".weight")
    }
