"""What every registered sampler must do, whichever it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from optuna.storages import InMemoryStorage

from detkds.errors import ConfigError
from detkds.policy import Term
from detkds.registry import SAMPLERS
from detkds.search.combination import CombinationSpace
from detkds.search.divide_and_conquer import check_sampler, make_sampler, search
from detkds.search.evaluators.table import SyntheticLandscape
from detkds.search.journal import open_storage
from detkds.search.result import Record, Result, State
from detkds.search.settings import SearchSettings
from detkds.search.space import Space
from detkds.search.study import SearchStudy

EXPRESSIONS = [*SAMPLERS.names(), "mcts(c=1.41, amaf=false)", "mcts(order=reverse)", "nsga2(population=3)"]
SETTINGS = SearchSettings(population=4, single_budget=14, combination_budget=14, initial_chunk=2)

STORY = """
import json, sys
from optuna.storages import InMemoryStorage
from detkds.search.divide_and_conquer import make_sampler
from detkds.search.evaluators.table import SyntheticLandscape
from detkds.search.settings import SearchSettings
from detkds.search.space import Space
from detkds.search.study import SearchStudy

genes = {"transform": ("none", "norm(N)", "norm(C)", "softmax(C)"), "distance": ("l1", "l2", "kl"), "weight": (1, 2, 5)}
settings = SearchSettings(population=4, single_budget=14, combination_budget=14, initial_chunk=2)
stories = {}
for expression in json.loads(sys.argv[1]):
    sampler = make_sampler(expression, Space("logits", genes), 5, settings)
    study = SearchStudy("logits", sampler, InMemoryStorage(), 14)
    while candidates := study.gather():
        for candidate in candidates:
            study.tell(candidate, SyntheticLandscape(3, rejected=0.2).evaluate([candidate.policy])[0])
    stories[expression] = [[record.key, record.role] for record in study.records]
print(json.dumps(stories))
"""


def combination():
    terms = {"global": Term("global", ["norm(C)"], "l2"), "logits": Term("logits", [], "l1")}
    return CombinationSpace(terms, [0.5, 1.0, 2.0, 5.0])


def logits():
    genes = {"transform": ("none", "norm(N)", "norm(C)", "softmax(C)"), "distance": ("l1", "l2", "kl"),
             "weight": (1, 2, 5)}  # fmt: skip
    return Space("logits", genes)


def play(study, evaluate):
    while candidates := study.gather():
        for candidate, result in zip(candidates, evaluate([c.policy for c in candidates]), strict=True):
            study.tell(candidate, result)
    return [(record.number, record.key, record.state, record.role) for record in study.records]


def unreliable(policies):
    """A fifth is refused, a fifth fails, a fifth is pruned, by the policy."""
    results = []
    for policy, measured in zip(policies, SyntheticLandscape(1, rejected=0.2).evaluate(policies), strict=True):
        luck = sum(map(ord, policy.key)) % 5
        if luck == 0:
            measured = Result(State.FAILED, reason="out of memory")
        elif luck == 1:
            measured = Result(State.PRUNED, 12.0, reason="losing")
        results.append(measured)
    return results


def test_the_same_trials_in_another_process_with_another_hash_seed():
    found = subprocess.run(
        [sys.executable, "-c", STORY, json.dumps(EXPRESSIONS)],
        capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7"}, check=True,
    )  # fmt: skip
    there = json.loads(found.stdout)
    for expression in EXPRESSIONS:
        study = SearchStudy("logits", make_sampler(expression, logits(), 5, SETTINGS), InMemoryStorage(), 14)
        here = [[key, role] for _, key, _, role in play(study, SyntheticLandscape(3, rejected=0.2).evaluate)]
        assert there[expression] == here and len(here) >= 14


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("build", [logits, combination])
@pytest.mark.parametrize("parallel", [1, 3])
def test_refused_failed_and_pruned_candidates_are_survived_and_nothing_is_measured_twice(expression, build, parallel):
    settings = SearchSettings(population=4, parallel=parallel, initial_chunk=2)
    space = build()
    study = SearchStudy("study", make_sampler(expression, space, 2, settings), InMemoryStorage(), 14)
    measured = []

    def evaluate(policies):
        measured.extend(policy.key for policy in policies)
        return unreliable(policies)

    play(study, evaluate)
    assert len(measured) == len(set(measured)) and study.trained == 14
    assert all(space.legal(record.params) for record in study.records)
    assert len({record.state for record in study.records}) >= 3


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_combination_with_seeds_resumes_exactly(expression, tmp_path):
    def begin(storage):
        space = combination()
        study = SearchStudy("combination", make_sampler(expression, space, 7, SETTINGS), storage, 14)
        for name in space.terms:
            params = space.nearest({name: 1.0})
            policy = space.policy(params)
            study.add_seed(params, Record(name, 0, State.COMPLETE, params, policy, policy.key, 31.0))
        return study

    whole = play(begin(InMemoryStorage()), unreliable)
    broken = begin(open_storage(tmp_path))
    for _ in range(5):
        candidates = broken.gather()
        for candidate, result in zip(candidates, unreliable([c.policy for c in candidates]), strict=True):
            broken.tell(candidate, result)
    broken.gather()
    assert play(begin(open_storage(tmp_path)), unreliable) == whole


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_given_choices_are_measured_first(expression):
    space = logits()
    given = {"transform": "softmax(C)", "distance": "kl", "weight": 5.0}
    study = SearchStudy("study", make_sampler(expression, space, 0, SETTINGS, [given]), InMemoryStorage(), 3)
    play(study, SyntheticLandscape(0, rejected=0).evaluate)
    assert study.records[0].key == space.key(given)


def test_generations_follow_generations():
    """A population of 3 and nothing refused: after three trials every further one has parents among them."""
    settings = SearchSettings(population=8)
    study = SearchStudy("study", make_sampler("nsga2(population=3)", logits(), 0, settings), InMemoryStorage(), 9)
    play(study, SyntheticLandscape(0, rejected=0).evaluate)
    assert [record.role for record in study.records] == ["init"] * 3 + ["child"] * 6
    generations = [trial.system_attrs["NSGAIISampler:generation"] for trial in study._study.trials]
    assert generations == [0] * 3 + [1] * 3 + [2] * 3


def test_a_search_runs_with_a_samplers_arguments():
    settings = SearchSettings(sampler="mcts(c=1.41, amaf=false)", population=4, single_budget=5, combination_budget=5)
    spaces = {"logits": logits(), "global": Space("global", {"distance": ("l1", "l2"), "weight": (1, 2, 5)})}
    outcome = search(SyntheticLandscape(1, rejected=0), spaces, settings)
    assert outcome.trained == 15 and "leaf" in {record.role for record in outcome.records}


def test_arguments_reach_the_sampler():
    sampler = make_sampler("mcts(c=1.41, amaf=false)", logits(), 0, SETTINGS)
    assert (sampler.c, sampler.amaf) == (1.41, False)
    assert make_sampler("nsga2(population=6)", logits(), 0, SETTINGS).population == 6
    assert make_sampler("nsga2", logits(), 0, SETTINGS).population == SETTINGS.population


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_can_be_used_passes_the_check(expression):
    check_sampler(expression)


@pytest.mark.parametrize(
    ("expression", "faults"),
    [
        ("mtcs", ["unknown sampler 'mtcs'; did you mean 'mcts'?"]),
        ("mcts(0.5, d=1)", ["expected arguments by name, as in 'c=0.5', got 0.5", "unknown argument 'd'"]),
        ("mcts(c=-1, amaf=7)", ["c: expected a finite number >= 0, got -1", "amaf: expected true or false, got 7"]),
        ("random(c=1)", ["unknown argument 'c'. Known: none"]),
        ("nsga2(population=1)", ["expected a whole number >= 2 or none, got 1"]),
        ("mcts(", ["expected an expression"]),
    ],
)
def test_every_fault_of_an_expression_is_named(expression, faults):
    with pytest.raises(ConfigError) as error:
        check_sampler(expression)
    assert len(error.value.faults) == len(faults)
    for line, fault in zip(error.value.faults, faults, strict=True):
        assert fault in line
