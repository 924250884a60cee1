"""What is known before a search: hand-designed policies, best first, as published or at a strength that did well."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

import yaml

from detkds.policy import Policy, Term


@dataclass(frozen=True)
class Entry:
    """One policy of the portfolio.

    Attributes:
        policy: the shipped policy's name.
        strength: the norm of its terms' gradients relative to the task's; None: its published weights.
    """

    policy: str
    strength: float | None = None

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return self.policy if self.strength is None else f"{self.policy} at {self.strength:g}"

    def form(self, relative: Policy) -> Policy:
        """The policy to train, from the shipped one with its weights as ratios to the task's gradient."""
        policy = relative if self.strength is None else at_strength(relative, self.strength)
        return replace(policy, name=self.name)


@cache
def load_portfolio() -> tuple[Entry, ...]:
    """The shipped portfolio, in its order."""
    text = (resources.files("detkds.policy_search") / "portfolio.yaml").read_text(encoding="utf-8")
    return tuple(Entry(**entry) for entry in yaml.safe_load(text))


def at_strength(policy: Policy, strength: float) -> Policy:
    """The policy with the ratios of its terms scaled so that their norm is ``strength``; absolute weights stay."""
    ratios = [term.weight for term in policy if term.weighting == "gradient"]
    norm = math.sqrt(sum(ratio**2 for ratio in ratios))
    return policy if norm == 0 else replace(policy, terms=[scaled(term, strength / norm) for term in policy])


def scaled(term: Term, factor: float) -> Term:
    """The term with its ratio times a factor, to three digits, so that what is scaled up and down again is the same."""
    return replace(term, weight=float(f"{term.weight * factor:.3g}")) if term.weighting == "gradient" else term
