from __future__ import annotations

import pytest

from detkds.errors import ConfigError
from detkds.policy import Policy, Term
from detkds.policy_search.combination import CombinationSpace
from detkds.policy_search.space import points

G, L = Term("global", ["norm(N)"], "l1", 5), Term("logits", [], "kl", 2)


def test_weight_zero_switches_a_term_off_and_all_zero_is_no_policy():
    space = CombinationSpace({"global": G, "logits": L}, (1, 2, 5))
    assert space.policy({"global": 5.0, "logits": 0.0}) == Policy([G])
    assert not space.legal({"global": 0.0, "logits": 0.0})
    # 4 weights for each of two terms, without (0, 0)
    assert space.size == 15 == len(list(points(space))) == len({space.key(params) for params in points(space)})


def test_a_single_term_has_the_key_of_the_first_stage():
    space = CombinationSpace({"global": G, "logits": L}, (2, 5))
    assert space.key({"global": 5.0, "logits": 0.0}) == Policy([G]).key


def test_nearest_weights_are_nearest_in_ratio():
    space = CombinationSpace({"global": G, "logits": L}, (0.1, 0.5, 1, 2, 5, 8, 10))
    assert space.nearest({"global": 1.6, "logits": 0.02}) == {"global": 2.0, "logits": 0.1}
    assert space.nearest({"global": 5}) == {"global": 5.0, "logits": 0.0}


def test_faults():
    with pytest.raises(ConfigError, match="at least one term"):
        CombinationSpace({}, (1,))
    with pytest.raises(ConfigError, match="expected finite weights"):
        CombinationSpace({"global": G}, (float("inf"),))
    with pytest.raises(ConfigError, match="one above 0"):
        CombinationSpace({"global": G}, (0,))
