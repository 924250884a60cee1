"""The rule by hand-worked values, and a search on measured candidates that a kill does not change."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from dataclasses import replace

import pytest

from detkds.errors import ConfigError
from detkds.policy import Policy, Term
from detkds.search.divide_and_conquer import search
from detkds.search.evaluators.table import SyntheticLandscape, TableEvaluator
from detkds.search.halving import Contest, Halving, check_rungs, halved
from detkds.search.result import Peers, Result, SearchError, State, rank
from detkds.search.settings import SearchSettings
from detkds.search.space import Space

POLICIES = [Policy([Term("global", [], "l1", 1.0 + number)]) for number in range(12)]


def arrive(aps, *, rung=0, halving=None, peers=()):
    """Those of the candidates with these APs that stop at the rung."""
    halving = halving or Halving((1, 3))
    stops = Contest(halving, POLICIES[: len(aps)], peers).arrive(rung, dict(enumerate(aps)))
    return sorted(stops)


@pytest.mark.parametrize(
    ("aps", "stop"),
    [
        ([5.0, 3.0, 4.0], [1, 2]),  # the best of three
        ([5.0, 3.0, 4.0, 2.0], [1, 3]),  # ceil(4 / 3) = 2
        ([5.0, 4.0, 4.0], [1, 2]),
        ([5.0, 5.0, 4.0], [2]),  # a tie with the best that goes on
        ([5.0, 4.0, 4.0, 3.0], [3]),  # a tie with the second best
        ([2.0, 2.0, 2.0, 2.0], []),
        ([5.0, 3.0], []),  # fewer than eta
        ([float(ap) for ap in range(9)], list(range(6))),  # the best three of nine
        ([], []),
    ],
)
def test_the_best_ceil_n_over_eta_go_on(aps, stop):
    assert arrive(aps) == stop


def test_earlier_trials_count_and_only_at_the_rungs_they_reached():
    """At rung 1: 9, 8, 7, 6 and 5, so two of five go on; at rung 2: 4, 3 and 5, so one of three."""
    earlier = Peers("global/1/0", {"a": (9.0, 4.0), "b": (8.0, 3.0), "c": (7.0,), "d": (6.0,)})
    assert arrive([5.0], peers=[earlier]) == [0]
    assert arrive([8.0], peers=[earlier]) == []  # two are larger or equal, one is larger
    assert arrive([7.5], peers=[earlier]) == [0]
    assert arrive([5.0], rung=1, peers=[earlier]) == []
    assert arrive([3.5], rung=1, peers=[earlier]) == [0]


def test_groups_do_not_stop_each_other():
    peers = [Peers("global/0/0")] * 3 + [Peers("logits/0/0")] * 3
    assert arrive([50.0, 40.0, 30.0, 5.0, 4.0, 3.0], peers=peers) == [1, 2, 4, 5]
    known = {f"k{n}": (50.0 + n,) for n in range(6)}
    assert arrive([1.0, 1.0], peers=[Peers("global/0/0", known), Peers("logits/0/0")]) == [0]


def test_a_group_that_is_measured_in_parts_is_compared_as_one():
    contest = Contest(Halving((1,)), POLICIES[:4])
    assert sorted(contest.arrive(0, {0: 5.0, 1: 3.0})) == []
    assert sorted(contest.arrive(0, {2: 4.0, 3: 2.0})) == [3]  # 5 and 4 are the best two of four


def test_the_reason_says_where_it_stood():
    earlier = {f"k{n}": (20.0 + n, 15.0 + n) for n in range(5)}
    contest = Contest(Halving((2, 3)), POLICIES[:1], [Peers("", earlier)])
    assert contest.arrive(1, {0: 14.94}) == {0: "rung 2 of 2 (epoch 3): AP 14.9, place 6 of 6, the best 2 go on"}
    contest = Contest(Halving((2,)), POLICIES[:3])
    assert contest.arrive(0, {0: 3.0, 1: 2.0, 2: 1.0})[1].endswith("AP 2.0, place 2 of 3, the best goes on")


def test_brackets_are_compared_within_themselves_and_begin_later():
    halving = Halving((1, 3), eta=2, brackets=3)
    brackets = [halving.bracket(policy.key) for policy in POLICIES]
    assert brackets == [Halving((1, 3), brackets=3).bracket(policy.key) for policy in POLICIES]
    assert set(brackets) == {0, 1, 2}
    aps = [float(number) for number in range(len(POLICIES))]
    for rung in (0, 1):
        expected = []
        for bracket in range(rung + 1):
            members = [number for number in range(len(POLICIES)) if brackets[number] == bracket]
            expected += members[: len(members) // 2] if len(members) > 1 else []
        assert arrive(aps, rung=rung, halving=halving) == sorted(expected)
    first = brackets.index(0)
    others = {policy.key: (99.0,) for policy, bracket in zip(POLICIES, brackets, strict=True) if bracket}
    peers = [Peers("", others)] * len(POLICIES)
    contest = Contest(halving, POLICIES, peers)
    assert contest.arrive(0, {first: 1.0}) == {}


def test_the_share_that_is_expected_to_train():
    assert Halving((1, 3)).shares(5) == pytest.approx((1, 1 / 3, 1 / 3, 1 / 9, 1 / 9))
    # bracket 0 thins out at both rungs, bracket 1 at the second, bracket 2 never
    assert Halving((1, 2), eta=2, brackets=3).shares(3) == pytest.approx((1, 2.5 / 3, 1.75 / 3))


def test_every_fault_is_named_at_once():
    with pytest.raises(ConfigError) as error:
        Halving((3, 1), eta=1, brackets=4)
    assert len(error.value.faults) == 3
    for rungs in ((), (0, 2), (2, 2), (1.5,), (True,)):
        with pytest.raises(ConfigError, match="rungs: expected at least one epoch, ascending whole numbers >= 1"):
            Halving(rungs)
    with pytest.raises(ConfigError, match=r"rungs: expected epochs below the last one, 3, got \[1, 3\]"):
        check_rungs((1, 3), 3)
    check_rungs(Halving((1, 3), brackets=3).rungs, 4)


# ------------------------------------------------------------------------------------------- measured candidates


def test_measured_results_are_cut_at_the_rung_they_lose():
    whole = [Result(State.COMPLETE, 30.0 + n, {"AP50": 50.0}, seconds=18.0, rungs=(10.0 + n, 20.0 - n), epochs=9)
             for n in range(6)]  # fmt: skip
    whole.append(Result(State.FAILED, reason="out of memory", rungs=(99.0,)))
    found = halved(Halving((1, 3)), POLICIES[:7], (), whole)
    assert [result.state for result in found] == [State.PRUNED] * 4 + [State.COMPLETE] * 2 + [State.FAILED]
    assert found[4:] == whole[4:]  # two of two are fewer than eta
    assert found[0] == Result(State.PRUNED, 10.0, reason=found[0].reason, seconds=2.0, rungs=(10.0,), epochs=1)
    assert halved(Halving((1, 3), eta=2), POLICIES[:6], (), whole[:6])[5].rungs == (15.0, 15.0)
    with pytest.raises(SearchError, match=r"expected AP at 2 rungs \(epochs \[1, 3\]\), got 0") as error:
        halved(Halving((1, 3)), POLICIES, (), [Result(State.COMPLETE, 1.0)] * 12)
    assert len(error.value.faults) == 12


def test_a_table_can_be_searched_with_halving():
    table = {policy.key: Result(State.COMPLETE, float(n), rungs=(float(n),), epochs=3)
             for n, policy in enumerate(POLICIES)}  # fmt: skip
    evaluator = TableEvaluator(table, halving=Halving((1,), eta=4))
    assert [r.state is State.COMPLETE for r in evaluator.evaluate(POLICIES)] == [False] * 9 + [True] * 3


SETTINGS = SearchSettings(population=6, single_budget=12, combination_budget=12, initial_chunk=3, parallel=5, cohort=3)
LANDSCAPE = SyntheticLandscape(5, rejected=0.15, halving=Halving((1, 3), brackets=2))
COMMON = {"distance": ("l1", "l2", "kl", "pearson"), "weight": (0.5, 1, 2, 5, 10)}
SPACES = {name: Space(name, COMMON) for name in ("global", "logits")}


@pytest.fixture(scope="module")
def whole():
    return search(LANDSCAPE, SPACES, SETTINGS, seed=3)


def story(outcome):
    return [{**record.to_dict(), "seconds": 0} for record in outcome.records], outcome.best.place


def test_a_search_spends_its_budget_and_prunes(whole):
    assert whole.trained == 36
    pruned = [record for record in whole.records if record.state is State.PRUNED]
    assert len([record for record in pruned if record.counts]) > 8 and all(record.rungs for record in pruned)
    assert {len(record.rungs) for record in pruned} == {1, 2}
    assert whole.best.state is State.COMPLETE and len(whole.best.rungs) == 2
    assert all(record.ap == record.rungs[-1] and record.reason.startswith("rung") for record in pruned)


def test_survivors_have_the_ap_they_have_without_halving(whole):
    plain = replace(LANDSCAPE, halving=None)
    for record in rank(whole.records):
        assert plain.evaluate([record.policy])[0].ap == record.ap


@pytest.mark.parametrize("sampler", ["evolution", "kdzero", "mcts", "tpe"])
def test_told_in_part_and_resumed_it_ends_alike(tmp_path, sampler):
    """Ended after the n-th result of the whole search, within a round and between two."""
    settings = replace(SETTINGS, sampler=sampler, single_budget=8, combination_budget=6)
    whole = story(search(LANDSCAPE, SPACES, settings, seed=3))

    class Interrupted(BaseException):
        pass

    for last in (1, 4, 9, 13, 20):
        told = 0

        def stop(event, last=last):
            nonlocal told
            told += event.kind == "trial"
            if told == last:
                raise Interrupted

        folder = tmp_path / str(last)
        with pytest.raises(Interrupted):
            search(LANDSCAPE, SPACES, settings, folder, seed=3, on_event=stop)
        assert story(search(LANDSCAPE, SPACES, settings, folder, seed=3)) == whole


@pytest.mark.parametrize("attempt", range(3))
def test_kills_at_random_moments_change_nothing(tmp_path, whole, attempt):
    moments = random.Random(attempt)
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                search(LANDSCAPE, SPACES, SETTINGS, tmp_path, seed=3)
            finally:
                os._exit(0)
        time.sleep(moments.uniform(0.01, 0.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert story(search(LANDSCAPE, SPACES, SETTINGS, tmp_path, seed=3)) == story(whole)
