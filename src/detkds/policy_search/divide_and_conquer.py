"""The whole search: the best single-term policy of every kind of knowledge, then the best combination of them.

Or, for comparison, one search of the joint space of all kinds.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from optuna.storages import BaseStorage

from detkds.config import SearchConfig
from detkds.errors import ConfigError, Faults, UserError, unknown_name
from detkds.policy import Policy, Term
from detkds.policy_search.combination import CombinationSpace
from detkds.policy_search.joint import JointSpace
from detkds.policy_search.result import Evaluator, SearchError, Trial, rank
from detkds.policy_search.samplers.base import SearchSampler
from detkds.policy_search.space import Params, SearchSpace, Space
from detkds.policy_search.storage import locked, open_storage
from detkds.policy_search.study import SearchStudy
from detkds.policy_search.whole import GROUP, POLICIES, PolicyEvolution, PolicySpace
from detkds.registry import SAMPLERS, parse_expression

COMBINATION = "combination"
"""The name of the second stage's study."""

JOINT = "joint"
"""The name of the only study of a search that is not divided."""


@dataclass(frozen=True)
class Event:
    """What a search reports while it runs.

    ``stored``: a trial was measured before. ``round``: candidates are about to be measured. ``trial``: one was
    measured. ``study``: a study has stopped, with its best trial. ``left_out``: nothing of a kind of knowledge was
    completed, with the reason in ``message``.
    """

    kind: Literal["stored", "round", "trial", "study", "left_out"]
    study: str = ""
    trial: Trial | None = None
    candidates: tuple[Trial, ...] = ()
    message: str = ""


@dataclass(frozen=True)
class SearchOutcome:
    """The result of a search.

    Attributes:
        best: the trial of highest proxy AP.
        per_knowledge: the best single-term trial of every kind of knowledge; empty where they were searched together.
        finalists: the best distinct policies, best first, for a comparison at the full budget.
        trials: all of all studies.
        left_out: why nothing of a kind of knowledge was completed.
    """

    best: Trial
    per_knowledge: Mapping[str, Trial]
    finalists: tuple[Trial, ...]
    trials: tuple[Trial, ...]
    left_out: Mapping[str, str]

    @property
    def trained(self) -> int:
        """Candidate trainings spent."""
        return sum(trial.counts for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "best": self.best.to_dict(),
            "per_knowledge": {name: trial.to_dict() for name, trial in self.per_knowledge.items()},
            "finalists": [trial.to_dict() for trial in self.finalists],
            "left_out": dict(self.left_out),
            "trained": self.trained,
        }


def search(
    evaluator: Evaluator,
    spaces: Mapping[str, Space],
    config: SearchConfig | None = None,
    store: str | Path | BaseStorage | None = None,
    seed: int = 0,
    on_event: Callable[[Event], None] | None = None,
    warm_start: Sequence[Policy] = (),
    *,
    population: int = 8,
    finalists: int = 3,
) -> SearchOutcome:
    """Divide and conquer (Algorithm 1 of the paper): evolve each kind of knowledge alone, then their weights.

    That is the method ``divide``. The others have one study that spends all trainings: ``joint`` searches the undivided
    space (the paper's Table 12), ``policies`` whole policies, beginning with ``warm_start`` as it stands.

    The first stage's studies are independent, and advance side by side: one round measures the next candidates of
    each in one call of the evaluator. Called again with the same store the search continues where it ended, and
    with a deterministic evaluator it ends with the same trials and the same winner as if it had not been interrupted.
    With other budgets it ends as a search that had them from the beginning: a smaller budget uses the first trials
    that are stored, a larger one adds to them. Other winners of the first stage are combined in a study of their own.

    Args:
        evaluator: measures policies.
        spaces: the space of every kind of knowledge, by name.
        config: algorithm and budgets.
        store: a journal file or run folder, the URL of an Optuna storage, or a storage; None keeps nothing.
        seed: a whole number >= 0.
        on_event: told what happens.
        warm_start: policies to begin with; of the methods ``divide`` and ``joint`` their terms join the initial
            populations.
        population: how many candidates the evaluator trains side by side.
        finalists: how many of the best distinct policies are wanted.

    Raises:
        SearchError: the store cannot be used, or no candidate could be completed.
        ConfigError: a warm-start term lies outside its space, or the seed is no whole number >= 0.
    """
    config = config or SearchConfig()
    tell = on_event or (lambda event: None)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed: expected a whole number >= 0, got {seed!r}")
    if not spaces:
        raise SearchError("search: expected the space of at least one kind of knowledge, got none")
    samplers = _samplers(spaces, config, seed, warm_start)
    chunk = max(1, population // len(samplers))
    group = GROUP if config.method == "policies" else population
    with locked(store):
        storage = open_storage(store)
        studies = {
            name: SearchStudy(
                name, sampler, storage, sampler.config.single_budget, chunk=chunk, group=group,
                stored_as=_stored_as(name, sampler, sampler.config.single_budget),
            )
            for name, sampler in samplers.items()
        }  # fmt: skip
        run_side_by_side(list(studies.values()), evaluator, tell)
        best, left_out = _best_of_each(studies, tell)
        trials = [trial for study in studies.values() for trial in study.trials]
        if not best:
            raise SearchError([f"{name}: no candidate was completed: {reason}" for name, reason in left_out.items()])
        if config.method == "divide" and len(best) > 1 and config.combination_budget > 0:
            study = _combination(best, trials, spaces, storage, config, seed, chunk, population)
            run_side_by_side([study], evaluator, tell)
            tell(Event("study", study.name, study.best, message=study.stopped))
            trials += study.trials
    ranked = rank(trials)
    best = best if config.method == "divide" else {}
    return SearchOutcome(ranked[0], best, tuple(ranked[:finalists]), tuple(trials), left_out)


def run_side_by_side(studies: Sequence[SearchStudy], evaluator: Evaluator, tell: Callable[[Event], None]) -> None:
    """Advance studies round by round until all have stopped; each round is one call of the evaluator.

    The studies that are furthest behind go first, so that after a kill in the middle of a round they fall in step.
    """
    for study in studies:
        for trial in study.trials:
            tell(Event("stored", study.name, trial))
    while open_studies := [study for study in studies if not study.stopped]:
        behind = min(study.wave for study in open_studies)
        asked = [(study, study.ask()) for study in open_studies if study.wave == behind]
        turns = [(study, trial) for study, trials in asked for trial in trials]
        if not turns:
            continue
        tell(Event("round", candidates=tuple(trial for _, trial in turns)))
        groups = [group for study, trials in asked for group in study.groups(trials)]
        results = evaluator.evaluate([trial.policy for _, trial in turns], groups)
        if len(results) != len(turns):
            raise RuntimeError(f"the evaluator gave {len(results)} results for {len(turns)} policies")
        for (study, trial), result in zip(turns, results, strict=True):
            tell(Event("trial", study.name, study.tell(trial, result)))


def make_sampler(
    expression: str, space: SearchSpace, seed: int, config: SearchConfig, initial: Sequence[Params] = ()
) -> SearchSampler:
    """Build a registered sampler from an expression such as ``evolution`` or ``mcts(c=1.41, amaf=false)``.

    Raises:
        ConfigError: listing every fault of the expression.
    """
    name, arguments = _parse_sampler(expression)
    return SAMPLERS[name](space, seed, config, initial, **arguments)


def check_sampler(expression: str) -> None:
    """Build the sampler once, over a space of one policy, so that its faults are found before anything runs.

    Raises:
        ConfigError: listing every fault of the expression.
    """
    make_sampler(expression, CombinationSpace({"logits": Term("logits", [], "l1")}, [1.0]), 0, SearchConfig())


def _parse_sampler(expression: str) -> tuple[str, dict[str, Any]]:
    faults = Faults(f"sampler {expression!r}")
    try:
        name, positional, arguments = parse_expression(expression)
    except UserError as error:
        raise ConfigError(f"sampler: {error}") from None
    if name not in SAMPLERS:
        raise ConfigError(unknown_name("sampler", name, SAMPLERS))
    parameters = inspect.signature(SAMPLERS[name]).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
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
    spaces: Mapping[str, Space], config: SearchConfig, seed: int, warm_start: Sequence[Policy]
) -> dict[str, SearchSampler]:
    """The sampler of every study of the first stage, or of the only one; their budget is ``single_budget``."""
    if config.method == "policies":
        whole = PolicySpace(spaces)
        begin = [whole.params(policy) for policy in warm_start]
        config = config.model_copy(update={"single_budget": config.candidates})
        return {POLICIES: PolicyEvolution(whole, study_seed(seed, POLICIES), config, begin)}
    choices = _warm_choices(warm_start, spaces)
    if config.method == "divide":
        initial = {name: [parts[name] for parts in choices if name in parts] for name in spaces}
        searched: Mapping[str, SearchSpace] = spaces
    else:
        joint = JointSpace(spaces)
        initial = {JOINT: [joint.join(parts) for parts in choices if parts]}
        searched = {JOINT: joint}
        config = config.model_copy(update={"single_budget": config.trainings(len(spaces))})
    return {
        name: make_sampler(config.sampler, space, study_seed(seed, name), config, _distinct(initial[name]))
        for name, space in searched.items()
    }


def _stored_as(name: str, sampler: SearchSampler, budget: int, *begun_with: Any) -> str:
    """The name of a study in a store, with a digest of what it is begun with beyond its origin."""
    parts = [*begun_with, *([budget] if sampler.uses_budget else [])]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:6]
    return f"{name}-{digest}" if parts else name


def _combination(
    best: Mapping[str, Trial],
    trials: Sequence[Trial],
    spaces: Mapping[str, Space],
    storage: BaseStorage | None,
    config: SearchConfig,
    seed: int,
    chunk: int,
    population: int,
) -> SearchStudy:
    """The second stage: each single winner as a free seed, all winners together, and all at a fifth of their weight."""
    terms = {name: _term(trial) for name, trial in best.items()}
    weights = sorted({float(weight) for name in best for weight in spaces[name].genes["weight"]})
    space = CombinationSpace(terms, weights)
    together = space.nearest({name: term.weight for name, term in terms.items()})
    lighter = space.nearest({name: term.weight / 5 for name, term in terms.items()})
    sampler = make_sampler(
        "weights" if _parse_sampler(config.sampler)[0] == "evolution" else config.sampler,
        space,
        study_seed(seed, COMBINATION),
        config,
        [together] if lighter == together else [together, lighter],
    )
    known = {trial.key: trial for trial in reversed(rank(trials))}
    singles = {space.key(space.nearest({name: weight})) for name in terms for weight in weights if weight}
    begun_with = [space.describe(), sorted((key, known[key].place, known[key].ap) for key in singles if key in known)]
    budget = config.combination_budget
    study = SearchStudy(
        COMBINATION, sampler, storage, budget, known, chunk=chunk, group=population,
        stored_as=_stored_as(COMBINATION, sampler, budget, *begun_with),
    )  # fmt: skip
    for name, trial in best.items():
        study.add_seed(space.nearest({name: terms[name].weight}), trial)
    return study


def _best_of_each(
    studies: Mapping[str, SearchStudy], tell: Callable[[Event], None]
) -> tuple[dict[str, Trial], dict[str, str]]:
    best: dict[str, Trial] = {}
    left_out: dict[str, str] = {}
    for name, study in studies.items():
        if study.best is not None:
            best[name] = study.best
            tell(Event("study", name, study.best, message=study.stopped))
            continue
        states = Counter(trial.state.value for trial in study.trials if trial.state is not None)
        reasons = Counter(trial.reason for trial in study.trials if trial.reason)
        counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "nothing was proposed"
        left_out[name] = counts + "".join(f"; mostly: {reason}" for reason, _ in reasons.most_common(1))
        tell(Event("left_out", name, message=left_out[name]))
    return best, left_out


def _term(trial: Trial) -> Term:
    (term,) = trial.policy.terms
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
    """The choice that stands for a term, with the arguments and the nearest weight that the space offers.

    Raises:
        ConfigError: transforms or distance lie outside the space.
    """
    weights = [float(weight) for weight in space.genes["weight"]]
    if term.weighting != space.weighting:
        nearest = sorted(weights)[len(weights) // 2]
    else:
        nearest = min(weights, key=lambda weight: abs(np.log(weight / max(term.weight, 1e-9))))
    return space.encode(replace(space.nearest(term), weight=nearest, weighting=space.weighting))
