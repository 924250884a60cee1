from __future__ import annotations

import contextlib
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import optuna
import pytest

import detkds.errors
from detkds.bench.evaluators import SyntheticLandscape, TableEvaluator
from detkds.config import SearchConfig
from detkds.errors import ConfigError
from detkds.policy import Policy, Term
from detkds.policy_search import journal
from detkds.policy_search.divide_and_conquer import COMBINATION, search, study_seed
from detkds.policy_search.result import Result, SearchError, State, rank
from detkds.policy_search.space import Space
from detkds.policy_search.storage import open_storage

CONFIG = SearchConfig(method="divide", population=5, single_budget=9, combination_budget=12)
LANDSCAPE = SyntheticLandscape(5, rejected=0.15)
DISTANCES = ("l1", "l2", "kl", "pearson")
WEIGHTS = (0.5, 1, 2, 5, 10)


def make_spaces():
    common = {"distance": DISTANCES, "weight": WEIGHTS}
    return {
        "global": Space("global", {"normalise": ("none", "norm(C)", "norm(N)"), **common}),
        "fgbg": Space("fgbg", {"attention": ("none", "satt", "catt"), **common}),
        "logits": Space("logits", {"transform": ("none", "norm_batch"), **common}),
    }


@pytest.fixture(scope="module")
def spaces():
    return make_spaces()


@pytest.fixture(scope="module")
def whole(spaces):
    """The search that nothing interrupts."""
    return search(LANDSCAPE, spaces, CONFIG, seed=3, population=9)


def story(outcome):
    trials = [{**trial.to_dict(), "seconds": 0} for trial in outcome.trials]
    return trials, outcome.best.place, [trial.place for trial in outcome.finalists]


def test_budgets_are_spent_exactly(whole, spaces):
    spent = {name: sum(r.counts for r in whole.trials if r.study == name) for name in (*spaces, COMBINATION)}
    assert spent == {"global": 9, "fgbg": 9, "logits": 9, COMBINATION: 12}
    assert whole.trained == 39


def test_the_best_of_each_kind_and_of_all_are_found(whole, spaces):
    for name in spaces:
        assert whole.per_knowledge[name] == rank([r for r in whole.trials if r.study == name])[0]
    assert whole.best.ap == max(trial.ap for trial in whole.trials if trial.state is State.COMPLETE)
    assert whole.finalists[0] == whole.best and len({trial.key for trial in whole.finalists}) == 3


def test_the_combination_begins_with_the_single_winners_and_is_never_worse(whole, spaces):
    combined = [trial for trial in whole.trials if trial.study == COMBINATION]
    seeds = [trial for trial in combined if trial.role == "seed"]
    assert {seed.key for seed in seeds} == {trial.key for trial in whole.per_knowledge.values()}
    assert {seed.duplicate_of for seed in seeds} == {trial.place for trial in whole.per_knowledge.values()}
    assert not any(seed.counts for seed in seeds)
    assert whole.best.ap >= max(trial.ap for trial in whole.per_knowledge.values())
    together = Policy([trial.policy.terms[0] for trial in whole.per_knowledge.values()])
    assert combined[3].key == together.key and combined[3].role == "init"
    lighter = [min(WEIGHTS, key=lambda w, t=term: abs(math.log(5 * w / t.weight))) for term in together.terms]
    assert [term.weight for term in combined[4].policy.terms] == lighter
    assert len([trial for trial in combined if trial.role == "init" and trial.counts]) == 2


@pytest.mark.parametrize("seed", range(5))
def test_combining_never_loses_to_the_best_single_term(spaces, seed):
    outcome = search(SyntheticLandscape(seed), spaces, CONFIG.model_copy(update={"combination_budget": 3}), seed=seed)
    assert outcome.best.ap >= max(trial.ap for trial in outcome.per_knowledge.values())


def test_kinds_of_knowledge_advance_side_by_side(spaces):
    table = TableEvaluator(lambda policy: LANDSCAPE.evaluate([policy])[0])
    search(table, spaces, CONFIG, seed=3, population=9)
    kinds = [[key.partition(":")[0] for key in call] for call in table.calls]
    # the initial population of 5 in chunks of 3 and the rest, then one trial of each kind in a round
    assert sorted(kinds[0]) == sorted(["global", "fgbg", "logits"] * 3)
    assert ["global", "fgbg", "logits"] in kinds
    assert len(kinds) < 9 + 12 + 10


def test_studies_have_seeds_of_their_own():
    assert len({study_seed(seed, name) for seed in range(3) for name in ("global", "fgbg", "logits")}) == 9


def test_events_tell_what_happens(spaces, whole):
    events = []
    outcome = search(LANDSCAPE, spaces, CONFIG, seed=3, population=9, on_event=events.append)
    assert story(outcome) == story(whole)
    kinds = [event.kind for event in events]
    assert kinds[0] == "round" and kinds[-1] == "study" and kinds.count("study") == 4
    measured = [event.trial for event in events if event.kind == "trial"]
    assert len(measured) == sum(len(event.candidates) for event in events)
    assert all(trial.state is not None for trial in measured)


def test_called_again_it_measures_nothing_and_says_the_same(tmp_path, spaces, whole):
    assert story(search(LANDSCAPE, spaces, CONFIG, tmp_path, seed=3, population=9)) == story(whole)
    nothing = TableEvaluator(lambda policy: pytest.fail("measured again"))
    assert story(search(nothing, spaces, CONFIG, tmp_path, seed=3, population=9)) == story(whole)


def test_a_larger_budget_continues_a_stage(tmp_path, spaces):
    smaller = CONFIG.model_copy(update={"combination_budget": 0})
    first = search(LANDSCAPE, spaces, smaller, tmp_path, seed=3)
    more = search(LANDSCAPE, spaces, smaller.model_copy(update={"single_budget": 14}), tmp_path, seed=3)
    assert more.trained == first.trained + 15
    assert {trial.place for trial in first.trials} < {trial.place for trial in more.trials}


BUDGETS = [(5, 6), (8, 4), (11, 9), (12, 5)]


@pytest.mark.parametrize("sampler", ["evolution", "kdzero", "tpe"])
def test_budgets_in_any_order_and_interruptions_end_like_fresh_searches(tmp_path, spaces, sampler):
    """Other winners of the first stage are combined in a study of their own; a larger budget adds to what is there."""

    class Interrupted(BaseException):
        pass

    def searched(budgets, store, last=-1):
        def stop(event):
            nonlocal last
            last -= event.kind == "trial"
            if last == 0:
                raise Interrupted

        update = {"sampler": sampler, "single_budget": budgets[0], "combination_budget": budgets[1], "parallel": 2}
        return search(LANDSCAPE, spaces, CONFIG.model_copy(update=update), store, seed=3, on_event=stop)

    fresh = {budgets: story(searched(budgets, None)) for budgets in BUDGETS}
    order = random.Random(0)
    for folder in ("a", "b"):
        for budgets in order.choices(BUDGETS, k=3):
            with contextlib.suppress(Interrupted):
                searched(budgets, tmp_path / folder, order.randrange(1, 20))
        for budgets in order.sample(BUDGETS, 4):
            assert story(searched(budgets, tmp_path / folder)) == fresh[budgets]


def test_a_store_holds_the_combinations_of_several_winners(tmp_path, spaces):
    for budgets in BUDGETS:
        update = {"single_budget": budgets[0], "combination_budget": budgets[1]}
        outcome = search(LANDSCAPE, spaces, CONFIG.model_copy(update=update), tmp_path, seed=3)
        assert {trial.study for trial in outcome.trials} == {*spaces, COMBINATION}
    names = {summary.study_name for summary in optuna.get_all_study_summaries(open_storage(tmp_path))}
    combinations = names - spaces.keys()
    assert len(combinations) > 1 and all(re.fullmatch("combination-[0-9a-f]{6}", name) for name in combinations)


def test_any_optuna_storage_will_do(tmp_path, spaces, whole):
    url = f"sqlite:///{tmp_path}/study.db"
    small = {name: spaces[name] for name in ("global", "logits")}
    config = CONFIG.model_copy(update={"population": 2, "single_budget": 3, "combination_budget": 2})
    assert story(search(LANDSCAPE, small, config, url, seed=3, population=9)) == story(
        search(LANDSCAPE, small, config, seed=3, population=9)
    )


def test_a_kind_that_finds_nothing_is_left_out_with_the_reason(spaces):
    def measure(policy):
        if any(term.label.startswith("fgbg") for term in policy.terms):
            return Result(State.FAILED, reason="no boxes")
        return LANDSCAPE.evaluate([policy])[0]

    outcome = search(TableEvaluator(measure), spaces, CONFIG, seed=3, population=9)
    assert set(outcome.per_knowledge) == {"global", "logits"}
    assert outcome.left_out == {"fgbg": "9 failed; mostly: no boxes"}


def test_a_search_in_which_nothing_was_completed_says_why(spaces):
    with pytest.raises(SearchError) as error:
        search(TableEvaluator(lambda policy: Result(State.FAILED, reason="out of memory")), spaces, CONFIG)
    assert len(
        error.value.faults
    ) == 3 and "global: no candidate was completed: 9 failed; mostly: out of memory" in str(error.value)


def test_one_kind_of_knowledge_has_no_combination_stage(spaces):
    outcome = search(LANDSCAPE, {"global": spaces["global"]}, CONFIG)
    assert {trial.study for trial in outcome.trials} == {"global"}


def test_calibrated_weights_reach_the_outcome():
    genes = {"distance": DISTANCES, "weight": (0.1, 1, 10)}
    spaces = {name: Space(name, genes, "gradient") for name in ("global", "logits")}

    def measure(policy):
        absolute = Policy([replace(term, weight=term.weight / 7, weighting="absolute") for term in policy.terms])
        return Result(State.COMPLETE, 30.0 + sum(term.weight for term in policy.terms), policy=absolute)

    outcome = search(TableEvaluator(measure), spaces, CONFIG)
    assert all(term.weighting == "gradient" for term in outcome.best.policy.terms)
    assert [term.weight for term in outcome.best.best_policy.terms] == [10 / 7, 10 / 7]
    seeds = [trial for trial in outcome.trials if trial.role == "seed"]
    assert all(trial.best_policy.terms[0].weighting == "absolute" for trial in seeds)


def test_given_policies_join_the_initial_population(spaces):
    given = Policy([Term("global", ["norm(C)"], "kl", 6), Term("logits", ["norm_batch"], "pearson", 1),
                    Term("localization", [], "l1", 1)])  # fmt: skip
    outcome = search(LANDSCAPE, spaces, CONFIG, warm_start=[given])
    first = {trial.study: trial.policy for trial in outcome.trials if trial.number == 0}
    assert first["global"] == Policy([Term("global", ["norm(C)"], "kl", 5)])  # the nearest weight that is searched
    assert first["logits"] == Policy([Term("logits", ["norm_batch"], "pearson", 1)])
    outside = [Policy([Term("global", ["minmax"], "l1", 1)]), Policy([Term("fgbg", [], "ssim", 1)])]
    with pytest.raises(ConfigError) as error:
        search(LANDSCAPE, spaces, CONFIG, warm_start=outside)
    assert len(error.value.faults) == 2


def test_every_term_of_a_given_policy_that_is_searched_joins(spaces):
    given = Policy([Term("global", ["norm(C)"], "kl", 5), Term("global", [], "kl", 5),
                    Term("fgbg(background=1)", [], "l1", 1)])  # fmt: skip
    outcome = search(LANDSCAPE, spaces, CONFIG, warm_start=[given])
    first = [trial.policy for trial in outcome.trials if trial.study == "global"][:2]
    assert first == [Policy([term]) for term in given.terms[:2]]


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_a_seed_must_be_a_whole_number(spaces, seed):
    with pytest.raises(ConfigError, match="seed: expected a whole number"):
        search(LANDSCAPE, spaces, seed=seed)


def test_an_evaluator_that_loses_results_is_a_bug(spaces):
    class Forgetful:
        def evaluate(self, policies, groups=()):
            return []

    with pytest.raises(RuntimeError, match="0 results for"):
        search(Forgetful(), spaces)


class Slow:
    """A landscape that takes a moment, so that a kill can come at any point."""

    def evaluate(self, policies, groups=()):
        time.sleep(0.003)
        return LANDSCAPE.evaluate(policies)


def fork(task):
    """Run a task in a child process that ends without cleaning up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            task()
        finally:
            os._exit(0)
    return child


@pytest.mark.parametrize("attempt", range(4))
def test_three_kills_at_random_moments_change_nothing(tmp_path, spaces, whole, attempt):
    moments = random.Random(attempt)
    for _ in range(3):
        child = fork(lambda: search(Slow(), spaces, CONFIG, tmp_path, seed=3, population=9))
        time.sleep(moments.uniform(0.01, 0.25))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert story(search(LANDSCAPE, spaces, CONFIG, tmp_path, seed=3, population=9)) == story(whole)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_power_loss_in_the_middle_of_any_write_changes_nothing(tmp_path, spaces, whole, share):
    """Die at the n-th write, after a share of its bytes has reached the disk."""

    def die_at(last):
        count = 0

        def write(self, logs):
            nonlocal count
            count += 1
            if count < last:
                return original(self, logs)
            text = b"".join(journal.json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
            with open(self.path, "ab") as file:
                file.write(text[: int(share * len(text))])
            os._exit(9)

        original = journal.JournalLines._write
        journal.JournalLines._write = write
        search(LANDSCAPE, spaces, CONFIG, tmp_path, seed=3, population=9)

    deaths = 0
    for last in [*range(1, 12), 17, 18, 19, 30, 31, 32, 33]:
        child = fork(lambda last=last: die_at(last))
        deaths += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert deaths > 10
    assert story(search(LANDSCAPE, spaces, CONFIG, tmp_path, seed=3, population=9)) == story(whole)


def test_another_process_with_other_hashes_gives_the_same_search(whole):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_divide_and_conquer as t\n"
        "outcome = t.search(t.LANDSCAPE, t.make_spaces(), t.CONFIG, seed=3, population=9)\n"
        "print(outcome.best.place, repr(outcome.best.ap), [r.key for r in outcome.trials])"
    )
    package = os.path.dirname(os.path.dirname(detkds.errors.__file__))
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": package}
    command = [sys.executable, "-c", program, os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=600)
    expected = f"{whole.best.place} {whole.best.ap!r} {[trial.key for trial in whole.trials]}"
    assert done.stdout.strip() == expected
