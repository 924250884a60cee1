"""What every sampler must do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence

from optuna.storages import BaseStorage

from detkds.config import SearchConfig
from detkds.policy import Policy, Term
from detkds.policy_search.combination import CombinationSpace
from detkds.policy_search.divide_and_conquer import make_sampler
from detkds.policy_search.result import Result, State, Trial
from detkds.policy_search.space import SearchSpace, Space
from detkds.policy_search.storage import open_storage
from detkds.policy_search.study import SearchStudy

BUDGET = 14


def check_sampler(expression: str) -> None:
    """Every check of a registered sampler with these arguments, on single terms and on combinations of them."""
    for check in CHECKS:
        for space in (single_terms(), combinations()):
            check(expression, space)


def single_terms() -> Space:
    """36 choices of one kind, of which some are the same loss."""
    transforms, distances = ("none", "norm(N)", "norm(C)", "softmax(C)"), ("l1", "l2", "kl")
    return Space("logits", {"transform": transforms, "distance": distances, "weight": (1, 2, 5)})


def combinations() -> CombinationSpace:
    """Two terms, each absent or with one of four weights."""
    terms = {"global": Term("global", ["norm(C)"], "l2"), "logits": Term("logits", [], "l1")}
    return CombinationSpace(terms, [0.5, 1.0, 2.0, 5.0])


def unreliable(policy: Policy) -> Result:
    """A quarter each is refused, fails or is pruned; AP of the others is a number of the policy's own."""
    number = sum(ord(letter) * place for place, letter in enumerate(policy.key, start=1))
    if number % 4 == 0:
        return Result(State.FILTERED, reason="refused", trained=False)
    if number % 4 == 1:
        return Result(State.FAILED, reason="out of memory")
    if number % 4 == 2:
        return Result(State.PRUNED, 12.0, reason="losing")
    return Result(State.COMPLETE, 20.0 + number % 97 / 10)


def begin(expression: str, space: SearchSpace, storage: BaseStorage | None = None, parallel: int = 1) -> SearchStudy:
    """A study of this sampler; one of combinations begins with its single terms, measured before."""
    sampler = make_sampler(expression, space, 7, SearchConfig(method="divide", population=4, parallel=parallel))
    study = SearchStudy("study", sampler, storage, BUDGET)
    if isinstance(space, CombinationSpace):
        for name in space.terms:
            params = space.nearest({name: 1.0})
            policy = space.policy(params)
            study.add_seed(params, Trial(name, 0, State.COMPLETE, params, policy, policy.key, 31.0))
    return study


def run(study: SearchStudy, rounds: int | None = None, measure: Callable[[Policy], Result] = unreliable) -> list[Trial]:
    """So many rounds, or all."""
    while rounds != 0 and (trials := study.ask()):
        for trial in trials:
            study.tell(trial, measure(trial.policy))
        rounds = None if rounds is None else rounds - 1
    return list(study.trials)


def survives_whatever_becomes_of_candidates(expression: str, space: SearchSpace) -> None:
    """It spends its budget on legal choices, none measured twice, whether they are refused, fail or are pruned."""
    for parallel in (1, 3):
        measured: list[str] = []

        def measure(policy: Policy, measured: list[str] = measured) -> Result:
            measured.append(policy.key)
            return unreliable(policy)

        study = begin(expression, space, parallel=parallel)
        trials = run(study, measure=measure)
        assert study.trained == BUDGET or trials[-1].role == "exhausted", f"{study.trained} of {BUDGET} trained"
        assert len(measured) == len(set(measured)), "a policy was measured twice"
        assert all(space.legal(trial.params) for trial in trials), "a choice is not legal"


def resumes_exactly(expression: str, space: SearchSpace) -> None:
    """A search that is killed between and within rounds ends with the trials of one that is not."""
    whole = _story(run(begin(expression, space)))
    with tempfile.TemporaryDirectory() as folder:
        for rounds in (1, 4):
            broken = begin(expression, space, open_storage(folder))
            run(broken, rounds)
            broken.ask()
        assert _story(run(begin(expression, space, open_storage(folder)))) == whole


def proposes_by_its_seed_alone(expression: str, space: SearchSpace) -> None:
    """The same seed gives the same trials, whatever happened in the process before."""
    assert _story(run(begin(expression, space))) == _story(run(begin(expression, space)))


def begins_with_what_is_given(expression: str, space: SearchSpace) -> None:
    """Choices that the user gives are measured first."""
    given = run(begin("random", space))[-1].params
    study = SearchStudy(
        "study", make_sampler(expression, space, 0, SearchConfig(method="divide", population=4), [given]), None, 3
    )
    assert run(study)[0].key == space.key(given), "the given choice is not the first"


def _story(trials: Sequence[Trial]) -> list[tuple[object, ...]]:
    return [(trial.number, trial.key, trial.state, trial.role, trial.parents) for trial in trials]


CHECKS = (
    survives_whatever_becomes_of_candidates,
    resumes_exactly,
    proposes_by_its_seed_alone,
    begins_with_what_is_given,
)
