"""Monte-Carlo tree search: one level of the tree per gene, in the order in which the operations apply."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from detkds.config import SearchConfig
from detkds.errors import ConfigError, Faults
from detkds.policy_search.result import State, Trial
from detkds.policy_search.samplers.base import Proposal, SearchSampler
from detkds.policy_search.space import Option, Params, SearchSpace, draw
from detkds.registry import SAMPLERS

Prefix = tuple[Option, ...]
"""A node of the tree: the options of its first levels."""

HALF_TRUST = 5
"""Measurements below a node, for many elsewhere, at which its own mean counts as much again as that of its option."""


@dataclass(slots=True)
class Node:
    """Visits, those of them that gave a reward, and the sum of these rewards, each in [0, 1]."""

    visits: int = 0
    measured: int = 0
    total: float = 0.0

    def add(self, reward: float | None) -> None:
        """Back one visit up."""
        self.visits += 1
        if reward is not None:
            self.measured += 1
            self.total += reward

    def mean(self, default: float) -> float:
        """The mean reward; ``default`` where there is none."""
        return self.total / self.measured if self.measured else default


@dataclass(frozen=True)
class Tree:
    """What the trials so far say of every prefix, and of every option at its level wherever it was chosen."""

    nodes: defaultdict[Prefix, Node] = field(default_factory=lambda: defaultdict(Node))
    options: defaultdict[tuple[int, Option], Node] = field(default_factory=lambda: defaultdict(Node))


@SAMPLERS.register("mcts")
class TreeSearch(SearchSampler):
    """Descend by upper confidence bounds, open an unvisited child at random, complete it at random.

    A child's bound is mean + c sqrt(ln N_parent / N_child). Rewards are AP, scaled to the range of what was measured;
    a refused or pruned candidate counts as the worst. A failed or running one is a visit without a reward. With
    ``amaf`` the mean is mixed with that of the same option on the same level in all branches, of n_A measurements to
    n of its own: weight n_A / (n_A + n + n n_A / 5). A loss that was proposed before is no leaf any more, nor is a node
    one whose leaves are all gone, so every descent ends at a new candidate.

    Source: Auto-KD (Li et al., ICCV 2023), of which neither tree nor constants are published; UCT as in Kocsis and
    Szepesvari (2006), the mixture as in Gelly and Silver (2011). ``c=1.41, amaf=false`` is plain UCT.

    Args:
        c: weight of the exploration term, >= 0, on rewards in [0, 1].
        amaf: whether options share what is known of them between branches.
        order: levels in the ``forward`` order of the genes, or in ``reverse``.

    Raises:
        ConfigError: listing every argument that cannot be used.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        config: SearchConfig,
        initial: Sequence[Params] = (),
        *,
        c: float = 0.5,
        amaf: bool = True,
        order: Literal["forward", "reverse"] = "forward",
    ) -> None:
        faults = Faults("mcts")
        if isinstance(c, bool) or not isinstance(c, int | float) or not 0 <= c < math.inf:
            faults.add(f"c: expected a finite number >= 0, got {c!r}")
        if not isinstance(amaf, bool):
            faults.add(f"amaf: expected true or false, got {amaf!r}")
        if order not in ("forward", "reverse"):
            faults.add(f"order: expected 'forward' or 'reverse', got {order!r}")
        faults.raise_as(ConfigError)
        super().__init__(space, seed, config, initial)
        self.c = float(c)
        self.amaf = amaf
        self.levels = tuple(space.genes) if order == "forward" else tuple(reversed(list(space.genes)))

    def propose(self, history: Sequence[Trial], number: int, rng: np.random.Generator) -> Proposal:
        """The initial choices, then the leaf that one descent leads to."""
        seen = {trial.key for trial in history}
        for place, params in enumerate(self.initial):
            if self.space.legal(params) and self.space.key(params) not in seen:
                return Proposal(dict(params), "init", place)
        leaf = self._descend(self.replay(history), seen, rng)
        return Proposal(draw(self.space, rng), "exhausted") if leaf is None else Proposal(self._params(leaf), "leaf")

    def replay(self, history: Sequence[Trial]) -> Tree:
        """Back up every trial, in the order of their numbers."""
        known = [trial.fitness[1] for trial in history if trial.state is State.COMPLETE]
        worst, best = (min(known), max(known)) if known else (0.0, 0.0)
        tree = Tree()
        for trial in history:
            reward = None
            if trial.state is State.COMPLETE:
                reward = (trial.fitness[1] - worst) / (best - worst) if best > worst else 0.5
            elif trial.state in (State.FILTERED, State.PRUNED):
                reward = 0.0
            leaf = tuple(trial.params[name] for name in self.levels)
            tree.nodes[()].add(reward)
            for level, option in enumerate(leaf):
                tree.nodes[leaf[: level + 1]].add(reward)
                tree.options[level, option].add(reward)
        return tree

    def _descend(self, tree: Tree, seen: set[str], rng: np.random.Generator) -> Prefix | None:
        prefix: Prefix = ()
        used_up: set[Prefix] = set()
        while len(prefix) < len(self.levels):
            options = self.space.genes[self.levels[len(prefix)]]
            children = [child for option in options if self._has_new(child := (*prefix, option), seen, used_up)]
            if not children:
                return None
            unvisited = [child for child in children if child not in tree.nodes]
            among = unvisited or children
            among = [among[i] for i in rng.permutation(len(among))]
            prefix = among[0] if unvisited else max(among, key=lambda child: self.bound(tree, child))
        return prefix

    def bound(self, tree: Tree, child: Prefix) -> float:
        """The upper confidence bound of a visited node."""
        node, parent = tree.nodes[child], tree.nodes[child[:-1]]
        neutral = tree.nodes[()].mean(0.5)
        mean = node.mean(neutral)
        if self.amaf:
            shared = tree.options[len(child) - 1, child[-1]]
            own, others = node.measured, shared.measured
            weight = others / (others + own + own * others / HALF_TRUST) if others else 0.0
            mean = (1 - weight) * mean + weight * shared.mean(neutral)
        return mean + self.c * math.sqrt(math.log(parent.visits) / node.visits)

    def _has_new(self, prefix: Prefix, seen: set[str], used_up: set[Prefix]) -> bool:
        """Whether a legal leaf of a loss that was not proposed yet can be reached."""
        if prefix in used_up:
            return False
        if len(prefix) == len(self.levels):
            params = self._params(prefix)
            has_new = self.space.legal(params) and self.space.key(params) not in seen
        else:
            options = self.space.genes[self.levels[len(prefix)]]
            has_new = any(self._has_new((*prefix, option), seen, used_up) for option in options)
        if not has_new:
            used_up.add(prefix)
        return has_new

    def _params(self, leaf: Prefix) -> dict[str, Option]:
        chosen = dict(zip(self.levels, leaf, strict=True))
        return {name: chosen[name] for name in self.space.genes}
