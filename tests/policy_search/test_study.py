from __future__ import annotations

import math
import random
import time

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from detkds.bench.evaluators import SyntheticLandscape
from detkds.config import SearchConfig
from detkds.policy import Policy, Term
from detkds.policy_search.divide_and_conquer import make_sampler
from detkds.policy_search.result import Result, SearchError, State, Trial
from detkds.policy_search.samplers.base import Proposal
from detkds.policy_search.space import Space
from detkds.policy_search.storage import open_storage
from detkds.policy_search.study import SearchStudy
from detkds.registry import SAMPLERS

CONFIG = SearchConfig(population=4)
SAMPLER_NAMES = ["evolution", "kdzero", "mcts", "nsga2", "random", "tpe", "weights"]


@pytest.fixture(scope="module")
def space():
    genes = {
        "transform": ("none", "norm(N)", "norm(C)", "softmax(C)"),
        "distance": ("l1", "l2", "kl", "pearson"),
        "weight": (0.5, 1, 2, 5),
    }
    return Space("logits", genes)


def open_study(space, storage, budget=12, sampler="evolution", config=CONFIG, seed=0, chunk=3, **changes):
    sampler = make_sampler(sampler, space, seed, config)
    return SearchStudy("logits", sampler, storage, budget, chunk=chunk, **changes)


def advance(study, measure, waves=None):
    """Run whole waves; return the policies that were measured."""
    measured = []
    while (waves is None or waves > 0) and (trials := study.ask()):
        waves = None if waves is None else waves - 1
        measured += [trial.key for trial in trials]
        for trial, result in zip(trials, measure([trial.policy for trial in trials]), strict=True):
            study.tell(trial, result)
    return measured


def story(study):
    return [(r.number, r.key, r.state, r.ap, r.role, r.iteration, r.duplicate_of) for r in study.trials]


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_the_same_seed_gives_the_same_trials(space, sampler):
    landscape = SyntheticLandscape(1)
    stories = []
    for seed in (0, 0, 1):
        study = open_study(space, None, sampler=sampler, seed=seed)
        advance(study, landscape.evaluate)
        stories.append(story(study))
    assert stories[0] == stories[1] != stories[2]
    assert study.trained == 12 and study.stopped == "budget"


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_no_loss_is_measured_twice_and_every_proposal_is_legal(space, sampler):
    study = open_study(space, None, budget=30, sampler=sampler)
    measured = advance(study, SyntheticLandscape(1, rejected=0.3).evaluate)
    assert len(set(measured)) == len(measured)
    assert all(space.legal(trial.params) for trial in study.trials)


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
    storage = InMemoryStorage()
    study = open_study(space, storage, budget=5, config=CONFIG.model_copy(update={"population": 6}))
    advance(study, lambda policies: [next(results) for _ in policies])
    states = [trial.state for trial in study.trials]
    assert states == [State.COMPLETE, State.FILTERED, State.PRUNED, State.FAILED, State.FAILED, State.COMPLETE]
    trials = optuna.load_study(study_name="logits", storage=storage).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED,
                                                 TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]  # fmt: skip
    # the refused one is free; what failed or was pruned was trained
    assert study.trained == 5 and study.stopped == "budget"
    assert study.best.ap == 31.0
    first, refused, pruned, failed, nan, _ = study.trials
    assert first.metrics == {"AP50": 45.0} and first.seconds == 2.0
    assert refused.reason == "loss is 312 on batch 2" and refused.ap is None
    assert pruned.ap == 12.0 and pruned.rungs == (14.0, 12.0) and pruned.epochs == 3
    assert trials[2].intermediate_values == {1: 14.0, 2: 12.0} and trials[2].value == 12.0
    assert failed.ap is None and failed.reason == "out of memory"
    assert nan.ap is None and "finite" in nan.reason
    members = study.sampler.population(study.trials).members
    assert {member.number for member in members} == {0, 2, 5}


def test_what_is_stored_can_be_read_by_optuna_alone(space, tmp_path):
    study = open_study(space, open_storage(tmp_path), budget=1)
    advance(study, lambda policies: [Result(State.COMPLETE, 30.0, policy=Policy([Term("logits", [], "l1", 0.25)]))])
    storage = open_storage(tmp_path)
    (trial,) = optuna.load_study(study_name="logits", storage=storage).trials
    assert trial.value == trial.user_attrs["ap"] == 30.0
    assert Policy.from_dict(trial.user_attrs["policy"]).key == trial.user_attrs["key"] == study.trials[0].key
    assert trial.user_attrs["outcome"] == "complete" and trial.user_attrs["resolved"]["terms"][0]["weight"] == 0.25
    assert trial.system_attrs["proposal"]["role"] == "init" and trial.system_attrs["wave"] == [0, 3]
    assert open_study(space, storage, budget=1).trials == study.trials


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
@pytest.mark.parametrize("told", [0, 1, 2])
def test_a_search_that_stopped_anywhere_continues_as_if_it_had_not(space, tmp_path, sampler, told):
    landscape = SyntheticLandscape(2, rejected=0.2)
    config = CONFIG.model_copy(update={"parallel": 3})
    whole = open_study(space, None, sampler=sampler, config=config)
    advance(whole, landscape.evaluate)
    for waves in range(4):
        folder = tmp_path / str(waves)
        broken = open_study(space, open_storage(folder), sampler=sampler, config=config)
        advance(broken, landscape.evaluate, waves)
        for trial in broken.ask()[:told]:
            broken.tell(trial, landscape.evaluate([trial.policy])[0])
        resumed = open_study(space, open_storage(folder), sampler=sampler, config=config)
        advance(resumed, landscape.evaluate)
        assert story(resumed) == story(whole)


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
@pytest.mark.parametrize("parallel", [1, 3])
def test_budgets_in_any_order_and_kills_between_end_like_fresh_searches(space, tmp_path, sampler, parallel):
    """A third is refused, so that waves are cut by a budget and go on."""
    landscape = SyntheticLandscape(2, rejected=0.3)
    config = CONFIG.model_copy(update={"parallel": parallel, "newcomer": "every:2"})

    def opened(budget, storage):
        changed = config.model_copy(update={"single_budget": budget})
        named = f"logits-{budget}" if SAMPLERS[sampler] is SAMPLERS["kdzero"] else "logits"
        return open_study(space, storage, budget, sampler, changed, stored_as=named)

    fresh = {}
    for budget in (5, 8, 11, 14):
        study = opened(budget, None)
        advance(study, landscape.evaluate)
        assert study.trained == budget and study.trials[-1].counts
        fresh[budget] = story(study)
    order = random.Random(parallel)
    for folder in ("a", "b"):
        storage = open_storage(tmp_path / folder)
        for _ in range(4):
            killed = opened(order.choice([5, 8, 11, 14]), storage)
            advance(killed, landscape.evaluate, order.randrange(4))
            for trial in reversed(killed.ask()[1:]):
                killed.tell(trial, landscape.evaluate([trial.policy])[0])
        for budget in order.sample([5, 8, 11, 14, 5], 5):
            study = opened(budget, storage)
            advance(study, landscape.evaluate)
            assert story(study) == fresh[budget]
            assert study.stopped == "budget"


def test_a_smaller_budget_measures_and_writes_nothing(space, tmp_path):
    whole = open_study(space, open_storage(tmp_path))
    advance(whole, SyntheticLandscape(1, rejected=0.3).evaluate)
    size = (tmp_path / "study.journal").stat().st_size
    for budget in (1, 4, 7):
        study = open_study(space, open_storage(tmp_path), budget)
        assert study.ask() == [] and study.trained == budget and study.stopped == "budget"
        assert story(study) == story(whole)[: len(study.trials)]
    assert (tmp_path / "study.journal").stat().st_size == size


def test_what_was_left_running_is_measured_before_anything_new(space, tmp_path):
    study = open_study(space, open_storage(tmp_path))
    left = [trial.number for trial in study.ask()]
    resumed = open_study(space, open_storage(tmp_path))
    assert [trial.number for trial in resumed.ask()] == left == [0, 1, 2]
    assert resumed.stopped == "" and resumed.wave == 0


def test_running_candidates_are_never_proposed_again(space):
    study = open_study(space, None, budget=40, config=CONFIG.model_copy(update={"parallel": 6}))
    landscape = SyntheticLandscape(0)
    while trials := study.ask():
        assert len({trial.key for trial in trials}) == len(trials) <= 6
        for trial in reversed(trials):  # told in another order
            study.tell(trial, landscape.evaluate([trial.policy])[0])
    ordered = open_study(space, None, budget=40, config=CONFIG.model_copy(update={"parallel": 6}))
    advance(ordered, landscape.evaluate)
    assert story(ordered) == story(study)


def test_a_duplicate_is_looked_up_and_costs_nothing(space):
    config = CONFIG.model_copy(update={"parallel": 2})
    sampler = make_sampler("random", space, 0, config)
    choices = [{"transform": "none", "distance": name, "weight": 1.0} for name in ("l1", "l1", "l2", "l1", "kl")]
    sampler.propose = lambda history, number, rng: Proposal(choices[min(number, len(choices) - 1)], "random")
    study = SearchStudy("logits", sampler, None, 3)
    measured = advance(study, lambda policies: [Result(State.COMPLETE, 30.0 + len(p.key)) for p in policies])
    assert len(measured) == len(set(measured)) == 3
    duplicates = [trial for trial in study.trials if trial.duplicate_of]
    assert [trial.number for trial in duplicates] == [1, 3] and {trial.duplicate_of for trial in duplicates} == {
        "logits/0"
    }
    assert all(trial.ap == study.trials[0].ap and not trial.counts for trial in duplicates)
    assert study.trained == 3 and [trial.state for trial in study.trials] == [State.COMPLETE] * 5


def test_a_sampler_that_only_repeats_itself_ends_the_study(space):
    sampler = make_sampler("random", space, 0, CONFIG)
    choice = {"transform": "none", "distance": "l1", "weight": 1.0}
    sampler.propose = lambda history, number, rng: Proposal(choice, "random")
    study = SearchStudy("logits", sampler, None, 3)
    assert len(advance(study, lambda policies: [Result(State.COMPLETE, 1.0) for _ in policies])) == 1
    assert study.stopped == "exhausted"


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_a_space_that_is_used_up_ends_the_study(sampler):
    space = Space("logits", {"distance": ("l1", "l2"), "weight": (1, 2)})
    study = open_study(space, None, budget=50, sampler=sampler)
    assert len(advance(study, SyntheticLandscape(0, rejected=0).evaluate)) == 4
    assert study.stopped == "exhausted" and study.ask() == []


def test_a_study_in_which_everything_is_refused_ends():
    genes = {"distance": ("l1", "l2", "kl"), "weight": tuple(range(1, 80))}
    study = open_study(Space("logits", genes), None)
    advance(study, lambda policies: [Result(State.FILTERED, reason="no") for _ in policies])
    assert study.stopped == "refused" and study.trained == 0 and study.best is None
    assert 100 <= len(study.trials) < 110


def test_results_of_other_studies_are_reused(space):
    params = {"transform": "none", "distance": "l1", "weight": 1.0}
    trial = Trial("other", 7, State.COMPLETE, params, space.policy(params), space.key(params), 35.0, {"AP50": 50.0})
    study = open_study(space, None, budget=61, known={trial.key: trial})
    measured = advance(study, SyntheticLandscape(0, rejected=0).evaluate)
    (reused,) = [other for other in study.trials if other.key == trial.key]
    assert trial.key not in measured and reused.duplicate_of == "other/7" and not reused.counts
    assert (reused.ap, reused.metrics) == (35.0, {"AP50": 50.0})


def test_a_seed_is_stored_once(space):
    params = {"transform": "none", "distance": "l1", "weight": 1.0}
    trial = Trial("other", 7, State.COMPLETE, params, space.policy(params), space.key(params), 35.0)
    storage = InMemoryStorage()
    for _ in range(2):
        study = open_study(space, storage)
        study.add_seed(params, trial)
    (seed,) = study.trials
    assert seed.role == "seed" and seed.duplicate_of == "other/7" and study.trained == 0
    advance(study, SyntheticLandscape(0, rejected=0).evaluate)
    assert sum(trial.role == "init" for trial in study.trials) == CONFIG.population - 1


def test_a_stored_search_with_other_settings_is_refused(space):
    storage = InMemoryStorage()
    open_study(space, storage)
    with pytest.raises(SearchError) as error:
        open_study(space, storage, seed=3, config=CONFIG.model_copy(update={"population": 5}))
    assert len(error.value.faults) == 2
    assert "another seed: it has 0, this run has 3" in str(error.value)
    open_study(space, storage, budget=99, config=CONFIG.model_copy(update={"parallel": 4, "initial_chunk": 1}))


def test_storing_costs_little_per_trial(tmp_path):
    """500 evaluations with the journal on disk: about 3 ms of processor time each, twice that on a busy machine."""
    genes = {
        "attention": ("none", "satt", "catt"),
        "scale": ("none", "scale(2)", "scale(4)"),
        "normalise": ("none", "norm(HW)", "norm(C)", "norm(N)", "minmax"),
        "distance": ("l1", "l2", "kl", "ssim"),
        "weight": (0.5, 1, 2, 5, 8, 10),
    }
    study = open_study(Space("global", genes), open_storage(tmp_path), budget=500, sampler="random")
    begin = time.process_time()
    advance(study, lambda policies: [Result(State.COMPLETE, float(len(p.key))) for p in policies])
    assert study.trained == 500
    assert (time.process_time() - begin) / 500 < 0.015
