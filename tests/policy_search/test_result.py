from __future__ import annotations

import math
from dataclasses import replace

import pytest

from detkds.policy import Policy, Term
from detkds.policy_search.result import Result, State, Trial, rank


def trial(number, ap, state=State.COMPLETE, key="", ap50=None):
    metrics = {} if ap50 is None else {"AP50": ap50}
    return Trial("global", number, state, {}, Policy(), key or f"k{number}", ap, metrics)


@pytest.mark.parametrize("ap", [math.nan, math.inf, None])
def test_an_ap_that_is_no_number_is_a_failure_not_zero(ap):
    checked = Result(State.COMPLETE, ap).checked()
    assert checked.state is State.FAILED and checked.ap is None and "finite" in checked.reason
    assert Result(State.COMPLETE, 0.0).checked().state is State.COMPLETE


def test_what_counts_against_the_budget():
    assert [Result(state, 1.0).counts for state in State] == [True, False, True, True]
    assert not Result(State.FAILED, trained=False).counts


def test_rank_keeps_the_best_of_each_policy_and_leaves_out_what_was_not_completed():
    trials = [trial(0, 3.0), trial(1, 9.0, State.PRUNED), trial(2, 5.0), trial(3, 5.0, ap50=7.0),
               trial(4, 4.0, key="k0"), trial(5, None, State.FAILED), trial(6, None, None)]  # fmt: skip
    assert [r.number for r in rank(trials)] == [3, 2, 4]
    assert [r.number for r in rank([trial(0, 1.0), trial(1, 1.0)])] == [0, 1]


def test_a_pruned_candidate_is_never_fitter_than_a_completed_one():
    def fitness(state, ap, ap50=None, rungs=()):
        metrics = {} if ap50 is None else {"AP50": ap50}
        return Trial("global", 0, state, {}, Policy(), "", ap, metrics, rungs=rungs).fitness

    assert fitness(State.PRUNED, 99.0) < fitness(State.COMPLETE, 1.0)
    assert fitness(State.PRUNED, 2.0, rungs=(5.0, 2.0)) > fitness(State.PRUNED, 4.0, rungs=(4.0,))  # it got further
    assert fitness(State.COMPLETE, 1.0, rungs=(9.0,)) > fitness(State.PRUNED, 2.0, rungs=(5.0, 2.0))
    assert fitness(State.COMPLETE, 1.0, 2.0) > fitness(State.COMPLETE, 1.0, math.nan)


def test_what_is_looked_up_costs_nothing_and_says_where_from():
    original = trial(2, 5.0, ap50=7.0).measured(Result(State.COMPLETE, 5.0, {"AP50": 7.0}, seconds=3.0, epochs=2.0))
    duplicate = trial(4, None, None).looked_up(original)
    assert (duplicate.ap, duplicate.metrics, duplicate.counts, duplicate.seconds) == (5.0, {"AP50": 7.0}, False, 0.0)
    assert duplicate.duplicate_of == "global/2" and duplicate.repeats
    assert duplicate.known_before(3) and not duplicate.known_before(2)
    elsewhere = replace(original, study="logits")
    assert trial(1, None, None).looked_up(elsewhere).known_before(0)
    assert duplicate.unmeasured() == trial(4, None, None)


def test_the_policy_to_train_again_has_calibrated_weights():
    proposed = Policy([Term("global", [], "l1", 3, "gradient")])
    trained = Policy([Term("global", [], "l1", 0.25)])
    plain = Trial("global", 0, State.COMPLETE, {}, proposed, proposed.key)
    calibrated = Trial("global", 0, State.COMPLETE, {}, proposed, proposed.key, resolved=trained.to_dict())
    assert plain.best_policy == proposed and calibrated.best_policy == trained
    assert calibrated.to_dict()["resolved"]["terms"][0]["weight"] == 0.25
