"""One space over all kinds of knowledge, and the search of it."""

from __future__ import annotations

import os
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from detkds.bench.evaluators import SyntheticLandscape, TableEvaluator
from detkds.config import SearchConfig
from detkds.errors import ConfigError
from detkds.policy import Policy, Term
from detkds.policy_search.divide_and_conquer import JOINT, SearchOutcome, search
from detkds.policy_search.joint import JointSpace
from detkds.policy_search.result import Result, State, rank
from detkds.policy_search.samplers.base import Trial
from detkds.policy_search.samplers.surrogate import Surrogate
from detkds.policy_search.space import Space, draw, load_spaces, points

SPACES = {
    "global": Space("global", {"scale": ("none", "scale(1)"), "distance": ("l1", "l2"), "weight": (1, 5)}),
    "logits": Space("logits", {"transform": ("none", "softmax(C)"), "distance": ("l1",), "weight": (1,)}),
}
CONFIG = SearchConfig(population=4, single_budget=6, combination_budget=8, method="joint")
LANDSCAPE = SyntheticLandscape(5, rejected=0.15)


def test_a_choice_is_a_policy_of_the_terms_with_a_weight() -> None:
    space = JointSpace(SPACES)
    assert space.genes["global.weight"] == (0.0, 1.0, 5.0) and space.genes["logits.distance"] == ("l1",)
    params = space.join({"global": {"scale": "none", "distance": "l2", "weight": 5.0}})
    assert space.policy(params) == Policy([Term("global", [], "l2", 5)])
    assert params["logits.weight"] == 0.0 and space.legal(params)
    assert not space.legal(space.join({}))


def test_sizes_are_those_of_all_policies_written_out() -> None:
    """Global: 2 x 2 x 2 as written, 4 losses as scale(1) is nothing; logits 2: (8 + 1) (2 + 1) - 1 and 5 x 3 - 1."""
    space = JointSpace(SPACES)
    policies = [space.policy(params) for params in points(space)]
    assert space.size == 26 == len(set(policies))
    assert space.count_canonical() == 14 == len({policy.key for policy in policies})


def test_keys_are_those_of_the_policies() -> None:
    space = JointSpace(load_spaces("default", "gradient"))
    rng = np.random.default_rng(0)
    for params in [draw(space, rng) for _ in range(40)]:
        assert space.key(params) == space.policy(params).key
        assert space.key(space.join(space.parts(params))) == space.key(params)


def test_a_combination_that_does_not_fit_matters_only_where_its_term_is_there() -> None:
    """Rows of positions have no windows to compare."""
    spaces = {**SPACES, "global": Space("global", {
        "normalise": ("none", "reshape(C)"), "distance": ("l1", "ssim"), "weight": (1,)})}  # fmt: skip
    space = JointSpace(spaces)
    logits = {"transform": "none", "distance": "l1", "weight": 1.0}
    bad = {"normalise": "reshape(C)", "distance": "ssim"}
    assert not space.legal(space.join({"global": {**bad, "weight": 1.0}, "logits": logits}))
    assert space.legal(space.join({"global": {**bad, "weight": 0.0}, "logits": logits}))


def test_kinds_must_be_different() -> None:
    for spaces in ({}, {"one": SPACES["global"], "two": SPACES["global"]}):
        with pytest.raises(ConfigError, match="spaces of different kinds"):
            JointSpace(spaces)


def test_the_surrogate_does_not_learn_from_terms_that_are_left_out() -> None:
    """Two trials that differ in an idle gene alone: its options are worth the same to it."""
    space = JointSpace(SPACES)
    logits = {"transform": "none", "distance": "l1", "weight": 1.0}
    history = []
    for number, (distance, ap) in enumerate([("l1", 10.0), ("l2", 20.0)]):
        idle = {"scale": "none", "distance": distance, "weight": 0.0}
        params = space.join({"global": idle, "logits": logits})
        history.append(Trial(number, params, str(number), State.COMPLETE, (np.inf, ap, ap), "", 0, False))
    surrogate = Surrogate(space, history)
    ours, theirs = (space.join({"global": {"scale": "none", "distance": d, "weight": 1.0}}) for d in ("l1", "l2"))
    for number in surrogate.predict([ours, theirs]):
        assert number[0] == number[1]


@pytest.fixture(scope="module")
def spaces() -> dict[str, Space]:
    return load_spaces("paper", knowledge=["global", "fgbg", "logits"])


@pytest.fixture(scope="module")
def whole(spaces: dict[str, Space]) -> SearchOutcome:
    """The search that nothing interrupts."""
    return search(LANDSCAPE, spaces, CONFIG, seed=3, population=3)


def story(outcome: SearchOutcome) -> list[dict[str, object]]:
    return [{**trial.to_dict(), "seconds": 0} for trial in outcome.trials]


def test_an_undivided_search_is_one_study_with_all_trainings(whole: SearchOutcome) -> None:
    assert {trial.study for trial in whole.trials} == {JOINT}
    assert whole.trained == 3 * 6 + 8
    assert whole.best == rank(whole.trials)[0] and not whole.per_knowledge and not whole.left_out
    assert max(len(trial.policy) for trial in whole.trials) == 3
    assert {len(trial.params) for trial in whole.trials} == {5 + 5 + 3}
    measured = [trial.key for trial in whole.trials if trial.counts]
    assert len(set(measured)) == len(measured)


def test_policies_to_begin_with_stay_whole(spaces: dict[str, Space]) -> None:
    given = Policy([Term("global", ["norm(C)"], "kl", 6), Term("logits", ["norm_batch"], "pearson", 1),
                    Term("localization", [], "l1", 1)])  # fmt: skip
    outcome = search(LANDSCAPE, spaces, CONFIG, warm_start=[given, given, Policy([given.terms[2]])])
    first, second = (trial.policy for trial in outcome.trials[:2])
    assert first == Policy([Term("global", ["norm(C)"], "kl", 5), Term("logits", ["norm_batch"], "pearson", 1)])
    assert second != first


@pytest.mark.parametrize("sampler", ["random", "kdzero", "mcts", "tpe", "nsga2", "evolution(screen=1)"])
def test_every_sampler_searches_it(sampler: str, spaces: dict[str, Space]) -> None:
    outcome = search(
        LANDSCAPE, spaces, CONFIG.model_copy(update={"sampler": sampler, "single_budget": 2, "combination_budget": 4})
    )
    assert outcome.trained == 10


class Slow:
    """A landscape that takes a moment, so that a kill can come at any point."""

    def evaluate(self, policies: list[Policy], groups: object = ()) -> list[Result]:
        time.sleep(0.004)
        return LANDSCAPE.evaluate(policies)


def test_kills_change_nothing(tmp_path: Path, spaces: dict[str, Space], whole: SearchOutcome) -> None:
    for moment in (0.05, 0.12):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                search(Slow(), spaces, CONFIG, tmp_path, seed=3, population=3)
            finally:
                os._exit(0)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert story(search(LANDSCAPE, spaces, CONFIG, tmp_path, seed=3, population=3)) == story(whole)
    nothing = TableEvaluator(lambda policy: pytest.fail("measured again"))
    assert story(search(nothing, spaces, CONFIG, tmp_path, seed=3, population=3)) == story(whole)


def test_a_store_holds_both_searches(tmp_path: Path, spaces: dict[str, Space], whole: SearchOutcome) -> None:
    divided = search(LANDSCAPE, spaces, CONFIG.model_copy(update={"method": "divide"}), tmp_path, seed=3, population=3)
    assert story(search(LANDSCAPE, spaces, CONFIG, tmp_path, seed=3, population=3)) == story(whole)
    assert divided.trained == whole.trained and set(divided.per_knowledge) == set(spaces)
