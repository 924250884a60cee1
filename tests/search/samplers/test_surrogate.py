"""What a few trials say of the rest."""

from __future__ import annotations

import pytest

from detkds.errors import ConfigError
from detkds.search.divide_and_conquer import make_sampler
from detkds.search.result import State
from detkds.search.samplers.base import Entry
from detkds.search.samplers.surrogate import Surrogate
from detkds.search.settings import SearchSettings
from detkds.search.space import Space

SPACE = Space("global", {"attention": ("none", "satt"), "distance": ("l1", "l2"), "weight": (1.0,)})


def entry(number: int, attention: str, distance: str, ap: float, state: State = State.COMPLETE) -> Entry:
    params = {"attention": attention, "distance": distance, "weight": 1.0}
    return Entry(number, params, SPACE.key(params), state, (1, ap, 0.0), "init", number, False)


def test_effects_add_up_with_a_penalty_of_one() -> None:
    """APs 10 and 14, mean 12, one differing gene: effects -e and e, with (1 + 1) e + (w + d) = 2 and w = d = 0."""
    surrogate = Surrogate(SPACE, [entry(0, "none", "l1", 10.0), entry(1, "satt", "l1", 14.0)])
    expected = {"none": 11.0, "satt": 13.0}
    for attention, ap in expected.items():
        for distance in ("l1", "l2"):
            params = {"attention": attention, "distance": distance, "weight": 1.0}
            assert surrogate.predict(params) == pytest.approx(ap)


def test_only_completed_trials_are_learned_from() -> None:
    done = entry(0, "none", "l1", 10.0)
    others = [entry(1, "satt", "l2", 3.0, State.PRUNED), entry(2, "satt", "l1", 0.0, State.FAILED)]
    one = {"attention": "satt", "distance": "l2", "weight": 1.0}
    assert Surrogate(SPACE, [done, *others]).predict(one) == Surrogate(SPACE, [done]).predict(one) == 10.0
    assert Surrogate(SPACE, []).predict(one) == 0.0


@pytest.mark.parametrize("screen", ["0", "true", "2.5"])
def test_a_number_of_mutants_that_is_none_is_refused(screen: str) -> None:
    with pytest.raises(ConfigError, match="screen: expected a whole number"):
        make_sampler(f"evolution(screen={screen})", SPACE, 0, SearchSettings())
