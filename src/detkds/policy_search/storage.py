"""Where trials are kept: an Optuna storage, by default one journal file."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from detkds.errors import UserError
from detkds.policy import Policy
from detkds.policy_search.journal import RESTORE, JournalFile
from detkds.policy_search.result import SearchError, State, Trial
from detkds.policy_search.space import SearchSpace
from detkds.policy_search.whole import PolicySpace

PROPOSAL, WAVE, ORIGIN = "proposal", "wave", "origin"
"""Attributes in which a trial keeps what it was proposed as and its wave, and a study what it was begun with."""

_STATES = {
    State.COMPLETE: TrialState.COMPLETE,
    State.PRUNED: TrialState.PRUNED,
    State.FILTERED: TrialState.PRUNED,
    State.FAILED: TrialState.FAIL,
}


class StoredTrials:
    """The trials of one study in an Optuna storage.

    Args:
        storage: where they are kept.
        name: of the study in the storage.
        space: what their choices mean.

    Raises:
        SearchError: the storage does not hold what a search writes.
    """

    def __init__(self, storage: BaseStorage, name: str, space: SearchSpace) -> None:
        self.name = name
        self._storage = storage
        self._space = space
        self._distributions = {gene: CategoricalDistribution(options) for gene, options in space.genes.items()}
        try:
            self.study_id = storage.get_study_id_from_name(name)
        except KeyError:
            with _quiet():
                self.study_id = storage.create_new_study([StudyDirection.MAXIMIZE], name)

    def check_origin(self, origin: dict[str, Any]) -> None:
        """Keep what the study is begun with, or compare it with what is kept.

        Raises:
            SearchError: the study was begun with something else.
        """
        origin = json.loads(json.dumps(origin))
        stored = self._storage.get_study_user_attrs(self.study_id).get(ORIGIN)
        if stored is None:
            self._storage.set_study_user_attr(self.study_id, ORIGIN, origin)
        elif not isinstance(stored, dict):
            raise SearchError(f"study {self.name}: its origin cannot be read; {RESTORE}")
        elif stored != origin:
            raise SearchError(
                f"study {self.name}: the stored search was begun with another {part}: it has {stored.get(part)}, "
                f"this run has {origin[part]}; use the same or another folder"
                for part in origin
                if stored.get(part) != origin[part]
            )

    def load(self, study: str) -> list[Trial]:
        """All trials, by number, as those of ``study``, which is the name to show.

        Raises:
            SearchError: a trial does not hold what a search writes.
        """
        stored = sorted(self._storage.get_all_trials(self.study_id, deepcopy=False), key=lambda trial: trial.number)
        return [self._load(study, trial) for trial in stored]

    def add(self, trial: Trial) -> None:
        """Store a trial, running or finished, with its choice, in one write.

        Raises:
            SearchError: another process has written to the study.
        """
        running = trial.state is None
        proposal = {"role": trial.role, "iteration": trial.iteration, "parents": list(trial.parents)}
        frozen = FrozenTrial(
            number=-1,
            trial_id=-1,
            state=TrialState.RUNNING if trial.state is None else _STATES[trial.state],
            value=None if running else trial.ap,
            datetime_start=datetime.now(),
            datetime_complete=None if running else datetime.now(),
            params={gene: trial.params[gene] for gene in self._distributions},
            distributions=self._distributions,  # type: ignore[arg-type]
            user_attrs={"key": trial.key, "policy": trial.policy.to_dict(), **({} if running else _outcome(trial))},
            system_attrs={PROPOSAL: proposal, **({WAVE: list(trial.wave)} if trial.wave else {})},
            intermediate_values={},
        )
        trial_id = self._storage.create_new_trial(self.study_id, frozen)
        if self._storage.get_trial_number_from_id(trial_id) != trial.number:
            raise SearchError(f"study {self.name}: another process is searching in this storage; wait for it to end")

    def choose(self, trial_id: int, trial: Trial) -> None:
        """Store the choice of a trial that was created without one."""
        for gene, distribution in self._distributions.items():
            value = distribution.to_internal_repr(trial.params[gene])
            self._storage.set_trial_param(trial_id, gene, value, distribution)

    def finish(self, trial: Trial) -> None:
        """Store the outcome of a trial that ran, in one write where the storage can do so."""
        assert trial.state is not None
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self.study_id, trial.number)
        values = [trial.ap] if trial.state is State.COMPLETE else list(trial.rungs[-1:])
        group = self._storage.grouped() if isinstance(self._storage, JournalFile) else contextlib.nullcontext()
        with group:
            for name, value in _outcome(trial).items():
                self._storage.set_trial_user_attr(trial_id, name, value)
            for rung, ap in enumerate(trial.rungs, start=1):
                self._storage.set_trial_intermediate_value(trial_id, rung, ap)
            self._storage.set_trial_state_values(trial_id, _STATES[trial.state], values or None)  # type: ignore[arg-type]

    def _load(self, study: str, stored: FrozenTrial) -> Trial:
        try:
            params = {name: stored.params[name] for name in self._space.genes}
            if isinstance(self._space, PolicySpace):
                params = self._space.params(Policy.from_dict(stored.user_attrs["policy"]))
            for name, options in self._space.genes.items():
                if params[name] not in options:
                    raise ValueError(f"{name}: {params[name]!r} is no option")
            proposal, wave = stored.system_attrs[PROPOSAL], stored.system_attrs.get(WAVE)
            trial = Trial(
                study, stored.number, None, params, self._space.policy(params), self._space.key(params),
                role=str(proposal["role"]), iteration=int(proposal["iteration"]),
                parents=tuple(map(int, proposal["parents"])),
                wave=None if wave is None else (int(wave[0]), int(wave[1])),
            )  # fmt: skip
            return replace(trial, **_read_outcome(stored)) if stored.state.is_finished() else trial
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, UserError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise SearchError(f"study {self.name}: trial {stored.number} is damaged ({reason}); {RESTORE}") from None


def stored_trials(store: str | Path | BaseStorage) -> list[Trial]:
    """All finished trials of all studies, for a report: with the policies that were stored, and no study's space.

    Raises:
        SearchError: the store cannot be opened, or a trial does not hold what a search writes.
    """
    storage = open_storage(store)
    assert storage is not None
    return [
        _shown(study.study_name.partition("-")[0], stored)
        for study in storage.get_all_studies()
        for stored in storage.get_all_trials(study._study_id, deepcopy=False)
        if stored.state.is_finished()
    ]


def _shown(study: str, stored: FrozenTrial) -> Trial:
    try:
        attrs, proposal = stored.user_attrs, stored.system_attrs[PROPOSAL]
        policy, key = Policy.from_dict(attrs["policy"]), str(attrs["key"])
        trial = Trial(study, stored.number, None, dict(stored.params), policy, key, role=str(proposal["role"]))
        return replace(trial, **_read_outcome(stored))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, UserError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise SearchError(f"study {study}: trial {stored.number} is damaged ({reason}); {RESTORE}") from None


def _read_outcome(stored: FrozenTrial) -> dict[str, Any]:
    attrs = stored.user_attrs
    state, ap = State(attrs["outcome"]), attrs["ap"]
    if not (state is not State.COMPLETE and ap is None) and not math.isfinite(ap):
        raise ValueError(f"ap: {ap} is no finite number")
    if state is State.COMPLETE and ap != stored.value:
        raise ValueError(f"ap: {ap} is not the trial's value, {stored.value}")
    return {
        "state": state,
        "ap": None if ap is None else float(ap),
        "metrics": {str(name): float(value) for name, value in attrs["metrics"].items()},
        "reason": str(attrs["reason"]),
        "seconds": float(attrs["seconds"]),
        "resolved": None if attrs["resolved"] is None else dict(attrs["resolved"]),
        "counts": bool(attrs["counts"]),
        "duplicate_of": str(attrs["duplicate_of"]),
        "rungs": tuple(map(float, attrs["rungs"])),
        "epochs": float(attrs["epochs"]),
    }


def _outcome(trial: Trial) -> dict[str, Any]:
    return {
        "outcome": None if trial.state is None else trial.state.value,
        "reason": trial.reason,
        "ap": trial.ap,
        "metrics": dict(trial.metrics),
        "counts": trial.counts,
        "seconds": trial.seconds,
        "rungs": list(trial.rungs),
        "epochs": trial.epochs,
        "resolved": None if trial.resolved is None else dict(trial.resolved),
        "duplicate_of": trial.duplicate_of,
    }


def open_storage(store: str | Path | BaseStorage | None) -> BaseStorage | None:
    """Open where trials are kept.

    Args:
        store: a journal file or the folder it is in (``study.journal``), the URL of any Optuna storage
            (``postgresql://...``), an Optuna storage, or None, which keeps nothing.

    Raises:
        SearchError: it cannot be opened or is damaged.
    """
    if store is None or isinstance(store, BaseStorage):
        return store
    if isinstance(store, str) and "://" in store:
        try:
            return optuna.storages.get_storage(store)
        except Exception as error:  # the storage behind a URL may raise anything
            raise SearchError(f"search.storage: {store.split('@')[-1]} cannot be opened: {error}") from None
    return JournalFile(journal_path(store))


def journal_path(store: str | Path) -> Path:
    """The journal file that a path stands for: itself (``*.journal``, ``*.log``), or ``study.journal`` in a folder."""
    path = Path(store)
    is_file = path.is_file() or (path.suffix in (".journal", ".log") and not path.is_dir())
    return path if is_file else path / "study.journal"


@contextlib.contextmanager
def locked(store: str | Path | BaseStorage | None) -> Iterator[None]:
    """Hold a file-based search for this process alone; freed by the system when the process ends, however it does.

    Raises:
        SearchError: another process is searching in the same file, or it cannot be locked.
    """
    if store is None or isinstance(store, BaseStorage) or "://" in str(store):
        yield
        return
    path = journal_path(store)
    lock_path = path.with_suffix(".lock")
    lock = FileLock(lock_path, timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise SearchError(f"{path}: another process is searching here; wait for it or use another folder") from None
    except (OSError, NotImplementedError) as error:
        raise SearchError(f"{lock_path}: cannot be locked: {error}; if it is no file, remove it") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from reporting every study it creates."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
