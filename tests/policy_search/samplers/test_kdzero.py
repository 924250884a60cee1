from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detkds.config import SearchConfig
from detkds.errors import ConfigError
from detkds.policy import Policy, Term
from detkds.policy_search.combination import CombinationSpace
from detkds.policy_search.result import State, Trial
from detkds.policy_search.samplers.kdzero import ShrinkingEvolution


def trial(number, option, ap, state=State.COMPLETE):
    params = {"g0": option, "g1": "o0"}
    return Trial("study", number, state, params, Policy(), str(number), ap=ap, role="mutant", iteration=number)


def worst_first(count):
    """Options o0 .. o7 in turn, AP growing with the option."""
    return [trial(number, f"o{number % 8}", float(number % 8)) for number in range(count)]


def test_the_worst_quarter_is_dropped_after_each_third(grid):
    sampler = ShrinkingEvolution(grid(8, 3), 0, SearchConfig(single_budget=72))
    every = tuple(f"o{i}" for i in range(8))
    assert sampler.options_left(worst_first(23))["g0"] == every
    assert sampler.options_left(worst_first(24))["g0"] == every[2:]
    assert sampler.options_left(worst_first(47))["g0"] == every[2:]
    assert sampler.options_left(worst_first(48))["g0"] == every[3:]  # a quarter of six, rounded down
    assert sampler.options_left(worst_first(72))["g0"] == every[3:]
    assert sampler.options_left(worst_first(72))["g1"] == ("o0", "o1", "o2")


def test_what_was_measured_less_than_three_times_stays(grid):
    sampler = ShrinkingEvolution(grid(8, 3), 0, SearchConfig(single_budget=48))
    assert sampler.options_left(worst_first(16))["g0"] == tuple(f"o{i}" for i in range(8))


def test_only_completed_trials_say_what_is_worst(grid):
    sampler = ShrinkingEvolution(grid(4, 3), 0, SearchConfig(single_budget=30))
    failed = [trial(n, "o3", 0.0, State.FAILED) for n in range(2)]
    rest = [trial(n, f"o{n % 4}", float(n % 4)) for n in range(2, 14)]
    refused = [trial(n, "o3", 0.0, State.FILTERED) for n in range(14, 30)]
    # two failures and eight completed ones are the first ten that were trained; o0 was completed twice in them
    assert sampler.options_left([*failed, *rest[:8], *refused])["g0"] == ("o0", "o1", "o2", "o3")
    longer = ShrinkingEvolution(grid(4, 3), 0, SearchConfig(single_budget=42))
    assert longer.options_left([*failed, *rest, *refused])["g0"] == ("o1", "o2", "o3")
    assert longer.options_left([*failed, *rest[:11], *refused, replace(rest[11], duplicate_of="study/2")])["g0"] == (
        "o0", "o1", "o2", "o3")  # fmt: skip


def test_an_option_that_always_loses_at_a_rung_is_dropped(grid):
    """o0 completes at 1, 2, 3; o3 has higher AP but is pruned each time, so it counts as 1, the worst completed."""
    sampler = ShrinkingEvolution(grid(4, 3), 0, SearchConfig(single_budget=36))
    found = [trial(n, f"o{n % 4}", 1.0 + n // 4 + n % 4) for n in range(12)]
    pruned = [replace(one, state=State.PRUNED) if one.params["g0"] == "o3" else one for one in found]
    assert sampler.options_left(found)["g0"] == ("o1", "o2", "o3")
    assert sampler.options_left(pruned)["g0"] == ("o0", "o1", "o2")


def test_dropped_options_are_not_proposed_again(grid, run, separable, total):
    space = grid(8, 8, 8)
    effects = separable(space, 0)
    sampler = ShrinkingEvolution(space, 0, SearchConfig(single_budget=90, population=8))
    history = run(sampler, lambda p: total(effects, p), 90)
    dropped = 0
    for number in range(8, 90):
        left = sampler.options_left(history[:number])
        assert all(history[number].params[name] in left[name] for name in left)
        dropped += left != dict(space.genes)
    assert dropped > 50 and len({trial.key for trial in history}) == 90


def test_the_whole_space_is_searched_once_the_rest_is_used_up(grid, run, separable, total):
    space = grid(8, 4)
    effects = separable(space, 0)
    sampler = ShrinkingEvolution(space, 0, SearchConfig(single_budget=32, population=4), shrink=0.5)
    assert len(run(sampler, lambda p: total(effects, p), 99)) == 32
    assert sampler.options_left([]) == dict(space.genes)


def test_the_budget_is_that_of_the_stage(grid):
    config = SearchConfig(single_budget=30, combination_budget=60)
    combination = CombinationSpace({"logits": Term("logits", [], "l1")}, [1.0, 2.0])
    assert ShrinkingEvolution(grid(3), 0, config).budget == 30
    assert ShrinkingEvolution(combination, 0, config).budget == 60


def test_parents_are_crossed(grid, run, separable, total):
    space = grid(8, 8, 8, 8, 8)
    effects = separable(space, 4)
    sampler = ShrinkingEvolution(space, 4, SearchConfig(single_budget=1000))
    history = run(sampler, lambda p: total(effects, p), 80)
    proposals = [sampler.propose(history[:n], n, np.random.default_rng([4, n])) for n in range(8, 80)]
    crossed = sum(len(proposal.parents) == 2 for proposal in proposals)
    assert 18 < crossed < 54  # of 72, half: five deviations


def test_every_argument_that_cannot_be_used_is_named(grid):
    with pytest.raises(ConfigError) as error:
        ShrinkingEvolution(grid(3), 0, SearchConfig(), crossover=1.5, shrink=1)
    assert len(error.value.faults) == 2
