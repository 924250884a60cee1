from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from detkds.config import SearchConfig
from detkds.policy import Policy
from detkds.policy_search.result import State, Trial
from detkds.policy_search.samplers.population import cross, mutate, neighbors, parent_pool, replay, stratified


def trial(number, ap, role="mutant", iteration=0, state=State.COMPLETE, duplicate_of=""):
    given = {"ap": ap, "role": role, "iteration": iteration, "duplicate_of": duplicate_of}
    return Trial("global", number, state, {}, Policy(), f"k{number}", **given)


def initial(*aps):
    return [trial(i, ap, "init", i) for i, ap in enumerate(aps)]


def test_replay_replaces_the_worst_member_by_the_mutant():
    # population of 3 with AP 5, 1, 3; a mutant of AP 2 pushes out AP 1
    config = SearchConfig(population=3)
    population = replay([*initial(5, 1, 3), trial(3, 2)], config)
    assert sorted(member.fitness[1] for member in population.members) == [2, 3, 5]
    assert population.open_slots(config) == [("mutant", 1)]


def test_replay_drops_a_mutant_that_is_the_worst():
    population = replay([*initial(5, 1, 3), trial(3, 0)], SearchConfig(population=3))
    assert [member.number for member in population.members] == [0, 1, 2]
    assert "k3" in population.seen


def test_of_equally_bad_members_the_older_leaves():
    population = replay([*initial(5, 1, 1), trial(3, 1)], SearchConfig(population=3))
    assert [member.number for member in population.members] == [0, 2, 3]


def test_the_mutant_wins_a_tie_with_the_newcomer():
    config = SearchConfig(population=3, newcomer="always")
    tie = replay([*initial(5, 1, 3), trial(3, 4, "newcomer"), trial(4, 4, "mutant")], config)
    assert {member.number for member in tie.members} == {0, 2, 4}
    better = replay([*initial(5, 1, 3), trial(3, 4, "mutant"), trial(4, 4.1, "newcomer")], config)
    assert {member.number for member in better.members} == {0, 2, 4}


def test_an_iteration_waits_for_both_of_its_candidates():
    config = SearchConfig(population=3, newcomer="always")
    half = replay([*initial(5, 1, 3), trial(3, 9, "mutant")], config)
    assert [member.number for member in half.members] == [0, 1, 2]
    assert half.open_slots(config) == [("newcomer", 0)]


def test_newcomers_every_few_iterations():
    config = SearchConfig(newcomer="every:3")
    assert [config.has_newcomer(i) for i in range(6)] == [False, False, True, False, False, True]


@pytest.mark.parametrize("state", [State.FILTERED, State.FAILED])
def test_a_refused_candidate_never_enters_and_its_slot_is_proposed_anew(state):
    config = SearchConfig(population=3)
    population = replay([*initial(5, 1, 3), trial(3, 99, state=state)], config)
    assert [member.number for member in population.members] == [0, 1, 2]
    assert population.open_slots(config) == [("mutant", 0)]
    assert "k3" in population.seen
    begun = replay([trial(0, 5, "init", 0), trial(1, 9, "init", 1, state)], config)
    assert begun.open_slots(config) == [("init", 1), ("init", 2)]


def test_a_pruned_candidate_uses_its_iteration_and_ranks_below_every_completed_one():
    config = SearchConfig(population=3)
    population = replay([*initial(5, 1, 3), trial(3, 99, state=State.PRUNED)], config)
    assert [member.number for member in population.members] == [0, 1, 2]
    assert population.open_slots(config) == [("mutant", 1)]


def test_running_candidates_hold_their_slots():
    config = SearchConfig(population=3, parallel=2)
    population = replay([*initial(5, 1, 3), trial(3, 0, state=None)], config)
    assert population.open_slots(config) == [("mutant", 1), ("mutant", 2)]


def test_seeds_are_members_and_leave_fewer_slots():
    config = SearchConfig(population=4)
    population = replay([trial(0, 5, "seed"), trial(1, 6, "seed")], config, initial=1)
    assert population.slots == 2 and len(population.members) == 2


def test_more_seeds_than_members_are_cut_to_the_best():
    config = SearchConfig(population=2)
    history = [*(trial(i, ap, "seed") for i, ap in enumerate((5, 6, 4))), trial(3, 1, "init", 0)]
    population = replay(history, config, initial=1)
    assert [member.fitness[1] for member in population.members] == [5, 6]


def test_duplicates_are_no_members_unless_another_study_measured_them():
    population = replay([*initial(5, 1, 3), trial(3, 5, duplicate_of="global/0")], SearchConfig(population=3))
    assert [member.number for member in population.members] == [0, 1, 2]
    population = replay([*initial(5, 1, 3), trial(3, 5, duplicate_of="logits/0")], SearchConfig(population=3))
    assert [member.number for member in population.members] == [0, 2, 3]


@pytest.mark.parametrize(("size", "ratio"), [(20, 0.9), (8, 0.9), (7, 0.5), (10, 0.3)])
def test_parents_are_the_best_of_a_sample_without_replacement(size, ratio):
    config = SearchConfig(population=size, sample_ratio=ratio, parents=3)
    members = [trial(i, float(i)) for i in range(size)]
    count = math.ceil(round(size * ratio, 9))
    best_possible = Counter()
    for seed in range(200):
        pool = parent_pool(members, config, np.random.default_rng(seed))
        numbers = [member.number for member in pool]
        assert len(set(numbers)) == min(3, count) and numbers == sorted(numbers, reverse=True)
        # the j-th best of a sample that leaves out size - count members is at worst j + (size - count) places down
        assert all(size - 1 - number <= place + size - count for place, number in enumerate(numbers))
        best_possible[numbers[0]] += 1
    # the best member is in the sample with probability count / size
    share = best_possible[size - 1] / 200
    assert abs(share - count / size) < 4 * math.sqrt(0.25 / 200)


def test_ties_among_parents_go_to_the_newer():
    config = SearchConfig(population=4, sample_ratio=1.0, parents=2)
    pool = parent_pool([trial(i, 1.0) for i in range(4)], config, np.random.default_rng(0))
    assert [member.number for member in pool] == [3, 2]


def test_mutation_changes_exactly_one_gene_to_any_other_value(grid):
    space = grid(4, 5, 1, 7)
    parent = {"g0": "o1", "g1": "o2", "g2": "o0", "g3": "o3"}
    rng = np.random.default_rng(0)
    changes = Counter()
    for _ in range(3000):
        child = mutate(parent, space, rng)
        changed = [name for name in space.genes if child[name] != parent[name]]
        assert len(changed) == 1
        changes[changed[0], child[changed[0]]] += 1
    assert len(changes) == 3 + 4 + 6
    assert abs(sum(n for (name, _), n in changes.items() if name == "g0") / 3000 - 1 / 3) < 0.04
    assert all(abs(changes["g3", f"o{i}"] - 3000 / 18) < 60 for i in (0, 1, 2, 4, 5, 6))


def test_crossover_takes_every_gene_from_one_of_the_parents(grid):
    space = grid(9, 9, 9, 9)
    first, second = dict.fromkeys(space.genes, "o1"), dict.fromkeys(space.genes, "o2")
    rng = np.random.default_rng(0)
    taken = [cross(first, second, space, rng) for _ in range(2000)]
    for name in space.genes:
        assert abs(sum(child[name] == "o1" for child in taken) / 2000 - 0.5) < 0.05
    assert {child[name] for child in taken for name in child} == {"o1", "o2"}


def test_neighbors_are_all_choices_one_gene_away(grid):
    space = grid(4, 5, 7)
    here = {"g0": "o0", "g1": "o0", "g2": "o0"}
    found = list(neighbors(here, space))
    assert len(found) == 3 + 4 + 6 == len({space.key(child) for child in found})
    assert all(sum(child[name] != here[name] for name in here) == 1 for child in found)


@pytest.mark.parametrize("count", [1, 8, 20, 33])
def test_the_initial_sample_is_stratified_and_distinct(grid, count):
    space = grid(4, 5, 5, 7, 7, same=lambda p: "-".join(map(str, p.values())).replace("o4", "o0"))
    for seed in range(5):
        rows = stratified(space, count, np.random.default_rng(seed))
        assert len({space.key(row) for row in rows}) == len(rows) == count
        for name, options in space.genes.items():
            counts = Counter(row[name] for row in rows)
            assert {counts[option] for option in options} <= {count // len(options), -(-count // len(options))}


def test_the_initial_sample_avoids_what_is_taken_or_illegal(grid):
    space = grid(3, 3, 3, forbidden=lambda p: p["g0"] == p["g1"])
    taken = {"o0-o1-o2", "o1-o2-o0"}
    rows = stratified(space, 6, np.random.default_rng(1), taken)
    assert all(space.legal(row) and space.key(row) not in taken for row in rows)
