"""Search over whole policies: first the portfolio, then changes of the best so far.

A choice is a policy itself, so there are no genes to list: what is proposed comes from the portfolio, from terms of the
leaders and from single terms of the space.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from detkds.config import SearchConfig
from detkds.errors import PolicyError
from detkds.policy import Policy, Term
from detkds.policy_search.policy_surrogate import PolicySurrogate, preference
from detkds.policy_search.portfolio import scaled
from detkds.policy_search.result import Trial, rank
from detkds.policy_search.samplers.base import Proposal, SearchSampler
from detkds.policy_search.space import Option, Params, Space, draw

POLICIES = "policies"
"""The name of the study of whole policies, and of its only gene."""

PORTFOLIO = "portfolio"
"""The role of the trials that a search begins with."""

WAVE = 8
"""Candidates proposed before any of their results is known."""

GROUP = 4
"""Candidates of a wave that are compared with one another where losing ones stop early, and so trained together."""

CHILDREN = 64
"""Policies of which the most promising one is trained."""

LEADERS = 5
"""The best so far, which are changed and put together."""

MOST_TERMS = 6
"""Terms of a policy at most: each costs time in every step."""

FACTORS = (1 / 3, 3.0)
"""Changes of a weight or of all weights of a policy."""

CHANGES = {"join": 0.3, "weight": 0.2, "strength": 0.15, "drop": 0.1, "exchange": 0.1, "piece": 0.1, "add": 0.05}
"""How often a child is made in each way."""


@dataclass(frozen=True)
class PolicySpace:
    """All policies.

    Attributes:
        spaces: by kind of knowledge, what single terms are drawn from.
    """

    spaces: Mapping[str, Space]

    @property
    def genes(self) -> Mapping[str, tuple[Option, ...]]:
        """None: a policy is given by its own text."""
        return {}

    def legal(self, params: Params) -> bool:
        """Every policy is."""
        return POLICIES in params

    def key(self, params: Params) -> str:
        """The text of the canonical policy."""
        return self.policy(params).key

    def policy(self, params: Params) -> Policy:
        """The policy that its text stands for."""
        return Policy.from_dict(json.loads(str(params[POLICIES])))

    def params(self, policy: Policy) -> dict[str, Option]:
        """The inverse of :meth:`policy`."""
        return {POLICIES: json.dumps(policy.to_dict(), sort_keys=True)}

    def describe(self) -> dict[str, Any]:
        """Plain data: what terms are drawn from."""
        return {kind: space.describe() for kind, space in self.spaces.items()}


class PolicyEvolution(SearchSampler):
    """Trains the portfolio, then children of the leaders, in waves.

    A child is made of one of the best :data:`LEADERS` policies, chosen with a probability of 1 / rank: joined with
    another leader's terms, one weight or all weights times 3 or 1/3, a term less, a term of another leader in its
    place, another distance or chain of transforms, or a term of the space more. Of :data:`CHILDREN` the one with the
    largest expected improvement (:class:`~detkds.policy_search.policy_surrogate.PolicySurrogate`) is proposed, times
    how much its pieces are preferred by the portfolio, to a power that fades with the square of the wave.

    Source: the fading prior is that of piBO (Hvarfner et al., ICLR 2022), equation 5, and of DynaBO (arXiv 2511.02570).

    Args:
        space: of policies.
        initial: the portfolio, best first.
        prior: whether the portfolio's preferences count.
    """

    space: PolicySpace

    def __init__(
        self,
        space: PolicySpace,
        seed: int,
        config: SearchConfig,
        initial: Sequence[Params] = (),
        *,
        prior: bool = True,
    ) -> None:
        super().__init__(space, seed, config, initial)
        self.prior = prior
        self._portfolio = [space.policy(params) for params in self.initial]

    def propose(self, history: Sequence[Trial], number: int, rng: np.random.Generator) -> Proposal:
        """The next policy of the portfolio, or else the most promising child."""
        if number < len(self.initial):
            return Proposal(dict(self.initial[number]), PORTFOLIO, number)
        seen = {trial.key for trial in history}
        leaders = rank(history, stopped=True)[:LEADERS]
        children: dict[str, tuple[Policy, Trial | None]] = {}
        for _ in range(20 * CHILDREN):
            child, parent = self._child(leaders, rng)
            if child is not None and child.key not in seen:
                children.setdefault(child.key, (child, parent))
            if len(children) == CHILDREN:
                break
        if not children:
            return Proposal(dict(self.initial[0]) if self.initial else {POLICIES: "{}"}, "exhausted", number)
        policies = [child for child, _ in children.values()]
        best, parent = list(children.values())[int(np.argmax(self._promise(policies, history)))]
        parents = () if parent is None else (parent.number,)
        return Proposal(self.space.params(best), "child", number, parents)

    def batch_size(self, history: Sequence[Trial], chunk: int) -> int:
        """The whole portfolio, then :data:`WAVE` children at a time."""
        return max(1, len(self.initial) - len(history)) if len(history) < len(self.initial) else WAVE

    def _promise(self, policies: Sequence[Policy], history: Sequence[Trial]) -> np.ndarray:
        """What is gained by training each: the larger, the better."""
        gain = PolicySurrogate(history).expected_improvement(policies)
        if not self.prior or not self._portfolio:
            return gain
        wave = 1 + max(0, len(history) - len(self.initial)) // WAVE
        return gain * preference(policies, self._portfolio) ** (1 / wave**2)

    def _child(self, leaders: Sequence[Trial], rng: np.random.Generator) -> tuple[Policy | None, Trial | None]:
        """A changed leader and whom it was made from; None where the change gives no policy."""
        if not leaders:
            return Policy([self._term(rng)]), None
        odds = 1 / np.arange(1, len(leaders) + 1)
        parent, other = (leaders[i] for i in rng.choice(len(leaders), 2, p=odds / odds.sum()))
        change = list(CHANGES)[int(rng.choice(len(CHANGES), p=list(CHANGES.values())))]
        try:
            terms = self._changed(change, list(parent.policy), list(other.policy), rng)
        except PolicyError:
            return None, None
        fits = 0 < len(terms) <= MOST_TERMS
        return (Policy(terms), parent) if fits else (None, None)

    def _changed(self, change: str, terms: list[Term], others: list[Term], rng: np.random.Generator) -> list[Term]:
        if change == "add" or not terms:
            return [*terms, self._term(rng)]
        place, factor = int(rng.integers(len(terms))), FACTORS[int(rng.integers(len(FACTORS)))]
        if change == "join":
            known = {unweighted(term) for term in terms}
            return terms + [term for term in others if unweighted(term) not in known]
        if change == "weight":
            terms[place] = scaled(terms[place], factor)
        elif change == "strength":
            return [scaled(term, factor) for term in terms]
        elif change == "drop":
            del terms[place]
        elif change == "exchange" and others:
            terms[place] = others[int(rng.integers(len(others)))]
        else:
            model = self._term(rng, terms[place])
            piece = "distance" if rng.random() < 0.5 else "transforms"
            terms[place] = replace(terms[place], **{piece: getattr(model, piece)})
        return terms

    def _term(self, rng: np.random.Generator, like: Term | None = None) -> Term:
        """A term of the space; of the same kind of knowledge as another where it is searched."""
        spaces = list(self.space.spaces.values())
        alike = [space for space in spaces if like is not None and space.takes(like.knowledge)]
        space = (alike or spaces)[int(rng.integers(len(alike or spaces)))]
        return space.term(draw(space, rng))


def unweighted(term: Term) -> str:
    """The text of a term's canonical form without its weight."""
    return term.canonical().key_at(1.0)
