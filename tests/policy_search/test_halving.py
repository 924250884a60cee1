"""The rule by hand-worked values, and a search on measured trials that a kill does not change."""

from __future__ import annotations

import os
import pickle
import random
import signal
import time
import warnings
from dataclasses import replace

import pytest
from pydantic import ValidationError

from detkds.bench.evaluators import SyntheticLandscape, TableEvaluator
from detkds.config import HalvingConfig, SearchConfig
from detkds.errors import ConfigError
from detkds.policy import Policy, Term
from detkds.policy_search.divide_and_conquer import COMBINATION, search
from detkds.policy_search.halving import (
    SuccessiveHalving,
    apply_halving,
    bracket_of,
    check_rungs,
    expected_shares,
    halving_groups,
)
from detkds.policy_search.result import HalvingGroup, Result, SearchError, State, Trial, rank
from detkds.policy_search.space import Space

POLICIES = [Policy([Term("global", [], "l1", 1.0 + number)]) for number in range(12)]


def stopped(aps, *, rung=0, halving=None, groups=()):
    """Those of the candidates with these APs that stop at the rung."""
    halving = halving or HalvingConfig(rungs=(1, 3))
    stops = SuccessiveHalving(halving, POLICIES[: len(aps)], groups).report(rung, dict(enumerate(aps)))
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
    assert stopped(aps) == stop


def test_earlier_trials_count_and_only_at_the_rungs_they_reached():
    """At rung 1: 9, 8, 7, 6 and 5, so two of five go on; at rung 2: 4, 3 and 5, so one of three."""
    earlier = HalvingGroup("global/1/0", {"a": (9.0, 4.0), "b": (8.0, 3.0), "c": (7.0,), "d": (6.0,)})
    assert stopped([5.0], groups=[earlier]) == [0]
    assert stopped([8.0], groups=[earlier]) == []  # two are larger or equal, one is larger
    assert stopped([7.5], groups=[earlier]) == [0]
    assert stopped([5.0], rung=1, groups=[earlier]) == []
    assert stopped([3.5], rung=1, groups=[earlier]) == [0]


def test_groups_do_not_stop_each_other():
    groups = [HalvingGroup("global/0/0")] * 3 + [HalvingGroup("logits/0/0")] * 3
    assert stopped([50.0, 40.0, 30.0, 5.0, 4.0, 3.0], groups=groups) == [1, 2, 4, 5]
    earlier = {f"k{n}": (50.0 + n,) for n in range(6)}
    assert stopped([1.0, 1.0], groups=[HalvingGroup("global/0/0", earlier), HalvingGroup("logits/0/0")]) == [0]


def test_a_group_that_is_measured_in_parts_is_compared_as_one():
    halving = SuccessiveHalving(HalvingConfig(rungs=(1,)), POLICIES[:4])
    assert sorted(halving.report(0, {0: 5.0, 1: 3.0})) == []
    assert sorted(halving.report(0, {2: 4.0, 3: 2.0})) == [3]  # 5 and 4 are the best two of four


def test_the_reason_says_where_it_stood():
    earlier = {f"k{n}": (20.0 + n, 15.0 + n) for n in range(5)}
    halving = SuccessiveHalving(HalvingConfig(rungs=(2, 3)), POLICIES[:1], [HalvingGroup("", earlier)])
    assert halving.report(1, {0: 14.94}) == {0: "rung 2 of 2 (epoch 3): AP 14.9, place 6 of 6, the best 2 go on"}
    halving = SuccessiveHalving(HalvingConfig(rungs=(2,)), POLICIES[:3])
    assert halving.report(0, {0: 3.0, 1: 2.0, 2: 1.0})[1].endswith("AP 2.0, place 2 of 3, the best goes on")


def test_brackets_are_compared_within_themselves_and_begin_later():
    halving = HalvingConfig(rungs=(1, 3), eta=2, brackets=3)
    brackets = [bracket_of(policy.key, halving) for policy in POLICIES]
    assert brackets == [bracket_of(policy.key, HalvingConfig(rungs=(1, 3), brackets=3)) for policy in POLICIES]
    assert set(brackets) == {0, 1, 2}
    aps = [float(number) for number in range(len(POLICIES))]
    for rung in (0, 1):
        expected = []
        for bracket in range(rung + 1):
            members = [number for number in range(len(POLICIES)) if brackets[number] == bracket]
            expected += members[: len(members) // 2] if len(members) > 1 else []
        assert stopped(aps, rung=rung, halving=halving) == sorted(expected)
    first = brackets.index(0)
    others = {policy.key: (99.0,) for policy, bracket in zip(POLICIES, brackets, strict=True) if bracket}
    groups = [HalvingGroup("", others)] * len(POLICIES)
    assert SuccessiveHalving(halving, POLICIES, groups).report(0, {first: 1.0}) == {}


def test_the_share_that_is_expected_to_train():
    assert expected_shares(HalvingConfig(rungs=(1, 3)), 5) == pytest.approx((1, 1 / 3, 1 / 3, 1 / 9, 1 / 9))
    # bracket 0 thins out at both rungs, bracket 1 at the second, bracket 2 never
    assert expected_shares(HalvingConfig(rungs=(1, 2), eta=2, brackets=3), 3) == pytest.approx((1, 2.5 / 3, 1.75 / 3))


def test_every_fault_is_named_at_once():
    with pytest.raises(ValidationError) as error:
        HalvingConfig(rungs=(3, 1), eta=1, brackets=0)
    assert [fault["loc"] for fault in error.value.errors()] == [("rungs",), ("eta",), ("brackets",)]
    with pytest.raises(ValidationError, match="expected at most 3, one more than there are rungs"):
        HalvingConfig(rungs=(1, 3), brackets=4)
    for rungs in ((), (0, 2), (2, 2), (1.5,)):
        with pytest.raises(ValidationError, match="rungs"):
            HalvingConfig(rungs=rungs)
    with pytest.raises(ConfigError, match=r"rungs: expected epochs below the last one, 3, got \[1, 3\]"):
        check_rungs((1, 3), 3)
    check_rungs((1, 3), 4)


# ------------------------------------------------------------------------------------------------ groups of a study


def known(number, *rungs, wave=0, state=State.COMPLETE, duplicate_of=""):
    given = {"rungs": rungs, "wave": (wave, 5), "duplicate_of": duplicate_of}
    return Trial("global", number, state, {}, Policy(), f"k{number}", **given)


def running(number, wave=0):
    return known(number, wave=wave, state=None)


def test_a_wave_is_cut_into_groups_by_the_order_of_its_trials():
    trials = [known(3, 9.0), *(running(number, 1) for number in range(4, 9))]
    groups = halving_groups(trials, [4, 5, 6, 7, 8], 2)
    assert [group.name for group in groups] == ["global/1/0"] * 2 + ["global/1/1"] * 2 + ["global/1/2"]
    assert all(group.earlier == {"k3": (9.0,)} for group in groups)


def test_after_a_kill_a_candidate_has_the_same_company():
    """Trials 1 to 4 are a wave of groups of 2; 1 and 3 were told, the others are measured again."""
    trials = [known(0, 1.0, 2.0, state=State.PRUNED), known(1, 4.0, wave=1), running(2, 1), known(3, 5.0, wave=1),
              running(4, 1)]  # fmt: skip
    second, fourth = halving_groups(trials, [2, 4], 2)
    assert second == HalvingGroup("global/1/0", {"k0": (1.0, 2.0), "k1": (4.0,)})
    assert fourth == HalvingGroup("global/1/1", {"k0": (1.0, 2.0), "k3": (5.0,)})


def test_only_what_was_measured_is_compared_with():
    trials = [known(0, 1.0), known(1, 2.0, duplicate_of="global/0"), known(2, 3.0, state=State.FAILED),
              known(3, state=State.FILTERED), known(4), running(5, 1)]  # fmt: skip
    (group,) = halving_groups(trials, [5], 8)
    assert group.earlier == {"k0": (1.0,)}
    assert pickle.loads(pickle.dumps(group)) == group


@pytest.mark.parametrize("population", [1, 8])
def test_a_search_tells_the_evaluator_who_is_compared(population):
    """Rungs are stored and come back in groups of the same study; those of other studies never do."""
    before: dict[str, dict[str, tuple[float, ...]]] = {"global": {}, "logits": {}, COMBINATION: {}}
    names = []

    class Measured:
        def evaluate(self, policies, groups=()):
            results = SyntheticLandscape(0, rejected=0).evaluate(policies)
            results = [replace(result, rungs=(result.ap - 1, result.ap), epochs=2.5) for result in results]
            studies = [group.name.partition("/")[0] for group in groups]
            assert [group.earlier for group in groups] == [before[study] for study in studies]
            for study, policy, result in zip(studies, policies, results, strict=True):
                before[study] = {**before[study], policy.key: result.rungs}
            names.append([group.name for group in groups])
            return results

    config = SearchConfig(method="divide", population=4, single_budget=6, combination_budget=4)
    outcome = search(Measured(), SPACES, config, population=population)
    assert {study: len(keys) for study, keys in before.items()} == {"global": 6, "logits": 6, COMBINATION: 4}
    assert len(names[0]) == (2 if population == 1 else 8) and len(set(names[0])) == 2
    measured = [trial for trial in outcome.trials if trial.counts]
    assert {trial.key: trial.rungs for trial in measured if trial.study == "global"} == before["global"]
    assert all(trial.rungs == (trial.ap - 1, trial.ap) and trial.epochs == 2.5 for trial in measured)
    duplicates = [trial for trial in outcome.trials if trial.duplicate_of]
    assert duplicates and all(trial.rungs and trial.epochs == 0 for trial in duplicates)


# ------------------------------------------------------------------------------------------- measured trials


def test_measured_results_are_cut_at_the_rung_they_lose():
    whole = [Result(State.COMPLETE, 30.0 + n, {"AP50": 50.0}, seconds=18.0, rungs=(10.0 + n, 20.0 - n), epochs=9)
             for n in range(6)]  # fmt: skip
    whole.append(Result(State.FAILED, reason="out of memory", rungs=(99.0,)))
    found = apply_halving(HalvingConfig(rungs=(1, 3)), POLICIES[:7], (), whole)
    assert [result.state for result in found] == [State.PRUNED] * 4 + [State.COMPLETE] * 2 + [State.FAILED]
    assert found[4:] == whole[4:]  # two of two are fewer than eta
    assert found[0] == Result(State.PRUNED, 10.0, reason=found[0].reason, seconds=2.0, rungs=(10.0,), epochs=1)
    assert apply_halving(HalvingConfig(rungs=(1, 3), eta=2), POLICIES[:6], (), whole[:6])[5].rungs == (15.0, 15.0)
    with pytest.raises(SearchError, match=r"expected AP at 2 rungs \(epochs \[1, 3\]\), got 0") as error:
        apply_halving(HalvingConfig(rungs=(1, 3)), POLICIES, (), [Result(State.COMPLETE, 1.0)] * 12)
    assert len(error.value.faults) == 12


def test_a_table_can_be_searched_with_halving():
    table = {policy.key: Result(State.COMPLETE, float(n), rungs=(float(n),), epochs=3)
             for n, policy in enumerate(POLICIES)}  # fmt: skip
    evaluator = TableEvaluator(table, halving=HalvingConfig(rungs=(1,), eta=4))
    assert [r.state is State.COMPLETE for r in evaluator.evaluate(POLICIES)] == [False] * 9 + [True] * 3


CONFIG = SearchConfig(method="divide", population=6, single_budget=12, combination_budget=12, parallel=5)
LANDSCAPE = SyntheticLandscape(5, rejected=0.15, halving=HalvingConfig(rungs=(1, 3), brackets=2))
COMMON = {"distance": ("l1", "l2", "kl", "pearson"), "weight": (0.5, 1, 2, 5, 10)}
SPACES = {name: Space(name, COMMON) for name in ("global", "logits")}


@pytest.fixture(scope="module")
def whole():
    return search(LANDSCAPE, SPACES, CONFIG, seed=3, population=6)


def story(outcome):
    return [{**trial.to_dict(), "seconds": 0} for trial in outcome.trials], outcome.best.place


def test_a_search_spends_its_budget_and_prunes(whole):
    assert whole.trained == 36
    pruned = [trial for trial in whole.trials if trial.state is State.PRUNED]
    assert len([trial for trial in pruned if trial.counts]) > 8 and all(trial.rungs for trial in pruned)
    assert {len(trial.rungs) for trial in pruned} == {1, 2}
    assert whole.best.state is State.COMPLETE and len(whole.best.rungs) == 2
    assert all(trial.ap == trial.rungs[-1] and trial.reason.startswith("rung") for trial in pruned)


def test_survivors_have_the_ap_they_have_without_halving(whole):
    plain = replace(LANDSCAPE, halving=None)
    for trial in rank(whole.trials):
        assert plain.evaluate([trial.policy])[0].ap == trial.ap


@pytest.mark.parametrize("sampler", ["evolution", "kdzero", "mcts", "tpe"])
def test_told_in_part_and_resumed_it_ends_alike(tmp_path, sampler):
    """Ended after the n-th result of the whole search, within a round and between two."""
    config = CONFIG.model_copy(update={"sampler": sampler, "single_budget": 8, "combination_budget": 6})
    whole = story(search(LANDSCAPE, SPACES, config, seed=3, population=6))

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
            search(LANDSCAPE, SPACES, config, folder, seed=3, population=6, on_event=stop)
        assert story(search(LANDSCAPE, SPACES, config, folder, seed=3, population=6)) == whole


@pytest.mark.parametrize("attempt", range(3))
def test_kills_at_random_moments_change_nothing(tmp_path, whole, attempt):
    moments = random.Random(attempt)
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                search(LANDSCAPE, SPACES, CONFIG, tmp_path, seed=3, population=6)
            finally:
                os._exit(0)
        time.sleep(moments.uniform(0.01, 0.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert story(search(LANDSCAPE, SPACES, CONFIG, tmp_path, seed=3, population=6)) == story(whole)
