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
from detkds.policy_search.divide_and_conquer import check_sampler, make_sampler, search
from detkds.policy_search.samplers.base import Proposal, SearchSampler
from detkds.policy_search.space import Space, points
from detkds.policy_search.study import SearchStudy
from detkds.registry import SAMPLERS
from detkds.testing.samplers import CHECKS, begins_with_what_is_given, combinations, resumes_exactly, single_terms

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


def run_study(study, evaluate):
    while trials := study.ask():
        for trial, result in zip(trials, evaluate([trial.policy for trial in trials]), strict=True):
            study.tell(trial, result)
    return [(trial.number, trial.key, trial.state, trial.role) for trial in study.trials]


def test_the_same_trials_in_another_process_with_another_hash_seed():
    found = subprocess.run(
        [sys.executable, "-c", STORY, json.dumps(EXPRESSIONS)],
        capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7"}, check=True,
    )  # fmt: skip
    there = json.loads(found.stdout)
    for expression in EXPRESSIONS:
        study = SearchStudy("logits", make_sampler(expression, single_terms(), 5, CONFIG), None, 14)
        here = [[key, role] for _, key, _, role in run_study(study, SyntheticLandscape(3, rejected=0.2).evaluate)]
        assert there[expression] == here and len(here) >= 14


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("space", [single_terms(), combinations()], ids=["single", "combination"])
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_check(expression, space, check):
    check(expression, space)


class Forgetful(SearchSampler):
    """Keeps in memory how often it was asked, and proposes what was measured before."""

    def __init__(self, space, seed, config, initial=()):
        super().__init__(space, seed, config, initial)
        self.asked = 0

    def propose(self, history, number, rng):
        self.asked += 1
        return Proposal(list(points(self.space))[self.asked], "random")


@pytest.mark.parametrize("check", [resumes_exactly, begins_with_what_is_given], ids=lambda check: check.__name__)
def test_a_sampler_with_a_memory_of_its_own_is_caught(check, monkeypatch):
    monkeypatch.setitem(SAMPLERS._entries, "forgetful", Forgetful)
    with pytest.raises(AssertionError):
        check("forgetful", single_terms())


def test_generations_follow_generations():
    """A population of 3 and nothing refused: after three trials every further one has parents among them."""
    study = SearchStudy("study", make_sampler("nsga2(population=3)", single_terms(), 0, SearchConfig()), None, 9)
    run_study(study, SyntheticLandscape(0, rejected=0).evaluate)
    assert [trial.role for trial in study.trials] == ["init"] * 3 + ["child"] * 6
    generations = [trial.system_attrs["NSGAIISampler:generation"] for trial in study.sampler._mirror._study().trials]
    assert generations == [0] * 3 + [1] * 3 + [2] * 3


def test_a_search_runs_with_a_samplers_arguments():
    config = SearchConfig(
        method="divide", sampler="mcts(c=1.41, amaf=false)", population=4, single_budget=5, combination_budget=5
    )
    spaces = {"logits": single_terms(), "global": Space("global", {"distance": ("l1", "l2"), "weight": (1, 2, 5)})}
    outcome = search(SyntheticLandscape(1, rejected=0), spaces, config)
    assert outcome.trained == 15 and "leaf" in {trial.role for trial in outcome.trials}


def test_arguments_reach_the_sampler():
    sampler = make_sampler("mcts(c=1.41, amaf=false)", single_terms(), 0, CONFIG)
    assert (sampler.c, sampler.amaf) == (1.41, False)
    assert make_sampler("nsga2(population=6)", single_terms(), 0, CONFIG).population == 6
    assert make_sampler("nsga2", single_terms(), 0, CONFIG).population == CONFIG.population


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
