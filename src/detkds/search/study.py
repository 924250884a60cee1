"""One stored search over one space: asks a sampler, tells results, and resumes exactly where it was killed."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from detkds.policy import Policy
from detkds.search.cohort import group_peers
from detkds.search.journal import grouped
from detkds.search.result import Peers, Record, Result, SearchError, State, rank
from detkds.search.samplers.base import PROPOSAL, SearchSampler, trial_state
from detkds.search.space import Option, Params

WAVE = "wave"
"""The trial attribute ``[index, size]``: trials of one wave are proposed before any of them is measured."""

MAX_TWINS = 100
"""Twins in one wave after which a sampler is taken to have nothing new to propose."""

MAX_REFUSED = 100
"""Candidates refused or failed in a row after which a study is given up."""

_OPTUNA_STATES = {
    State.COMPLETE: TrialState.COMPLETE,
    State.PRUNED: TrialState.PRUNED,
    State.FILTERED: TrialState.PRUNED,
    State.FAILED: TrialState.FAIL,
}


@dataclass(frozen=True)
class Candidate:
    """A proposed policy that is to be measured."""

    study: str
    number: int
    trial_id: int
    params: Params
    policy: Policy
    key: str


@dataclass(frozen=True)
class _Standing:
    """Where the study stands: the wave in progress, its candidates, and what stopped it."""

    wave: int
    size: int
    proposed: int
    running: list[FrozenTrial]
    twins: list[tuple[FrozenTrial, Record]]
    unproposed: FrozenTrial | None
    stopped: str

    @property
    def complete(self) -> bool:
        return self.proposed >= self.size


class SearchStudy:
    """A thin layer over Optuna's ask and tell.

    Trials advance in waves: those of a wave are proposed before any of them is measured, and a wave is finished
    before the next begins. With samplers that are pure functions of the stored trials this makes a search that was
    killed, at any moment, end with the same trials as one that was not. What a killed process left running is
    measured again, under the same number and with the same choice, before anything new is proposed.

    Args:
        name: the study's name in the storage.
        sampler: proposes from its space.
        storage: where trials are kept.
        budget: candidate trainings; refused candidates and looked-up twins do not count.
        known: results of other studies by canonical key, reused at no cost.

    Raises:
        SearchError: the storage holds a study of this name with another space, seed or algorithm.
    """

    def __init__(
        self,
        name: str,
        sampler: SearchSampler,
        storage: BaseStorage,
        budget: int,
        known: Mapping[str, Record] | None = None,
    ) -> None:
        self.name = name
        self.space = sampler.space
        self.sampler = sampler
        self.budget = budget
        self.known = dict(known or {})
        self._storage = storage
        self._records: dict[int, Record] = {}
        self._policies: dict[tuple[Option, ...], Policy] = {}
        with _quiet():
            self._study = optuna.create_study(
                storage=storage, sampler=sampler, study_name=name, direction="maximize", load_if_exists=True
            )
        self._check_origin()

    @property
    def records(self) -> list[Record]:
        """All trials whose choice is stored, by number."""
        return [self._record(trial) for trial in self._trials() if self._is_proposed(trial)]

    @property
    def best(self) -> Record | None:
        """The completed record of highest AP; None where nothing was completed."""
        return next(iter(rank(self.records)), None)

    @property
    def trained(self) -> int:
        """Candidate trainings spent."""
        return sum(record.counts for record in self.records)

    @property
    def wave(self) -> int:
        """The index of the wave that is measured next."""
        standing = self._standing()
        finished = standing.complete and not standing.running and not standing.twins
        return standing.wave + 1 if finished else standing.wave

    @property
    def stopped(self) -> str:
        """Why nothing is measured any more (``budget``, ``exhausted``, ``refused``); empty while it goes on."""
        standing = self._standing()
        if standing.running or standing.twins:
            return ""
        if standing.stopped:
            return standing.stopped
        return "budget" if standing.complete and self._next_size() < 1 else ""

    def gather(self) -> list[Candidate]:
        """The candidates to measure now: what was left running, completed to its wave, or the next wave.

        Empty where the study has stopped.
        """
        while True:
            standing = self._standing()
            for trial, twin in standing.twins:
                self._look_up(trial, twin)
            if standing.twins:
                continue
            if standing.stopped:
                break
            if standing.complete and standing.running:
                break
            wave, size = standing.wave, standing.size
            if standing.complete:
                wave, size = wave + 1, self._next_size()
                if size < 1:
                    break
            self._propose(standing.unproposed, wave, size)
        return [self._candidate(trial) for trial in standing.running]

    def peers(self, candidates: Sequence[Candidate]) -> list[Peers]:
        """Whom each of these gathered candidates is compared with where losing ones stop early."""
        waves = {trial.number: trial.system_attrs[WAVE][0] for trial in self._trials() if WAVE in trial.system_attrs}
        numbers = [candidate.number for candidate in candidates]
        return group_peers(self.name, waves, self.records, numbers, self.sampler.settings.cohort)

    def tell(self, candidate: Candidate, result: Result) -> Record:
        """Store the measurement of a candidate."""
        result = result.checked()
        attrs: dict[str, Any] = {"counts": result.counts, "seconds": round(float(result.seconds), 3)}
        attrs |= {"rungs": list(map(float, result.rungs)), "epochs": round(float(result.epochs), 3)}
        if result.policy is not None and result.policy != candidate.policy:
            attrs["resolved"] = result.policy.to_dict()
        self._store(candidate, result.state, result.ap, result.metrics, result.reason, attrs)
        return self._record(self._storage.get_trial(candidate.trial_id))

    def add_seed(self, params: Params, record: Record) -> None:
        """Store a choice whose value is known from another study, once, at no cost."""
        key = self.space.key(params)
        if any(existing.key == key for existing in self.records):
            return
        assert record.ap is not None
        distributions = self.sampler.infer_relative_search_space(self._study, None)  # type: ignore[arg-type]
        self._study.add_trial(
            optuna.trial.create_trial(
                params=dict(params),
                distributions=distributions,
                value=record.ap,
                user_attrs=self._attrs(
                    params, State.COMPLETE, record.ap, record.metrics, "", _looked_up(record, self.name)
                ),
                system_attrs={PROPOSAL: {"role": "seed", "iteration": 0, "parents": []}},
            )
        )

    def _propose(self, unproposed: FrozenTrial | None, wave: int, size: int) -> None:
        trial = self._study.ask() if unproposed is None else optuna.Trial(self._study, unproposed._trial_id)
        trial.relative_params  # noqa: B018 - proposes here, where the sampler can read what it writes
        with grouped(self._storage):
            self._storage.set_trial_system_attr(trial._trial_id, WAVE, [wave, size])
            for name, options in self.space.genes.items():
                trial.suggest_categorical(name, options)

    def _next_size(self) -> int:
        return min(self.sampler.lot(self.sampler.history(self._study)), self.budget - self.trained)

    def _standing(self) -> _Standing:
        wave, size, proposed, twins_in_wave, refused = -1, 0, 0, 0, 0
        running: list[FrozenTrial] = []
        twins: list[tuple[FrozenTrial, Record]] = []
        unproposed: FrozenTrial | None = None
        exhausted = False
        settled: dict[str, Record] = {}
        running_keys: set[str] = set()
        for trial in self._trials():
            if not self._is_proposed(trial):
                unproposed = trial if trial.state is TrialState.RUNNING else unproposed
                continue
            record = self._record(trial)
            if WAVE in trial.system_attrs and trial.system_attrs[WAVE][0] != wave:
                wave, size = trial.system_attrs[WAVE]
                proposed = twins_in_wave = 0
            exhausted = exhausted or record.role == "exhausted"
            if record.state is None:
                twin = settled.get(record.key) or self.known.get(record.key)
                if twin is not None:
                    twins.append((trial, twin))
                elif record.key in running_keys:
                    twins_in_wave += 1
                else:
                    running_keys.add(record.key)
                    running.append(trial)
                    proposed += 1
                continue
            if record.twin_of:
                twins_in_wave += record.twin_of.startswith(f"{self.name}/")
            else:
                proposed += WAVE in trial.system_attrs
                is_refused = record.state in (State.FILTERED, State.FAILED)
                refused = refused + 1 if is_refused else 0
            settled.setdefault(record.key, record)
        stopped = (
            "exhausted"
            if exhausted or twins_in_wave >= MAX_TWINS
            else "refused"
            if refused >= MAX_REFUSED and not running
            else ""
        )
        return _Standing(wave, size, proposed, running, twins, unproposed, stopped)

    def _look_up(self, trial: FrozenTrial, twin: Record) -> None:
        assert twin.state is not None
        attrs = _looked_up(twin, self.name)
        self._store(self._candidate(trial), twin.state, twin.ap, twin.metrics, twin.reason, attrs)

    def _store(
        self,
        candidate: Candidate,
        state: State,
        ap: float | None,
        metrics: Mapping[str, float],
        reason: str,
        extra: Mapping[str, Any],
    ) -> None:
        with grouped(self._storage):
            for name, value in self._attrs(candidate.params, state, ap, metrics, reason, extra).items():
                self._storage.set_trial_user_attr(candidate.trial_id, name, value)
            for rung, value in enumerate(extra.get("rungs", ()), start=1):
                self._storage.set_trial_intermediate_value(candidate.trial_id, rung, value)
            values = ap if state is State.COMPLETE else None
            self._study.tell(candidate.number, values, state=_OPTUNA_STATES[state])

    def _attrs(
        self,
        params: Params,
        state: State,
        ap: float | None,
        metrics: Mapping[str, float],
        reason: str,
        extra: Mapping[str, Any],
    ) -> dict[str, Any]:
        return {
            "outcome": state.value,
            "reason": reason,
            "ap": None if ap is None or not math.isfinite(ap) else float(ap),
            "metrics": {name: float(value) for name, value in metrics.items() if math.isfinite(value)},
            "key": self.space.key(params),
            "policy": self._policy(params).to_dict(),
            **extra,
        }

    def _candidate(self, trial: FrozenTrial) -> Candidate:
        policy, key = self._policy(trial.params), self.space.key(trial.params)
        return Candidate(self.name, trial.number, trial._trial_id, dict(trial.params), policy, key)

    def _policy(self, params: Params) -> Policy:
        choice = tuple(params[name] for name in self.space.genes)
        if choice not in self._policies:
            self._policies[choice] = self.space.policy(params)
        return self._policies[choice]

    def _record(self, trial: FrozenTrial) -> Record:
        if trial._trial_id in self._records:
            return self._records[trial._trial_id]
        attrs, note = trial.user_attrs, trial.system_attrs.get(PROPOSAL, {})
        state = trial_state(trial)
        twin = f"{self.name}/{attrs['twin_of']}" if "twin_of" in attrs else attrs.get("reused", "")
        record = Record(
            study=self.name,
            number=trial.number,
            state=state,
            params=dict(trial.params),
            policy=self._policy(trial.params),
            key=self.space.key(trial.params),
            ap=attrs.get("ap") if state is not None else None,
            metrics=attrs.get("metrics", {}) if state is not None else {},
            reason=attrs.get("reason", ""),
            seconds=attrs.get("seconds", 0.0),
            resolved=attrs.get("resolved"),
            counts=bool(attrs.get("counts", False)) and state is not None,
            role=note.get("role", ""),
            iteration=note.get("iteration", 0),
            twin_of=twin if state is not None else "",
            rungs=tuple(attrs.get("rungs", ())),
            epochs=attrs.get("epochs", 0.0),
        )
        if state is not None:
            self._records[trial._trial_id] = record
        return record

    def _trials(self) -> Sequence[FrozenTrial]:
        return sorted(self._study.get_trials(deepcopy=False), key=lambda trial: trial.number)

    def _is_proposed(self, trial: FrozenTrial) -> bool:
        return self.space.genes.keys() <= trial.params.keys()

    def _check_origin(self) -> None:
        origin = {
            "seed": self.sampler.seed,
            "sampler": type(self.sampler).__name__,
            "settings": self.sampler.settings.algorithm(),
            "space": self.space.describe(),
            "initial": [self.space.key(params) for params in self.sampler.initial],
        }
        origin = json.loads(json.dumps(origin))
        stored = self._study.user_attrs.get("origin")
        if stored is None:
            self._study.set_user_attr("origin", origin)
        elif stored != origin:
            raise SearchError(
                f"study {self.name}: the stored search was begun with another {part}: it has {stored.get(part)}, "
                f"this run has {origin[part]}; use the same or another folder"
                for part in origin
                if stored.get(part) != origin[part]
            )


def _looked_up(record: Record, study: str) -> dict[str, Any]:
    attrs: dict[str, Any] = {"counts": False, "seconds": 0.0, "rungs": list(record.rungs)}
    attrs |= {"twin_of": record.number} if record.study == study else {"reused": record.place}
    if record.resolved is not None:
        attrs["resolved"] = dict(record.resolved)
    return attrs


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from reporting every study it creates."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
