from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from detkds.policy import Policy
from detkds.search.cohort import group_peers
from detkds.search.divide_and_conquer import COMBINATION, search
from detkds.search.evaluators.table import SyntheticLandscape
from detkds.search.result import Peers, Record, Result, State
from detkds.search.settings import SearchSettings
from detkds.search.space import Space


def record(number, *rungs, state=State.COMPLETE, twin=""):
    return Record("global", number, state, {}, Policy(), f"k{number}", rungs=rungs, twin_of=twin)


def test_a_wave_is_cut_into_cohorts_by_the_order_of_its_trials():
    waves = {3: 0, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1}
    found = group_peers("global", waves, [record(3, 9.0)], [4, 5, 6, 7, 8], 2)
    assert [one.group for one in found] == ["global/1/0"] * 2 + ["global/1/1"] * 2 + ["global/1/2"]
    assert all(one.earlier == {"k3": (9.0,)} for one in found)


def test_after_a_kill_a_candidate_has_the_same_company():
    """Trials 1 to 4 are a wave of cohorts of 2; 1 and 3 were told, the others are measured again."""
    waves = {0: 0, 1: 1, 2: 1, 3: 1, 4: 1}
    known = [record(0, 1.0, 2.0, state=State.PRUNED), record(1, 4.0), record(2), record(3, 5.0)]
    second, fourth = group_peers("global", waves, known, [2, 4], 2)
    assert second == Peers("global/1/0", {"k0": (1.0, 2.0), "k1": (4.0,)})
    assert fourth == Peers("global/1/1", {"k0": (1.0, 2.0), "k3": (5.0,)})


def test_only_what_was_measured_is_compared_with():
    waves = dict.fromkeys(range(5), 0) | {5: 1}
    known = [record(0, 1.0), record(1, 2.0, twin="global/0"), record(2, 3.0, state=State.FAILED),
             record(3, state=State.FILTERED), record(4)]  # fmt: skip
    (peers,) = group_peers("global", waves, known, [5], 8)
    assert peers.earlier == {"k0": (1.0,)}
    assert pickle.loads(pickle.dumps(peers)) == peers


@pytest.mark.parametrize("cohort", [1, 8])
def test_a_search_tells_the_evaluator_who_is_compared(cohort):
    """Rungs are stored and come back as peers of the same study; those of other studies never do."""
    common = {"distance": ("l1", "l2", "kl", "pearson"), "weight": (0.5, 1, 2, 5, 10)}
    spaces = {"global": Space("global", common), "logits": Space("logits", common)}
    before: dict[str, dict[str, tuple[float, ...]]] = {"global": {}, "logits": {}, COMBINATION: {}}
    groups = []

    class Measured:
        def evaluate(self, policies, peers=()):
            found = SyntheticLandscape(0, rejected=0).evaluate(policies)
            found = [replace(result, rungs=(result.ap - 1, result.ap), epochs=2.5) for result in found]
            studies = [one.group.partition("/")[0] for one in peers]
            assert [one.earlier for one in peers] == [before[study] for study in studies]
            for study, policy, result in zip(studies, policies, found, strict=True):
                before[study] = {**before[study], policy.key: result.rungs}
            groups.append([one.group for one in peers])
            return found

    settings = SearchSettings(population=4, single_budget=6, combination_budget=4, initial_chunk=2, cohort=cohort)
    outcome = search(Measured(), spaces, settings)
    assert {study: len(keys) for study, keys in before.items()} == {"global": 6, "logits": 6, COMBINATION: 4}
    assert len(groups[0]) == 4 and len(set(groups[0])) == (4 if cohort == 1 else 2)
    measured = [record for record in outcome.records if record.counts]
    assert {record.key: record.rungs for record in measured if record.study == "global"} == before["global"]
    assert all(record.rungs == (record.ap - 1, record.ap) and record.epochs == 2.5 for record in measured)
    twins = [record for record in outcome.records if record.twin_of]
    assert twins and all(record.rungs and record.epochs == 0 for record in twins)  # what is looked up costs nothing


def test_results_without_rungs_have_none():
    assert Result(State.COMPLETE, 1.0).rungs == () and record(0).to_dict()["rungs"] == []
