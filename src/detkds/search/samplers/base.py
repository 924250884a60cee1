"""What every sampler shares: its only memory is the stored trials, and its draws depend on seed and number alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from detkds.search.result import State, fitness
from detkds.search.settings import SearchSettings
from detkds.search.space import Option, Params, SearchSpace, draw, points

REDRAWS = 20
"""How often a choice that was already made is drawn anew before the untried ones are listed (Algorithm 1, A1)."""

PROPOSAL = "proposal"
"""The trial attribute in which a sampler notes what it proposed the trial as."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A stored trial as a sampler sees it; ``state`` is None while it runs.

    ``twin`` marks a trial whose value was looked up from another trial of the same study.
    """

    number: int
    params: Params
    key: str
    state: State | None
    fitness: tuple[float, float, float]
    role: str
    iteration: int
    twin: bool


@dataclass(frozen=True)
class Proposal:
    """A choice, what it was made as, and from which trials.

    Roles: ``init``, ``mutant``, ``newcomer``, ``random`` and others of single samplers; ``exhausted`` where every legal
    choice was already made.
    """

    params: dict[str, Option]
    role: str
    iteration: int = 0
    parents: tuple[int, ...] = ()


class SearchSampler(BaseSampler):
    """Base of the samplers: the proposal for trial n is a pure function of seed, n and the trials before n.

    So a search that was killed continues as if it had not been, in whichever process. What a sampler takes besides
    these arguments is keyword-only; a configuration gives it as in ``mcts(c=1.41, amaf=false)``.

    Args:
        space: what to propose from.
        seed: a whole number >= 0.
        settings: algorithm parameters.
        initial: choices to begin with.
    """

    uses_budget: ClassVar[bool] = False
    """Whether proposals depend on the budget, so that a longer search does not begin with the shorter one's trials."""

    def __init__(self, space: SearchSpace, seed: int, settings: SearchSettings, initial: Sequence[Params] = ()) -> None:
        self.space = space
        self.seed = seed
        self.settings = settings
        self.initial = tuple(dict(params) for params in initial)
        self._finished: dict[int, Entry] = {}

    @abstractmethod
    def propose(self, history: Sequence[Entry], number: int, rng: np.random.Generator) -> Proposal:
        """Choose the next candidate, given all earlier trials in the order of their numbers."""

    def lot(self, history: Sequence[Entry]) -> int:
        """How many candidates may be proposed now, before any of their results is known."""
        return self.settings.parallel

    def history(self, study: Study, before: int | None = None) -> list[Entry]:
        """The trials numbered below ``before`` whose choice is stored."""
        trials = study.get_trials(deepcopy=False)
        entries = [self._entry(trial) for trial in trials if before is None or trial.number < before]
        return sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.number)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every gene is chosen together with all others."""
        return {name: CategoricalDistribution(options) for name, options in self.space.genes.items()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose, and note the role of the proposal with the trial."""
        rng = np.random.default_rng([self.seed, trial.number])
        proposal = self.propose(self.history(study, trial.number), trial.number, rng)
        note = {"role": proposal.role, "iteration": proposal.iteration, "parents": list(proposal.parents)}
        study._storage.set_trial_system_attr(trial._trial_id, PROPOSAL, note)
        return proposal.params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refused: a parameter outside the space."""
        raise KeyError(f"{param_name!r} is no gene of the space; its genes are {', '.join(self.space.genes)}")

    def unseen(self, seen: set[str], rng: np.random.Generator) -> dict[str, Option] | None:
        """A random legal choice whose key is not in ``seen``; None where there is none left."""
        for _ in range(REDRAWS):
            params = draw(self.space, rng)
            if self.space.key(params) not in seen:
                return params
        every = list(points(self.space))
        return next((every[i] for i in rng.permutation(len(every)) if self.space.key(every[i]) not in seen), None)

    def _entry(self, trial: FrozenTrial) -> Entry | None:
        known = self._finished.get(trial._trial_id)
        if known is not None:
            return known
        if not self.space.genes.keys() <= trial.params.keys():
            return None
        note = trial.system_attrs.get(PROPOSAL, {})
        attrs = trial.user_attrs
        state = trial_state(trial)
        entry = Entry(
            number=trial.number,
            params=trial.params,
            key=self.space.key(trial.params),
            state=state,
            fitness=fitness(state, attrs.get("ap", trial.value), attrs.get("metrics", {}), attrs.get("rungs", ())),
            role=note.get("role", ""),
            iteration=note.get("iteration", 0),
            twin="twin_of" in attrs,
        )
        if state is not None:
            self._finished[trial._trial_id] = entry
        return entry


def trial_state(trial: FrozenTrial) -> State | None:
    """How a stored trial ended; None while it runs or waits."""
    if not trial.state.is_finished():
        return None
    default = {TrialState.COMPLETE: State.COMPLETE, TrialState.PRUNED: State.PRUNED}
    return State(trial.user_attrs.get("outcome", default.get(trial.state, State.FAILED)))
