"""The whole search: the best single-term policy of every kind of knowledge, then the best combination of them.

Or, for comparison, one search of the joint space of all kinds.
"""

from __future__ import annotations

import inspect
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from optuna.storages import BaseStorage, InMemoryStorage

from detkds.errors import ConfigError, Faults, UserError, unknown_name
from detkds.policy import Policy, Term
from detkds.registry import SAMPLERS, parse_expression
from detkds.search.combination import CombinationSpace
from detkds.search.joint import JointSpace
from detkds.search.journal import open_storage, sole_search
from detkds.search.result import Evaluator, Record, SearchError, rank
from detkds.search.samplers.base import SearchSampler
from detkds.search.settings import SearchSettings
from detkds.search.space import Params, SearchSpace, Space
from detkds.search.study import Candidate, SearchStudy

COMBINATION = "combination"
"""The name of the second stage's study."""

JOINT = "joint"
"""The name of the only study of a search that is not divided."""


@dataclass(frozen=True)
class Event:
    """What a search reports while it runs.

    ``stored``: a trial was measured before. ``round``: candidates are about to be measured. ``trial``: one was
    measured. ``study``: a study has stopped, with its best record. ``left_out``: a kind of knowledge found nothing,
    with the reason in ``message``.
    """

    kind: Literal["stored", "round", "trial", "study", "left_out"]
    study: str = ""
    record: Record | None = None
    candidates: tuple[Candidate, ...] = ()
    message: str = ""


@dataclass(frozen=True)
class SearchOutcome:
    """What a search found.

    Attributes:
        best: the record of highest proxy AP.
        per_knowledge: the best single-term record of every kind of knowledge; empty where they were searched together.
        finalists: the best distinct policies, best first, for a comparison at the full budget.
        records: all trials of all studies.
        left_out: why kinds of knowledge found nothing.
    """

    best: Record
    per_knowledge: Mapping[str, Record]
    finalists: tuple[Record, ...]
    records: tuple[Record, ...]
    left_out: Mapping[str, str]

    @property
    def trained(self) -> int:
        """Candidate trainings spent."""
        return sum(record.counts for record in self.records)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "best": self.best.to_dict(),
            "per_knowledge": {name: record.to_dict() for name, record in self.per_knowledge.items()},
            "finalists": [record.to_dict() for record in self.finalists],
            "left_out": dict(self.left_out),
            "trained": self.trained,
        }


def search(
    evaluator: Evaluator,
    spaces: Mapping[str, Space],
    settings: SearchSettings | None = None,
    store: str | Path | BaseStorage | None = None,
    seed: int = 0,
    on_event: Callable[[Event], None] | None = None,
    warm_start: Sequence[Policy] = (),
) -> SearchOutcome:
    """Divide and conquer (Algorithm 1 of the paper): evolve each kind of knowledge alone, then their weights.

    With ``settings.divide`` false one study of the joint space spends all trainings instead (the paper's Table 12).

    The first stage's studies are independent, and advance side by side: one round measures the next candidates of
    each in one call of the evaluator. Called again with the same store the search continues where it ended, and
    with a deterministic evaluator it ends with the same trials and the same winner as if it had not been interrupted.

    Args:
        evaluator: measures policies.
        spaces: the space of every kind of knowledge, by name.
        settings: algorithm and budgets.
        store: a journal file or run folder, the URL of an Optuna storage, or a storage; None keeps nothing.
        seed: a whole number >= 0.
        on_event: told what happens.
        warm_start: policies whose terms join the initial populations.

    Raises:
        SearchError: the store cannot be used, or no candidate could be completed.
        ConfigError: a warm-start term lies outside its space, or the seed is no whole number >= 0.
    """
    settings = settings or SearchSettings()
    tell = on_event or (lambda event: None)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed: expected a whole number >= 0, got {seed!r}")
    if not spaces:
        raise SearchError("search: expected the space of at least one kind of knowledge, got none")
    samplers = _samplers(spaces, settings, seed, warm_start)
    store = InMemoryStorage() if store is None else store
    with sole_search(store):
        storage = open_storage(store)
        studies = {
            name: SearchStudy(name, sampler, storage, sampler.settings.single_budget)
            for name, sampler in samplers.items()
        }
        run_side_by_side(list(studies.values()), evaluator, tell)
        best, left_out = _harvest(studies, tell)
        records = [record for study in studies.values() for record in study.records]
        if not best:
            raise SearchError([f"{name}: no candidate was completed: {reason}" for name, reason in left_out.items()])
        if settings.divide and len(best) > 1 and settings.combination_budget > 0:
            study = _combination(best, records, spaces, storage, settings, seed)
            run_side_by_side([study], evaluator, tell)
            tell(Event("study", study.name, study.best, message=study.stopped))
            records += study.records
    ranked = rank(records)
    best = best if settings.divide else {}
    return SearchOutcome(ranked[0], best, tuple(ranked[: settings.finalists]), tuple(records), left_out)


def run_side_by_side(studies: Sequence[SearchStudy], evaluator: Evaluator, tell: Callable[[Event], None]) -> None:
    """Advance studies round by round until all have stopped; each round is one call of the evaluator.

    The studies that are furthest behind go first, so that after a kill in the middle of a round they fall in step.
    """
    for study in studies:
        for record in study.records:
            tell(Event("stored", study.name, record))
    while open_studies := [study for study in studies if not study.stopped]:
        behind = min(study.wave for study in open_studies)
        gathered = [(study, study.gather()) for study in open_studies if study.wave == behind]
        turns = [(study, candidate) for study, candidates in gathered for candidate in candidates]
        if not turns:
            continue
        candidates = [candidate for _, candidate in turns]
        tell(Event("round", candidates=tuple(candidates)))
        peers = [one for study, candidates in gathered for one in study.peers(candidates)]
        results = evaluator.evaluate([candidate.policy for candidate in candidates], peers)
        if len(results) != len(candidates):
            raise RuntimeError(f"the evaluator gave {len(results)} results for {len(candidates)} policies")
        for (study, candidate), result in zip(turns, results, strict=True):
            tell(Event("trial", study.name, study.tell(candidate, result)))


def make_sampler(
    expression: str, space: SearchSpace, seed: int, settings: SearchSettings, initial: Sequence[Params] = ()
) -> SearchSampler:
    """Build a registered sampler from an expression such as ``evolution`` or ``mcts(c=1.41, amaf=false)``.

    Raises:
        ConfigError: listing every fault of the expression.
    """
    name, arguments = _parse_sampler(expression)
    return SAMPLERS[name](space, seed, settings, initial, **arguments)


def check_sampler(expression: str) -> None:
    """Build the sampler once, over a space of one policy, so that its faults are found before anything runs.

    Raises:
        ConfigError: listing every fault of the expression.
    """
    make_sampler(expression, CombinationSpace({"logits": Term("logits", [], "l1")}, [1.0]), 0, SearchSettings())


def _parse_sampler(expression: str) -> tuple[str, dict[str, Any]]:
    faults = Faults(f"sampler {expression!r}")
    try:
        name, positional, arguments = parse_expression(expression)
    except UserError as error:
        raise ConfigError(f"sampler: {error}") from None
    if name not in SAMPLERS:
        raise ConfigError(unknown_name("sampler", name, SAMPLERS))
    parameters = inspect.signature(SAMPLERS[name]).parameters.values()
    known = [one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]
    if positional:
        got, wanted = (", ".join(map(str, names)) or "none" for names in (positional, known))
        faults.add(f"expected arguments by name, as in 'c=0.5', got {got}; its arguments: {wanted}")
    for argument in arguments:
        if argument not in known:
            faults.add(unknown_name("argument", argument, known))
    faults.raise_as(ConfigError)
    return name, arguments


def study_seed(seed: int, name: str) -> int:
    """A seed of its own for every study of a search."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])


def _samplers(
    spaces: Mapping[str, Space], settings: SearchSettings, seed: int, warm_start: Sequence[Policy]
) -> dict[str, SearchSampler]:
    """The sampler of every study of the first stage, or of the only one; their budget is ``single_budget``."""
    choices = _warm_choices(warm_start, spaces)
    if settings.divide:
        initial = {name: [parts[name] for parts in choices if name in parts] for name in spaces}
        searched: Mapping[str, SearchSpace] = spaces
    else:
        joint = JointSpace(spaces)
        initial = {JOINT: [joint.join(parts) for parts in choices if parts]}
        searched = {JOINT: joint}
        settings = replace(settings, single_budget=settings.trainings(len(spaces)))
    return {
        name: make_sampler(settings.sampler, space, study_seed(seed, name), settings, _distinct(initial[name]))
        for name, space in searched.items()
    }


def _combination(
    best: Mapping[str, Record],
    records: Sequence[Record],
    spaces: Mapping[str, Space],
    storage: BaseStorage,
    settings: SearchSettings,
    seed: int,
) -> SearchStudy:
    """The second stage: each single winner as a free seed, all winners together, and all at a fifth of their weight."""
    terms = {name: _term(record) for name, record in best.items()}
    weights = sorted({float(weight) for name in best for weight in spaces[name].genes["weight"]})
    space = CombinationSpace(terms, weights)
    together = space.nearest({name: term.weight for name, term in terms.items()})
    lighter = space.nearest({name: term.weight / 5 for name, term in terms.items()})
    sampler = make_sampler(
        "weights" if _parse_sampler(settings.sampler)[0] == "evolution" else settings.sampler,
        space,
        study_seed(seed, COMBINATION),
        settings,
        [together] if lighter == together else [together, lighter],
    )
    known = {record.key: record for record in reversed(rank(records))}
    study = SearchStudy(COMBINATION, sampler, storage, settings.combination_budget, known)
    for name, record in best.items():
        study.add_seed(space.nearest({name: terms[name].weight}), record)
    return study


def _harvest(
    studies: Mapping[str, SearchStudy], tell: Callable[[Event], None]
) -> tuple[dict[str, Record], dict[str, str]]:
    best: dict[str, Record] = {}
    left_out: dict[str, str] = {}
    for name, study in studies.items():
        record = study.best
        if record is not None:
            best[name] = record
            tell(Event("study", name, record, message=study.stopped))
            continue
        states = Counter(record.state.value for record in study.records if record.state is not None)
        reasons = Counter(record.reason for record in study.records if record.reason)
        counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "nothing was proposed"
        left_out[name] = counts + "".join(f"; mostly: {reason}" for reason, _ in reasons.most_common(1))
        tell(Event("left_out", name, message=left_out[name]))
    return best, left_out


def _term(record: Record) -> Term:
    (term,) = record.policy.terms
    return term


def _distinct(choices: Sequence[Params]) -> list[Params]:
    return [params for place, params in enumerate(choices) if params not in choices[:place]]


def _warm_choices(policies: Sequence[Policy], spaces: Mapping[str, Space]) -> list[dict[str, Params]]:
    """For every policy the choices that its terms stand for, by the name of the space.

    Terms of knowledge that is not searched, in this form, are left out. Of several terms of one kind each after the
    first is a choice of its own.

    Raises:
        ConfigError: a term lies outside its space.
    """
    faults = Faults("warm start")
    choices: list[dict[str, Params]] = []
    for policy in policies:
        parts: dict[str, Params] = {}
        others: list[dict[str, Params]] = []
        for term in policy.terms:
            name = next((name for name, space in spaces.items() if space.takes(term.knowledge)), None)
            if name is None:
                continue
            try:
                choice = _nearest_choice(spaces[name], term)
            except UserError as error:
                faults.add(error)
                continue
            if name in parts:
                others.append({name: choice})
            else:
                parts[name] = choice
        choices += [parts, *others]
    faults.raise_as(ConfigError)
    return choices


def _nearest_choice(space: Space, term: Term) -> Params:
    """The choice that stands for a term, with the nearest weight that the space offers.

    Raises:
        ConfigError: transforms or distance lie outside the space.
    """
    weights = [float(weight) for weight in space.genes["weight"]]
    if term.weighting != space.weighting:
        nearest = sorted(weights)[len(weights) // 2]
    else:
        nearest = min(weights, key=lambda weight: abs(np.log(weight / max(term.weight, 1e-9))))
    return space.encode(replace(term, weight=nearest, weighting=space.weighting))
