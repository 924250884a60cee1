"""What every registered sampler must do, whichever it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from detkds.bench.evaluators import SyntheticLandscape
from detkds.config import SearchConfig
from detkds.errors import ConfigError
from detkds.policy import Term
from detkds.policy_search.combination import CombinationSpace
from detkds.policy_search.divide_and_conquer import check_sampler, make_sampler, search
from detkds.policy_search.result import Result, State, Trial
from detkds.policy_search.space import Space
from detkds.policy_search.storage import open_storage
from detkds.policy_search.study import SearchStudy
from detkds.registry import SAMPLERS

EXPRESSIONS = [*SAMPLERS.names(), "mcts(c=1.41, amaf=false)", "mcts(order=reverse)", "nsga2(population=3)"]
CONFIG = SearchConfig(method="divide", population=4, single_budget=14, combination_budget=14)

STORY = """
import json, sys
from detkds.policy_search.divide_and_conquer import make_sampler
from detkds.bench.evaluators import SyntheticLandscape
from detkds.config import SearchConfig
from detkds.policy_search.space import Space
from detkds.policy_search.study import SearchStudy

genes = {"transform": ("none", "norm(N)", "norm(C)", "softmax(C)"), "distance": ("l1", "l2", "kl"), "weight": (1, 2, 5)}
config = SearchConfig(method="divide", population=4, single_budget=14, combination_budget=14)
stories = {}
for expression in json.loads(sys.argv[1]):
    sampler = make_sampler(expression, Space("logits", genes), 5, config)
    study = SearchStudy("logits", sampler, None, 14)
    while trials := study.ask():
        for trial in trials:
            study.tell(trial, SyntheticLandscape(3, rejected=0.2).evaluate([trial.policy])[0])
    stories[expression] = [[trial.key, trial.role] for trial in study.trials]
print(json.dumps(stories))
"""


def combination():
    terms = {"global": Term("global", ["norm(C)"], "l2"), "logits": Term("logits", [], "l1")}
    return CombinationSpace(terms, [0.5, 1.0, 2.0, 5.0])


def logits():
    genes = {"transform": ("none", "norm(N)", "norm(C)", "softmax(C)"), "distance": ("l1", "l2", "kl"),
             "weight": (1, 2, 5)}  # fmt: skip
    return Space("logits", genes)


def run_study(study, evaluate):
    while trials := study.ask():
        for trial, result in zip(trials, evaluate([trial.policy for trial in trials]), strict=True):
            study.tell(trial, result)
    return [(trial.number, trial.key, trial.state, trial.role) for trial in study.trials]


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
        study = SearchStudy("logits", make_sampler(expression, logits(), 5, CONFIG), None, 14)
        here = [[key, role] for _, key, _, role in run_study(study, SyntheticLandscape(3, rejected=0.2).evaluate)]
        assert there[expression] == here and len(here) >= 14


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("build", [logits, combination])
@pytest.mark.parametrize("parallel", [1, 3])
def test_refused_failed_and_pruned_candidates_are_survived_and_nothing_is_measured_twice(expression, build, parallel):
    config = SearchConfig(method="divide", population=4, parallel=parallel)
    space = build()
    study = SearchStudy("study", make_sampler(expression, space, 2, config), None, 14)
    measured = []

    def evaluate(policies):
        measured.extend(policy.key for policy in policies)
        return unreliable(policies)

    run_study(study, evaluate)
    assert len(measured) == len(set(measured)) and study.trained == 14
    assert all(space.legal(trial.params) for trial in study.trials)
    assert len({trial.state for trial in study.trials}) >= 3


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_combination_with_seeds_resumes_exactly(expression, tmp_path):
    def begin(storage):
        space = combination()
        study = SearchStudy("combination", make_sampler(expression, space, 7, CONFIG), storage, 14)
        for name in space.terms:
            params = space.nearest({name: 1.0})
            policy = space.policy(params)
            study.add_seed(params, Trial(name, 0, State.COMPLETE, params, policy, policy.key, 31.0))
        return study

    whole = run_study(begin(None), unreliable)
    broken = begin(open_storage(tmp_path))
    for _ in range(5):
        trials = broken.ask()
        for trial, result in zip(trials, unreliable([trial.policy for trial in trials]), strict=True):
            broken.tell(trial, result)
    broken.ask()
    assert run_study(begin(open_storage(tmp_path)), unreliable) == whole


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_given_choices_are_measured_first(expression):
    space = logits()
    given = {"transform": "softmax(C)", "distance": "kl", "weight": 5.0}
    study = SearchStudy("study", make_sampler(expression, space, 0, CONFIG, [given]), None, 3)
    run_study(study, SyntheticLandscape(0, rejected=0).evaluate)
    assert study.trials[0].key == space.key(given)


def test_generations_follow_generations():
    """A population of 3 and nothing refused: after three trials every further one has parents among them."""
    study = SearchStudy("study", make_sampler("nsga2(population=3)", logits(), 0, SearchConfig()), None, 9)
    run_study(study, SyntheticLandscape(0, rejected=0).evaluate)
    assert [trial.role for trial in study.trials] == ["init"] * 3 + ["child"] * 6
    generations = [trial.system_attrs["NSGAIISampler:generation"] for trial in study.sampler._mirror._study().trials]
    assert generations == [0] * 3 + [1] * 3 + [2] * 3


def test_a_search_runs_with_a_samplers_arguments():
    config = SearchConfig(
        method="divide", sampler="mcts(c=1.41, amaf=false)", population=4, single_budget=5, combination_budget=5
    )
    spaces = {"logits": logits(), "global": Space("global", {"distance": ("l1", "l2"), "weight": (1, 2, 5)})}
    outcome = search(SyntheticLandscape(1, rejected=0), spaces, config)
    assert outcome.trained == 15 and "leaf" in {trial.role for trial in outcome.trials}


def test_arguments_reach_the_sampler():
    sampler = make_sampler("mcts(c=1.41, amaf=false)", logits(), 0, CONFIG)
    assert (sampler.c, sampler.amaf) == (1.41, False)
    assert make_sampler("nsga2(population=6)", logits(), 0, CONFIG).population == 6
    assert make_sampler("nsga2", logits(), 0, CONFIG).population == CONFIG.population


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
