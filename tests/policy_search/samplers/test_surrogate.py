"""What a few trials say of the rest."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detkds.config import SearchConfig
from detkds.errors import ConfigError
from detkds.policy_search.divide_and_conquer import make_sampler
from detkds.policy_search.result import State, Trial
from detkds.policy_search.samplers.surrogate import Surrogate
from detkds.policy_search.space import Space

SPACE = Space("global", {"attention": ("none", "satt"), "distance": ("l1", "l2"), "weight": (1.0,)})


def trial(number: int, attention: str, distance: str, ap: float, state: State | None = State.COMPLETE) -> Trial:
    params = {"attention": attention, "distance": distance, "weight": 1.0}
    return Trial("global", number, state, params, SPACE.policy(params), SPACE.key(params), ap=ap)


def choices(*pairs: tuple[str, str]) -> list[dict[str, str | float]]:
    return [{"attention": attention, "distance": distance, "weight": 1.0} for attention, distance in pairs]


def test_a_guess_is_that_of_the_correlations_worked_out() -> None:
    """APs 10 and 14 that agree in 2 of 3 genes: correlation 1/2 2/3 + 1/2 1/2 = 7/12, scaled APs -1 and 1.

    By symmetry the weights are -w and w with w (1.03 - 7/12) = 1; what agrees in one gene correlates by 1/6 + 1/8.
    """
    surrogate = Surrogate(SPACE, [trial(0, "none", "l1", 10.0), trial(1, "satt", "l1", 14.0)])
    expected, spread = surrogate.predict(choices(("none", "l1"), ("satt", "l1"), ("none", "l2"), ("satt", "l2")))
    w, near, far = 1 / (1.03 - 7 / 12), 7 / 12, 1 / 6 + 1 / 8
    assert expected == pytest.approx([12 - 2 * w * (1 - near), 12 + 2 * w * (1 - near),
                                      12 - 2 * w * (near - far), 12 + 2 * w * (near - far)])  # fmt: skip
    inverse = np.linalg.inv([[1.03, near], [near, 1.03]])
    assert spread[0] == pytest.approx(2 * math.sqrt(1 - np.array([1, near]) @ inverse @ [1, near]))
    assert spread[2] == pytest.approx(2 * math.sqrt(1 - np.array([near, far]) @ inverse @ [near, far]))
    assert spread[2] == pytest.approx(spread[3]) and spread[2] > spread[0] > 0


def test_refused_and_failed_trials_say_nothing() -> None:
    done = trial(0, "none", "l1", 10.0)
    others = [trial(1, "satt", "l2", 3.0, State.FILTERED), trial(2, "satt", "l1", 0.0, State.FAILED)]
    one = choices(("satt", "l2"))
    for history in ([done, *others], [done]):
        assert Surrogate(SPACE, history).predict(one)[0] == 10.0
    assert [float(number[0]) for number in Surrogate(SPACE, []).predict(one)] == [0.0, 1.0]


def test_a_pruned_trial_counts_as_the_worst_that_was_completed() -> None:
    done = [trial(0, "none", "l1", 10.0), trial(1, "satt", "l1", 14.0)]
    pruned, worst = (trial(2, "satt", "l2", ap, state) for ap, state in ((3.0, State.PRUNED), (10.0, State.COMPLETE)))
    every = choices(("none", "l2"), ("satt", "l2"))
    for as_pruned, as_worst in zip(Surrogate(SPACE, [pruned, *done]).predict(every),
                                   Surrogate(SPACE, [*done, worst]).predict(every), strict=True):  # fmt: skip
        assert as_pruned == pytest.approx(as_worst)
    assert Surrogate(SPACE, [pruned]).predict(every)[0] == pytest.approx([0.0, 0.0])


def test_a_running_trial_makes_the_guess_surer_and_leaves_it() -> None:
    done = [trial(0, "none", "l1", 10.0), trial(1, "satt", "l1", 14.0)]
    running = trial(2, "satt", "l2", 0.0, None)
    one = choices(("satt", "l2"))
    (before, doubt), (after, less) = (Surrogate(SPACE, history).predict(one) for history in (done, [*done, running]))
    assert after == pytest.approx(before, abs=0.1) and less < 0.5 * doubt


@pytest.mark.parametrize("screen", ["0", "true", "2.5"])
def test_a_number_of_children_that_is_none_is_refused(screen: str) -> None:
    with pytest.raises(ConfigError, match="screen: expected a whole number"):
        make_sampler(f"evolution(screen={screen})", SPACE, 0, SearchConfig())
