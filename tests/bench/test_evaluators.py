from __future__ import annotations

import numpy as np
import pytest

from detkds.bench.evaluators import SyntheticLandscape, TableEvaluator
from detkds.policy import Policy, Term
from detkds.policy_search.result import Result, State
from detkds.policy_search.space import draw, load_spaces

ONE = Policy([Term("global", ["scale(1)"], "l1", 5)])
DUPLICATE = Policy([Term("global", [], "l1", 5)])
OTHER = Policy([Term("logits", [], "kl", 1)])


def test_a_table_is_looked_up_by_the_canonical_key():
    table = TableEvaluator({DUPLICATE.key: 31.0})
    first, second = table.evaluate([ONE, OTHER])
    assert first == Result(State.COMPLETE, 31.0)
    assert second.state is State.FILTERED and not second.counts
    assert table.calls == [[DUPLICATE.key, OTHER.key]]
    assert TableEvaluator({}, missing=3.0).evaluate([OTHER])[0].ap == 3.0


def test_a_function_may_give_numbers_or_results():
    failed = Result(State.FAILED, reason="broken")
    table = TableEvaluator(lambda policy: failed if policy == OTHER else 2.0)
    assert table.evaluate([OTHER, ONE]) == [failed, Result(State.COMPLETE, 2.0)]


def test_a_landscape_has_the_spread_and_the_rejections_it_says():
    (space,) = load_spaces("paper", knowledge=["global"]).values()
    rng = np.random.default_rng(0)
    policies = [space.policy(draw(space, rng)) for _ in range(150)]
    spreads = []
    for seed in range(4):
        landscape = SyntheticLandscape(seed)
        spreads.append(np.std([landscape.quality(policy.terms[0]) for policy in policies]))
        rejected = np.mean([result.state is State.FILTERED for result in landscape.evaluate(policies)])
        assert 0.02 < rejected < 0.2
    assert 0.5 < np.mean(spreads) < 1.0


def test_without_its_filter_a_landscape_fails_what_it_refused_and_changes_nothing_else():
    (space,) = load_spaces("paper", knowledge=["logits"]).values()
    policies = [space.policy(draw(space, np.random.default_rng(seed))) for seed in range(60)]
    filtered, tried = (SyntheticLandscape(1, filter=on).evaluate(policies) for on in (True, False))
    refused = [result.state is State.FILTERED for result in filtered]
    assert 0 < sum(refused) < 60
    assert [result.state is State.FAILED and result.counts for result in tried] == refused
    assert [result for result in tried if result.ap] == [result for result in filtered if result.ap]


def test_a_landscape_is_the_same_for_duplicates_and_when_asked_again():
    landscape = SyntheticLandscape(3, rejected=0.0)
    again = SyntheticLandscape(3, rejected=0.0)
    assert landscape.evaluate([ONE]) == landscape.evaluate([DUPLICATE]) == again.evaluate([ONE])
    assert landscape.true_ap(Policy()) == 30.0
    assert SyntheticLandscape(0).quality(OTHER.terms[0]) != SyntheticLandscape(1).quality(OTHER.terms[0])


def test_terms_help_each_other_less_than_they_add_up():
    landscape = SyntheticLandscape(0, interaction=0.0)
    good = [term for term in (Term("global", [t], d, w) for t in ("satt", "catt", "mask")
            for d in ("l1", "l2", "kl") for w in (1.0, 2.0, 5.0)) if landscape.quality(term) > 0][:1]  # fmt: skip
    good += [term for term in (Term("logits", [], d, w) for d in ("l1", "l2", "kl") for w in (1.0, 2.0, 5.0))
             if landscape.quality(term) > 0][:1]  # fmt: skip
    a, b = (landscape.quality(term) for term in good)
    assert landscape.true_ap(Policy(good)) == pytest.approx(30 + (a * a + b * b) ** 0.5)
