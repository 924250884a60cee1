"""One search over one space: asks a sampler for trials, is told their results, and resumes exactly."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import takewhile

import numpy as np
from optuna.storages import BaseStorage

from detkds.policy_search.halving import halving_groups
from detkds.policy_search.result import REFUSED, HalvingGroup, Result, Trial, rank
from detkds.policy_search.samplers.base import SearchSampler
from detkds.policy_search.space import Params
from detkds.policy_search.storage import StoredTrials

MAX_DUPLICATES = 100
"""Duplicates in one wave after which a sampler is taken to have nothing new to propose."""

MAX_REFUSED = 100
"""Candidates refused or failed in a row after which a study is given up."""


class SearchStudy:
    """Trials in waves: a trial is proposed by what was known before its wave began, and a wave ends before the next.

    So every trial follows from the sampler, its seed and the results of earlier waves, and the budget only says how
    many of them are made: those up to the one that spends it. A search that was killed at any moment, and one whose
    budget was changed in either direction, however often, therefore end with the trials of an uninterrupted one. The
    exception is successive halving: a group that one budget cut in two is compared with whom it was measured with.

    A study goes through its stored trials in the same way as it makes new ones. What a killed process left running is
    measured again, under the same number and with the same choice.

    Args:
        name: the study's name.
        sampler: proposes from its space.
        storage: where trials are kept; None keeps them in memory, which is many times faster.
        budget: candidate trainings; refused candidates and duplicates, which are looked up, do not count.
        known: trials of other studies by canonical key, reused at no cost.
        stored_as: the study's name in the storage, where it is not its own.
        chunk: how many candidates are measured side by side where no proposal depends on a result.
        group: candidates that are compared with one another where losing ones stop early; at most as many as the
            evaluator trains side by side.

    Raises:
        SearchError: the storage holds a study of this name with another space, seed or algorithm, or is damaged.
    """

    def __init__(
        self,
        name: str,
        sampler: SearchSampler,
        storage: BaseStorage | None,
        budget: int,
        known: Mapping[str, Trial] | None = None,
        *,
        stored_as: str = "",
        chunk: int = 4,
        group: int = 8,
    ) -> None:
        self.name = name
        self.space = sampler.space
        self.sampler = sampler
        self.budget = budget
        self.known = dict(known or {})
        self.chunk = chunk
        self.group = group
        self.trials: list[Trial] = []
        """All trials within the budget, by number."""
        self.trained = 0
        """Candidate trainings spent."""
        self._history: list[Trial] = []  # the trials as the sampler sees them
        self._settled: dict[str, Trial] = {}  # the first finished trial of every key
        self._running: dict[str, Trial] = {}  # new candidates of the wave, by key
        self._duplicates: list[Trial] = []  # of those
        self._wave, self._size, self._begin, self._new, self._repeated = -1, 0, 0, 0, 0
        self._exhausted = False
        self._store = StoredTrials(storage, stored_as or name, self.space) if storage is not None else None
        self._stored: deque[Trial] = deque()
        if self._store is not None:
            self._store.check_origin(sampler.describe())
            self._stored.extend(self._store.load(name))
        while self._stored and (self._stored[0].wave is None or self._places() > 0):
            self._take(self._stored.popleft())

    @property
    def best(self) -> Trial | None:
        """The completed trial of highest AP; None where nothing was completed."""
        return next(iter(rank(self.trials)), None)

    @property
    def wave(self) -> int:
        """The index of the wave that is measured next."""
        return self._wave + (self._new >= self._size and not self._running)

    @property
    def stopped(self) -> str:
        """Why nothing is measured any more (``budget``, ``exhausted``, ``refused``); empty while it goes on."""
        if self._running:
            return ""
        if self._exhausted:
            return "exhausted"
        if self._new >= self._size and self._refused() >= MAX_REFUSED:
            return "refused"
        return "budget" if self.trained >= self.budget else ""

    def ask(self) -> list[Trial]:
        """The trials to measure now: those of the wave that still run, completed to its size or to the budget.

        Empty where the study has stopped.
        """
        while self._places() > 0:
            self._take(self._stored.popleft() if self._stored else self._propose())
        return list(self._running.values())

    def tell(self, trial: Trial, result: Result) -> Trial:
        """Store the measurement of a trial that was asked for."""
        trial = self._running.pop(trial.key).measured(result)
        self._finish(trial)
        for duplicate in [other for other in self._duplicates if other.key == trial.key]:
            self._duplicates.remove(duplicate)
            self._finish(duplicate.looked_up(trial))
        return trial

    def groups(self, trials: Sequence[Trial]) -> list[HalvingGroup]:
        """The groups of trials that were asked for, where losing ones stop early."""
        return halving_groups(self.trials, [trial.number for trial in trials], self.group)

    def add_seed(self, params: Params, original: Trial) -> None:
        """Store a choice whose value is known from another study, before anything is proposed, once, at no cost."""
        key = self.space.key(params)
        if key in self._settled:
            return
        trial = Trial(self.name, len(self.trials), None, params, self.space.policy(params), key, role="seed")
        trial = trial.looked_up(original)
        if self._store is not None:
            self._store.add(trial)
        self._take(trial)

    def _places(self) -> int:
        """How many new candidates may run beside those that do; begins the next wave where the last one has ended."""
        places = self.budget - self.trained - len(self._running)
        if self._exhausted or places <= 0:
            return 0
        if self._new < self._size:
            return places
        if self._running or self._refused() >= MAX_REFUSED:
            return 0
        self._history = list(self.trials)
        self._begin, self._new, self._repeated = len(self.trials), 0, 0
        wave = self._stored[0].wave if self._stored else None
        self._wave, self._size = wave or (self._wave + 1, self.sampler.batch_size(self._history, self.chunk))
        return places

    def _refused(self) -> int:
        """How many candidates were refused or failed in a row until now."""
        new = (trial for trial in reversed(self.trials) if not trial.duplicate_of)
        return sum(1 for _ in takewhile(lambda trial: trial.state in REFUSED, new))

    def _propose(self) -> Trial:
        number = len(self.trials)
        proposal = self.sampler.propose(self._history, number, np.random.default_rng([self.sampler.seed, number]))
        trial = Trial(
            self.name, number, None, proposal.params, self.space.policy(proposal.params),
            self.space.key(proposal.params), role=proposal.role, iteration=proposal.iteration,
            parents=proposal.parents, wave=(self._wave, self._size),
        )  # fmt: skip
        if self._store is not None:
            self._store.add(trial)
        return trial

    def _take(self, trial: Trial) -> None:
        """Go on by one trial, stored or new."""
        original = self._settled.get(trial.key) or self.known.get(trial.key)
        self.trials.append(trial)
        self._exhausted = self._exhausted or trial.role == "exhausted"
        is_new = original is None and trial.key not in self._running
        if trial.wave is not None:
            self._new += is_new
            own = original is None or original.study == self.name
            self._repeated += own and not is_new
            self._exhausted = self._exhausted or self._repeated >= MAX_DUPLICATES
        if trial.state is not None:
            self._settle(trial)
        elif original is not None:
            trial = trial.looked_up(original)
            self._finish(trial)
        elif is_new:
            self._running[trial.key] = trial
        else:
            self._duplicates.append(trial)
        visible = trial.wave is None or trial.known_before(self._begin)
        self._history.append(trial if visible else trial.unmeasured())

    def _finish(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        if self._store is not None:
            self._store.finish(trial)
        self._settle(trial)

    def _settle(self, trial: Trial) -> None:
        self.trained += trial.counts
        self._settled.setdefault(trial.key, trial)
