from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from detkds.config import SearchConfig
from detkds.policy_search.result import State
from detkds.policy_search.samplers.evolution import Evolution, weight_evolution
from detkds.policy_search.samplers.random import RandomSearch
from detkds.policy_search.samplers.surrogate import Surrogate

SIZES = (4, 5, 5, 7, 7)  # 4,900 points, as many as one kind of feature knowledge has in the paper's space
LARGE = SearchConfig(population=20, parents=5, newcomer="never")


def found_optimum(history, space, effects, total):
    best = sum(max(effects[name, option] for option in options) for name, options in space.genes.items())
    return any(total(effects, trial.params) == pytest.approx(best, abs=1e-12) for trial in history)


@pytest.mark.parametrize("seed", range(12))
def test_finds_the_optimum_of_a_separable_table_in_200_trainings(grid, run, separable, total, seed):
    space = grid(*SIZES)
    effects = separable(space, seed)
    history = run(Evolution(space, seed, LARGE), lambda p: total(effects, p), 200)
    assert found_optimum(history, space, effects, total)


def test_finds_the_optimum_with_newcomers_in_300_trainings(grid, run, separable, total):
    space = grid(*SIZES)
    config = LARGE.model_copy(update={"newcomer": "always"})
    for seed in range(4):
        effects = separable(space, seed)
        history = run(Evolution(space, seed, config), lambda p, e=effects: total(e, p), 300)
        assert found_optimum(history, space, effects, total)


def test_random_search_rarely_finds_it(grid, run, separable, total):
    space = grid(*SIZES)
    found = 0
    for seed in range(15):
        effects = separable(space, seed)
        history = run(RandomSearch(space, seed, LARGE), lambda p, e=effects: total(e, p), 200)
        assert len({trial.key for trial in history}) == 200
        found += found_optimum(history, space, effects, total)
    assert found <= 3  # 200 of 4,900: 4 %


@pytest.mark.parametrize(("newcomer", "trainings"), [("always", 10 + 2 * 15), ("never", 10 + 15)])
def test_iterations_cost_what_algorithm_1_says(grid, run, separable, total, newcomer, trainings):
    space = grid(*SIZES)
    effects = separable(space, 0)
    config = SearchConfig(population=10, newcomer=newcomer)
    history = run(Evolution(space, 0, config), lambda p: total(effects, p), trainings)
    roles = Counter(trial.role for trial in history)
    assert roles == {"init": 10, "mutant": 15, **({"newcomer": 15} if newcomer == "always" else {})}
    assert sorted({trial.iteration for trial in history if trial.role == "mutant"}) == list(range(15))


def test_the_population_has_constant_size_and_nothing_is_proposed_twice(grid, run, separable, total):
    space = grid(*SIZES, same=lambda p: "-".join(map(str, p.values())).replace("o4", "o0"))
    effects = separable(space, 3)
    sampler = Evolution(space, 3, SearchConfig(population=8))
    rejected = np.random.default_rng(0)

    def measure(params):
        return State.FILTERED if rejected.random() < 0.2 else total(effects, params)

    history = run(sampler, measure, 120)
    assert len({trial.key for trial in history}) == len(history)
    refused = sum(trial.state is State.FILTERED for trial in history)
    assert refused > 5 and len(history) == 120 + refused
    sizes = {len(sampler.population(history[:n]).members) for n in range(len(history))}
    assert max(sizes) == 8
    assert len(sampler.population(history).members) == 8
    assert all(trial.state is State.COMPLETE for trial in sampler.population(history).members)


def test_a_mutant_differs_from_a_good_parent_by_one_gene(grid, run, separable, total):
    space = grid(*SIZES)
    effects = separable(space, 1)
    sampler = Evolution(space, 1, SearchConfig(population=8, parents=3), screen=1)
    history = run(sampler, lambda p: total(effects, p), 60)
    for number in range(8, 60):
        proposal = sampler.propose(history[:number], number, np.random.default_rng([1, number]))
        (parent,) = proposal.parents
        assert sum(proposal.params[name] != history[parent].params[name] for name in space.genes) == 1
        members = sorted(sampler.population(history[:number]).members, key=lambda e: e.fitness, reverse=True)
        # ceil(0.9 * 8) = 8 members are sampled, so the parent is one of the three best
        assert parent in [member.number for member in members[:3]]


def test_a_child_is_the_most_promising_of_mutants_and_strangers(grid, run, separable, total):
    space = grid(*SIZES)
    effects = separable(space, 1)
    sampler = Evolution(space, 1, SearchConfig(population=8, parents=3), screen=2)
    history = run(sampler, lambda p: total(effects, p), 60)
    strangers = 0
    for number in range(8, 60):
        past = history[:number]
        proposal = sampler.propose(past, number, np.random.default_rng([1, number]))
        mutant, stranger = sampler._children(sampler.population(past), np.random.default_rng([1, number]))
        expected, spread = Surrogate(space, past).predict([mutant[0], stranger[0]])
        better, worse = (mutant, stranger) if np.diff(expected + 4 * spread) <= 0 else (stranger, mutant)
        seen = {trial.key for trial in past}
        if space.key(better[0]) not in seen:
            assert proposal.params == better[0]
        elif space.key(worse[0]) not in seen:
            assert proposal.params == worse[0]
        strangers += not proposal.parents
    assert 5 < strangers < 47


def test_the_initial_population_is_stratified(grid, run, separable, total):
    space = grid(*SIZES)
    effects = separable(space, 2)
    history = run(Evolution(space, 2, LARGE), lambda p: total(effects, p), 20)
    for name, options in space.genes.items():
        counts = Counter(trial.params[name] for trial in history)
        assert {counts[option] for option in options} <= {20 // len(options), -(-20 // len(options))}


def test_given_choices_come_first(grid, run, separable, total):
    space = grid(*SIZES)
    effects = separable(space, 2)
    given = {"g0": "o3", "g1": "o1", "g2": "o2", "g3": "o6", "g4": "o0"}
    history = run(Evolution(space, 2, SearchConfig(), [given]), lambda p: total(effects, p), 8)
    assert history[0].params == given and len(history) == 8


def test_a_small_space_is_searched_to_its_end(grid, run, separable, total):
    space = grid(2, 3, 2, same=lambda p: "-".join(map(str, p.values())).replace("o2", "o1"))  # 12 points, 8 losses
    effects = separable(space, 0)
    for sampler in (Evolution(space, 0, SearchConfig(population=3)), RandomSearch(space, 0, SearchConfig())):
        history = run(sampler, lambda p: total(effects, p), 100)
        assert sorted(trial.key for trial in history) == sorted({space.key(trial.params) for trial in history})
        assert len(history) == 8


def test_the_best_member_is_never_lost(grid, run, separable, total):
    space = grid(*SIZES)
    effects = separable(space, 5)
    sampler = Evolution(space, 5, SearchConfig(newcomer="every:4"))
    history = run(sampler, lambda p: total(effects, p), 100)
    best = max(history, key=lambda trial: trial.fitness)
    assert best.number in [member.number for member in sampler.population(history).members]


def test_weight_vectors_are_crossed_and_then_changed_in_one_place(grid, run, separable, total):
    space = grid(8, 8, 8, 8, 8)
    effects = separable(space, 4)
    sampler = weight_evolution(space, 4, SearchConfig(population=10, parents=5, newcomer="always"), screen=1)
    history = run(sampler, lambda p: total(effects, p), 60)
    assert {trial.role for trial in history} == {"init", "mutant"}
    crossed = 0
    for number in range(10, 60):
        proposal = sampler.propose(history[:number], number, np.random.default_rng([4, number]))
        parents = [history[parent].params for parent in proposal.parents]
        new = [name for name in space.genes if proposal.params[name] not in {parent[name] for parent in parents}]
        assert len(proposal.parents) == 2 and len(new) <= 1
        crossed += sum(proposal.params[name] != parents[0][name] for name in space.genes) > 1
    assert crossed > 10
