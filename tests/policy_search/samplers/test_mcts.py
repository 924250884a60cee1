from __future__ import annotations

import math

import numpy as np
import pytest

from detkds.config import SearchConfig
from detkds.errors import ConfigError
from detkds.policy import Policy
from detkds.policy_search.result import State, Trial
from detkds.policy_search.samplers.mcts import TreeSearch


def trial(number, options, ap=0.0, state=State.COMPLETE):
    params = {f"g{i}": option for i, option in enumerate(options)}
    return Trial("study", number, state, params, Policy(), "-".join(options), ap=ap)


@pytest.fixture
def history():
    """Rewards (AP - 20) / 10: 1 for b-y, 0.5 for a-x, 0 for b-x; the refused a-z counts as the worst."""
    return [
        trial(0, ("a", "x"), 25.0),
        trial(1, ("b", "y"), 30.0),
        trial(2, ("b", "x"), 20.0),
        trial(3, ("a", "z"), state=State.FILTERED),
        trial(4, ("b", "z"), state=State.FAILED),
    ]


def test_every_prefix_of_a_trial_is_backed_up(grid, history):
    tree = TreeSearch(grid(2, 3), 0, SearchConfig()).replay(history)
    found = {prefix: (node.visits, node.measured, node.total) for prefix, node in tree.nodes.items()}
    assert found == {
        (): (5, 4, 1.5),
        ("a",): (2, 2, 0.5),
        ("b",): (3, 2, 1.0),
        ("a", "x"): (1, 1, 0.5),
        ("a", "z"): (1, 1, 0.0),
        ("b", "x"): (1, 1, 0.0),
        ("b", "y"): (1, 1, 1.0),
        ("b", "z"): (1, 0, 0.0),
    }
    # x on the second level: 0.5 below a and 0 below b
    assert (tree.options[1, "x"].visits, tree.options[1, "x"].total) == (2, 0.5)


@pytest.mark.parametrize("state", [State.FAILED, None])
def test_a_failed_or_running_trial_is_a_visit_without_a_reward(grid, state):
    tree = TreeSearch(grid(2, 3), 0, SearchConfig()).replay([trial(0, ("a", "x"), state=state)])
    assert (tree.nodes["a",].visits, tree.nodes["a",].measured) == (1, 0)


def test_the_bound_is_uct_without_sharing(grid, history):
    sampler = TreeSearch(grid(2, 3), 0, SearchConfig(), c=2.0, amaf=False)
    tree = sampler.replay(history)
    # mean 0.5 / 2; 5 visits of the root, 2 of the child
    assert sampler.bound(tree, ("a",)) == pytest.approx(0.25 + 2 * math.sqrt(math.log(5) / 2))
    assert sampler.bound(tree, ("b", "y")) == pytest.approx(1.0 + 2 * math.sqrt(math.log(3)))
    # without a measurement of its own a node counts as the mean of all rewards, 1.5 / 4
    assert sampler.bound(tree, ("b", "z")) == pytest.approx(0.375 + 2 * math.sqrt(math.log(3)))


def test_sharing_mixes_in_the_same_option_of_other_branches(grid, history):
    sampler = TreeSearch(grid(2, 3), 0, SearchConfig(), c=0.0)
    tree = sampler.replay(history)
    # x was measured n_A = 2 times with mean 0.25; below b n = 1 with mean 0: weight 2 / (2 + 1 + 2 / 5)
    weight = 2 / 3.4
    assert sampler.bound(tree, ("b", "x")) == pytest.approx(weight * 0.25)
    # z below b has no measurement of its own: only the shared mean, which is 0
    assert sampler.bound(tree, ("b", "z")) == pytest.approx(0.0)


def test_all_children_are_opened_before_any_is_chosen(grid, run, separable, total):
    space = grid(5, 4, 3)
    effects = separable(space, 0)
    history = run(TreeSearch(space, 0, SearchConfig(), amaf=False), lambda p: total(effects, p), 5)
    assert {trial.params["g0"] for trial in history} == set(space.genes["g0"])
    backwards = TreeSearch(space, 0, SearchConfig(), order="reverse")
    history = run(backwards, lambda p: total(effects, p), 3)
    assert {trial.params["g2"] for trial in history} == set(space.genes["g2"])


def test_it_is_a_pure_function_of_the_trials_before(grid, run, separable, total):
    space = grid(4, 5, 3, same=lambda p: "-".join(map(str, p.values())).replace("o2", "o1"))
    effects = separable(space, 1)
    sampler = TreeSearch(space, 1, SearchConfig())
    history = run(sampler, lambda p: total(effects, p), 100)
    assert len(history) == len({trial.key for trial in history}) == 3 * 4 * 2  # the space, to its end
    for number in (3, 17, 9):
        assert sampler.propose(history[:number], number, np.random.default_rng([1, number])).params == (
            history[number].params
        )


def test_it_ends_at_legal_leaves_only(grid, run):
    space = grid(3, 3, 3, forbidden=lambda p: p["g0"] == "o1" or p["g1"] == p["g2"])
    history = run(TreeSearch(space, 0, SearchConfig()), lambda p: 1.0, 100)
    assert len(history) == 2 * 6 and all(space.legal(trial.params) for trial in history)


def test_it_finds_more_than_random_would(grid, run, separable, total):
    """The mean rank of the best of 60 of 720 points; random draws would give 720 / 61 = 12."""
    space = grid(4, 5, 6, 6)
    ranks = []
    for seed in range(8):
        effects = separable(space, seed)
        found = max(
            e.fitness[1] for e in run(TreeSearch(space, seed, SearchConfig()), lambda p, e=effects: total(e, p), 60)
        )
        axes = [[effects[name, option] for option in options] for name, options in space.genes.items()]
        values = sum(np.ix_(*axes))
        ranks.append(int((values > found + 1e-9).sum()) + 1)
    assert np.mean(ranks) < 5


def test_every_argument_that_cannot_be_used_is_named():
    with pytest.raises(ConfigError) as error:
        TreeSearch(None, 0, SearchConfig(), c=-1, amaf="perhaps", order="sideways")
    assert len(error.value.faults) == 3
