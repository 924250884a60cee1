from __future__ import annotations

import math
import time
from dataclasses import replace

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from detkds.policy import Policy, Term
from detkds.registry import SAMPLERS
from detkds.search.divide_and_conquer import make_sampler
from detkds.search.evaluators.table import SyntheticLandscape
from detkds.search.journal import open_storage
from detkds.search.result import Record, Result, SearchError, State
from detkds.search.settings import SearchSettings
from detkds.search.space import Space
from detkds.search.study import SearchStudy

SETTINGS = SearchSettings(population=4, initial_chunk=3)
SAMPLER_NAMES = ["evolution", "kdzero", "mcts", "nsga2", "random", "tpe", "weights"]


@pytest.fixture(scope="module")
def space():
    genes = {
        "transform": ("none", "norm(N)", "norm(C)", "softmax(C)"),
        "distance": ("l1", "l2", "kl", "pearson"),
        "weight": (0.5, 1, 2, 5),
    }
    return Space("logits", genes)


def open_study(space, storage, budget=12, sampler="evolution", settings=SETTINGS, seed=0, **changes):
    return SearchStudy("logits", make_sampler(sampler, space, seed, settings), storage, budget, **changes)


def advance(study, measure, waves=None):
    """Run whole waves; return the policies that were measured."""
    measured = []
    while (waves is None or waves > 0) and (candidates := study.gather()):
        waves = None if waves is None else waves - 1
        measured += [candidate.key for candidate in candidates]
        for candidate, result in zip(candidates, measure([c.policy for c in candidates]), strict=True):
            study.tell(candidate, result)
    return measured


def story(study):
    return [(r.number, r.key, r.state, r.ap, r.role, r.iteration, r.twin_of) for r in study.records]


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_the_same_seed_gives_the_same_trials(space, sampler):
    landscape = SyntheticLandscape(1)
    stories = []
    for seed in (0, 0, 1):
        study = open_study(space, InMemoryStorage(), sampler=sampler, seed=seed)
        advance(study, landscape.evaluate)
        stories.append(story(study))
    assert stories[0] == stories[1] != stories[2]
    assert study.trained == 12 and study.stopped == "budget"


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_no_loss_is_measured_twice_and_every_proposal_is_legal(space, sampler):
    study = open_study(space, InMemoryStorage(), budget=30, sampler=sampler)
    measured = advance(study, SyntheticLandscape(1, rejected=0.3).evaluate)
    assert len(set(measured)) == len(measured)
    assert all(space.legal(record.params) for record in study.records)


def test_every_sampler_is_registered():
    assert set(SAMPLER_NAMES) <= set(SAMPLERS.names())


def test_states_are_kept_apart(space):
    results = iter([
        Result(State.COMPLETE, 30.0, {"AP50": 45.0, "odd": math.nan}, seconds=2.0),
        Result(State.FILTERED, reason="loss is 312 on batch 2", trained=False),
        Result(State.PRUNED, 12.0, reason="losing at rung 2", rungs=(14.0, 12.0), epochs=3),
        Result(State.FAILED, reason="out of memory"),
        Result(State.COMPLETE, math.nan),
        Result(State.COMPLETE, 31.0),
    ])  # fmt: skip
    study = open_study(space, InMemoryStorage(), budget=5, settings=replace(SETTINGS, population=6))
    advance(study, lambda policies: [next(results) for _ in policies])
    states = [record.state for record in study.records]
    assert states == [State.COMPLETE, State.FILTERED, State.PRUNED, State.FAILED, State.FAILED, State.COMPLETE]
    trials = study._study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED,
                                                 TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]  # fmt: skip
    # the refused one is free; what failed or was pruned was trained
    assert study.trained == 5 and study.stopped == "budget"
    assert study.best.ap == 31.0
    first, refused, pruned, failed, nan, _ = study.records
    assert first.metrics == {"AP50": 45.0} and first.seconds == 2.0
    assert refused.reason == "loss is 312 on batch 2" and refused.ap is None
    assert pruned.ap == 12.0 and pruned.rungs == (14.0, 12.0) and pruned.epochs == 3
    assert trials[2].intermediate_values == {1: 14.0, 2: 12.0} and trials[2].value == 12.0
    assert failed.ap is None and failed.reason == "out of memory"
    assert nan.ap is None and "finite" in nan.reason
    members = study.sampler.population(study.sampler.history(study._study)).members
    assert {member.number for member in members} == {0, 2, 5}


def test_what_is_stored_can_be_read_without_us(space, tmp_path):
    study = open_study(space, open_storage(tmp_path), budget=1)
    advance(study, lambda policies: [Result(State.COMPLETE, 30.0, policy=Policy([Term("logits", [], "l1", 0.25)]))])
    storage = open_storage(tmp_path)
    (trial,) = optuna.load_study(study_name="logits", storage=storage).trials
    assert trial.value == trial.user_attrs["ap"] == 30.0
    assert Policy.from_dict(trial.user_attrs["policy"]).key == trial.user_attrs["key"] == study.records[0].key
    assert trial.user_attrs["outcome"] == "complete" and trial.user_attrs["resolved"]["terms"][0]["weight"] == 0.25
    assert trial.system_attrs["proposal"]["role"] == "init" and trial.system_attrs["wave"] == [0, 1]
    assert open_study(space, storage, budget=1).records == study.records


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
@pytest.mark.parametrize("stop", ["asked", "told half", "without choice", "with half a choice"])
def test_a_search_that_stopped_anywhere_continues_as_if_it_had_not(space, tmp_path, sampler, stop):
    landscape = SyntheticLandscape(2, rejected=0.2)
    settings = replace(SETTINGS, parallel=3)
    whole = open_study(space, InMemoryStorage(), sampler=sampler, settings=settings)
    advance(whole, landscape.evaluate)
    for waves in range(4):
        folder = tmp_path / str(waves)
        broken = open_study(space, open_storage(folder), sampler=sampler, settings=settings)
        advance(broken, landscape.evaluate, waves)
        if stop in ("asked", "told half"):
            candidates = broken.gather()
            for candidate in candidates[: len(candidates) // 2 if stop == "told half" else 0]:
                broken.tell(candidate, landscape.evaluate([candidate.policy])[0])
        else:  # killed while the next trial is created; the storage knows it, but not (all of) its choice
            if broken._standing().complete and broken._next_size() < 1:
                continue
            trial = broken._study.ask()
            if stop == "with half a choice":
                trial.suggest_categorical("distance", space.genes["distance"])
        resumed = open_study(space, open_storage(folder), sampler=sampler, settings=settings)
        advance(resumed, landscape.evaluate)
        assert story(resumed) == story(whole)


def test_what_was_left_running_is_measured_before_anything_new(space, tmp_path):
    study = open_study(space, open_storage(tmp_path))
    left = [candidate.number for candidate in study.gather()]
    resumed = open_study(space, open_storage(tmp_path))
    assert [candidate.number for candidate in resumed.gather()] == left == [0, 1, 2]
    assert resumed.stopped == "" and resumed.wave == 0


def test_running_candidates_are_never_proposed_again(space):
    study = open_study(space, InMemoryStorage(), budget=40, settings=replace(SETTINGS, parallel=6))
    landscape = SyntheticLandscape(0)
    while candidates := study.gather():
        assert len({candidate.key for candidate in candidates}) == len(candidates) <= 6
        for candidate in reversed(candidates):  # told in another order
            study.tell(candidate, landscape.evaluate([candidate.policy])[0])
    ordered = open_study(space, InMemoryStorage(), budget=40, settings=replace(SETTINGS, parallel=6))
    advance(ordered, landscape.evaluate)
    assert story(ordered) == story(study)


def test_a_twin_is_looked_up_and_costs_nothing(space):
    settings = replace(SETTINGS, parallel=2)
    sampler = make_sampler("random", space, 0, settings)
    choices = [{"transform": "none", "distance": name, "weight": 1.0} for name in ("l1", "l1", "l2", "l1", "kl")]
    sampler.sample_relative = lambda study, trial, search_space: choices[min(trial.number, len(choices) - 1)]
    study = SearchStudy("logits", sampler, InMemoryStorage(), 3)
    measured = advance(study, lambda policies: [Result(State.COMPLETE, 30.0 + len(p.key)) for p in policies])
    assert len(measured) == len(set(measured)) == 3
    twins = [record for record in study.records if record.twin_of]
    assert [record.number for record in twins] == [1, 3] and {record.twin_of for record in twins} == {"logits/0"}
    assert all(record.ap == study.records[0].ap and not record.counts for record in twins)
    assert study.trained == 3 and [t.state for t in study._study.trials] == [TrialState.COMPLETE] * 5


def test_a_sampler_that_only_repeats_itself_ends_the_study(space):
    sampler = make_sampler("random", space, 0, SETTINGS)
    sampler.sample_relative = lambda *arguments: {"transform": "none", "distance": "l1", "weight": 1.0}
    study = SearchStudy("logits", sampler, InMemoryStorage(), 3)
    assert len(advance(study, lambda policies: [Result(State.COMPLETE, 1.0) for _ in policies])) == 1
    assert study.stopped == "exhausted"


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_a_space_that_is_used_up_ends_the_study(sampler):
    space = Space("logits", {"distance": ("l1", "l2"), "weight": (1, 2)})
    study = open_study(space, InMemoryStorage(), budget=50, sampler=sampler)
    assert len(advance(study, SyntheticLandscape(0, rejected=0).evaluate)) == 4
    assert study.stopped == "exhausted" and study.gather() == []


def test_a_study_in_which_everything_is_refused_ends():
    genes = {"distance": ("l1", "l2", "kl"), "weight": tuple(range(1, 80))}
    study = open_study(Space("logits", genes), InMemoryStorage())
    advance(study, lambda policies: [Result(State.FILTERED, reason="no") for _ in policies])
    assert study.stopped == "refused" and study.trained == 0 and study.best is None
    assert 100 <= len(study.records) < 110


def test_results_of_other_studies_are_reused(space):
    params = {"transform": "none", "distance": "l1", "weight": 1.0}
    record = Record("other", 7, State.COMPLETE, params, space.policy(params), space.key(params), 35.0, {"AP50": 50.0})
    study = open_study(space, InMemoryStorage(), budget=61, known={record.key: record})
    measured = advance(study, SyntheticLandscape(0, rejected=0).evaluate)
    (reused,) = [found for found in study.records if found.key == record.key]
    assert record.key not in measured and reused.twin_of == "other/7" and not reused.counts
    assert (reused.ap, reused.metrics) == (35.0, {"AP50": 50.0})


def test_a_seed_is_stored_once(space):
    params = {"transform": "none", "distance": "l1", "weight": 1.0}
    record = Record("other", 7, State.COMPLETE, params, space.policy(params), space.key(params), 35.0)
    storage = InMemoryStorage()
    for _ in range(2):
        study = open_study(space, storage)
        study.add_seed(params, record)
    (seed,) = study.records
    assert seed.role == "seed" and seed.twin_of == "other/7" and study.trained == 0
    advance(study, SyntheticLandscape(0, rejected=0).evaluate)
    assert sum(record.role == "init" for record in study.records) == SETTINGS.population - 1


def test_a_stored_search_with_other_settings_is_refused(space):
    storage = InMemoryStorage()
    open_study(space, storage)
    with pytest.raises(SearchError) as error:
        open_study(space, storage, seed=3, settings=replace(SETTINGS, population=5))
    assert len(error.value.faults) == 2
    assert "another seed: it has 0, this run has 3" in str(error.value)
    open_study(space, storage, budget=99, settings=replace(SETTINGS, parallel=4, initial_chunk=1))


def test_storing_costs_little_per_trial(tmp_path):
    """500 evaluations with the journal on disk: about 15 ms of processor time each, twice that on a busy machine."""
    genes = {
        "attention": ("none", "satt", "catt"),
        "scale": ("none", "scale(2)", "scale(4)"),
        "normalise": ("none", "norm(HW)", "norm(C)", "norm(N)", "minmax"),
        "distance": ("l1", "l2", "kl", "ssim"),
        "weight": (0.5, 1, 2, 5, 8, 10),
    }
    study = open_study(Space("global", genes), open_storage(tmp_path), budget=500)
    begin = time.process_time()
    advance(study, lambda policies: [Result(State.COMPLETE, float(len(p.key))) for p in policies])
    assert study.trained == 500
    assert (time.process_time() - begin) / 500 < 0.040
