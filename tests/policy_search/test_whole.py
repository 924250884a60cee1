"""Search over whole policies: the portfolio as it stands, then children of the leaders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from detkds import Policy, Term
from detkds.config import SearchConfig
from detkds.policy_search.divide_and_conquer import search
from detkds.policy_search.policy_surrogate import PolicySurrogate, correlation, likeness, preference
from detkds.policy_search.portfolio import at_strength, load_portfolio, scaled
from detkds.policy_search.result import HalvingGroup, Result, SearchError, State, Trial, rank
from detkds.policy_search.space import load_spaces
from detkds.policy_search.whole import (
    CHANGES,
    LEADERS,
    MOST_TERMS,
    POLICIES,
    PORTFOLIO,
    WAVE,
    PolicyEvolution,
    PolicySpace,
)

SPACES = load_spaces("default", "gradient")
MIMIC = Policy([Term("global", [], "l2", 10.0, "gradient")], name="mimic")
MASKED = Policy([Term("fgbg", [], "l2", 1.0, "gradient"), Term("logits", [], "kl", 0.3, "gradient")], name="masked")
BOXES = Policy([Term("localization", ["decode"], "giou", 3.0, "gradient")], name="boxes")
KNOWN = [Policy(name="plain"), MIMIC, MASKED, BOXES]
CONFIG = SearchConfig(candidates=20)


class Landscape:
    """AP rises with the terms of feature and response knowledge, and falls with their number and with odd weights."""

    def __init__(self) -> None:
        self.calls: list[list[Policy]] = []

    def evaluate(self, policies: Sequence[Policy], groups: Sequence[HalvingGroup] = ()) -> list[Result]:
        self.calls.append(list(policies))
        return [Result(State.COMPLETE, self.ap(policy)) for policy in policies]

    @staticmethod
    def ap(policy: Policy) -> float:
        kinds = {term.knowledge.name for term in policy}
        gains = {"global": 5.0, "fgbg": 3.0, "logits": 4.0, "localization": 2.0, "instance": 1.0}
        off = sum(abs(np.log10(term.weight / 3.0)) for term in policy)
        return 20.0 + sum(gains[kind] for kind in kinds) - off - 0.2 * len(policy)


def found(config: SearchConfig = CONFIG, store: object = None, seed: int = 0, landscape: Landscape | None = None):
    return search(landscape or Landscape(), SPACES, config, store, seed, warm_start=KNOWN)  # type: ignore[arg-type]


def trial(number: int, policy: Policy, ap: float | None, state: State | None = State.COMPLETE) -> Trial:
    return Trial(POLICIES, number, state, PolicySpace(SPACES).params(policy), policy, policy.key, ap=ap)


def test_the_portfolio_is_measured_as_it_stands_in_one_call() -> None:
    landscape = Landscape()
    outcome = found(landscape=landscape)
    assert landscape.calls[0] == KNOWN
    assert [len(call) for call in landscape.calls[1:]] == [WAVE, WAVE]
    assert [t.role for t in outcome.trials] == [PORTFOLIO] * 4 + ["child"] * 16
    assert [t.policy.name for t in outcome.trials[:4]] == ["plain", "mimic", "masked", "boxes"]


def test_children_are_new_whole_policies_of_a_bounded_number_of_terms() -> None:
    outcome = found()
    assert len({t.key for t in outcome.trials}) == 20
    children = [t for t in outcome.trials if t.role == "child"]
    assert all(0 < len(t.policy) <= MOST_TERMS and len(t.parents) <= 1 for t in children)
    assert any(len(t.policy) > 2 for t in children)


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_more_than_it_began_with(seed: int) -> None:
    best_known = max(Landscape.ap(policy) for policy in KNOWN)
    outcome = found(SearchConfig(candidates=28), seed=seed)
    assert outcome.best.ap is not None and outcome.best.ap > best_known + 2


def test_a_search_resumes_with_the_same_trials(tmp_path) -> None:
    whole = found()
    found(SearchConfig(candidates=9), tmp_path)
    resumed = found(store=tmp_path)
    assert [(t.key, t.ap, t.role, t.parents) for t in resumed.trials] == [
        (t.key, t.ap, t.role, t.parents) for t in whole.trials
    ]
    assert resumed.trials[1].policy.name == "mimic"


def test_another_portfolio_is_another_search(tmp_path) -> None:
    found(store=tmp_path)
    with pytest.raises(SearchError, match="another initial"):
        search(Landscape(), SPACES, CONFIG, tmp_path, 0, warm_start=KNOWN[:3])


def test_without_anything_known_terms_of_the_space_begin() -> None:
    outcome = search(Landscape(), SPACES, SearchConfig(candidates=8))
    assert len(outcome.trials) == 8 and all(len(t.policy) == 1 for t in outcome.trials)


def test_every_change_is_made_and_keeps_what_it_should() -> None:
    sampler = PolicyEvolution(PolicySpace(SPACES), 0, CONFIG)
    rng = np.random.default_rng(0)
    terms, others = list(MASKED), list(BOXES)

    def changed(change: str) -> list[Term]:
        return sampler._changed(change, list(terms), list(others), rng)

    assert sum(CHANGES.values()) == pytest.approx(1) and LEADERS > 1
    assert changed("join") == [*terms, *others]
    assert sampler._changed("join", list(terms), list(terms), rng) == terms
    assert len(changed("drop")) == 1 and changed("add")[:2] == terms and len(changed("add")) == 3
    weights = Counter(round(a.weight / b.weight, 2) for a, b in zip(changed("weight"), terms, strict=True))
    assert weights[1.0] == 1 and set(weights) <= {1.0, 3.0, 0.33}
    ratios = {round(a.weight / b.weight, 2) for a, b in zip(changed("strength"), terms, strict=True)}
    assert ratios in ({3.0}, {0.33})
    assert others[0] in changed("exchange")
    piece = changed("piece")
    assert [t.knowledge for t in piece] == [t.knowledge for t in terms] and piece != terms


def test_strength_is_the_norm_of_the_ratios() -> None:
    strong = at_strength(MASKED, 10.0)
    assert np.hypot(*(term.weight for term in strong)) == pytest.approx(10, rel=1e-2)
    assert strong.terms[0].weight / strong.terms[1].weight == pytest.approx(1 / 0.3, rel=1e-2)
    fixed = Policy([Term("global", [], "l2", 2.0)])
    assert at_strength(fixed, 10.0) == fixed and scaled(fixed.terms[0], 3.0) == fixed.terms[0]


def test_likeness_by_hand() -> None:
    term = Term("global", ["satt"], "l2", 1.0, "gradient")
    assert likeness(term, term) == 1
    assert likeness(term, Term("fgbg", ["satt"], "l2", 1.0, "gradient")) == 0
    assert likeness(term, Term("global", ["satt"], "l1", 1.0, "gradient")) == 0.5
    assert likeness(term, Term("global", [], "l1", 10.0, "gradient")) == pytest.approx(0.25 * np.exp(-0.5))
    assert likeness(term, Term("global", ["satt"], "l2", 1.0)) == 0.5


def test_correlation_by_hand() -> None:
    both = Policy([*MIMIC, *BOXES])
    expected = [[1, 0, 1 / np.sqrt(2), 0], [0, 1, 1 / np.sqrt(2), 0], [0, 0, 0, 1]]
    rows = correlation([MIMIC, BOXES, Policy()], [MIMIC, BOXES, both, Policy()])
    assert rows == pytest.approx(np.array(expected))
    kernel = correlation([*KNOWN, both], [*KNOWN, both])
    assert np.linalg.eigvalsh(kernel).min() > -1e-9


def test_the_guess_follows_what_was_measured() -> None:
    history = [trial(0, MIMIC, 30.0), trial(1, BOXES, 20.0), trial(2, MASKED, 10.0)]
    expected, spread = PolicySurrogate(history).guess([MIMIC, BOXES, MASKED, Policy([Term("instance", [], "l1")])])
    assert list(np.argsort(-expected[:3])) == [0, 1, 2]
    assert expected[3] == pytest.approx(20.0) and spread[3] > 3 * spread[0]
    gains = PolicySurrogate(history).expected_improvement([MIMIC, MASKED])
    assert gains[0] > gains[1] > 0


def test_running_candidates_lower_the_promise_of_their_like() -> None:
    near = Policy([Term("global", [], "l2", 20.0, "gradient")])
    history = [trial(0, MIMIC, 30.0), trial(1, BOXES, 20.0)]
    before = PolicySurrogate(history).guess([near])[1]
    after = PolicySurrogate([*history, trial(2, near, None, None)]).guess([near])[1]
    assert after[0] < before[0]


def test_refused_candidates_count_as_the_worst() -> None:
    history = [trial(0, MIMIC, 30.0), trial(1, BOXES, 20.0), trial(2, MASKED, None, State.FILTERED)]
    expected, _ = PolicySurrogate(history).guess([MASKED, BOXES])
    assert expected[0] == pytest.approx(expected[1], abs=0.5)
    assert PolicySurrogate([trial(0, MASKED, None, State.FILTERED)]).best == 0


def test_what_leads_the_portfolio_is_preferred() -> None:
    values = preference([MIMIC, BOXES, Policy([Term("instance", [], "ssim")])], [MIMIC, BOXES])
    assert values[0] == 1 and values[0] > values[1] > values[2] > 0


def test_the_shipped_portfolio_names_shipped_policies() -> None:
    names = [entry.name for entry in load_portfolio()]
    assert len(names) == len(set(names)) >= 8
    relative = Policy([Term("global", [], "l2", 2.0, "gradient")])
    entry = next(entry for entry in load_portfolio() if entry.strength is not None)
    assert entry.form(relative).terms[0].weight == pytest.approx(entry.strength)
    assert entry.form(relative).name == entry.name


def test_a_policy_is_its_own_choice() -> None:
    space = PolicySpace(SPACES)
    params = space.params(MASKED)
    assert space.policy(params) == MASKED and space.key(params) == MASKED.key and space.legal(params)
    assert json.loads(json.dumps(space.describe())).keys() == SPACES.keys() and not space.genes


def test_where_losing_ones_stop_early_all_count_by_their_first_rung() -> None:
    history = [
        replace(trial(0, MIMIC, 30.0), rungs=(10.0, 20.0)),
        replace(trial(1, BOXES, 5.0, State.PRUNED), rungs=(5.0,)),
        replace(trial(2, MASKED, 8.0, State.PRUNED), rungs=(4.0, 8.0)),
    ]
    guess = PolicySurrogate(history)
    assert guess.best == 10 and guess.guess([MIMIC])[0][0] == pytest.approx(10, abs=1)
    assert [t.number for t in rank(history, stopped=True)] == [0, 2, 1]
