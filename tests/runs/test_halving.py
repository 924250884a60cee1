"""A search on real trainings in which losing candidates stop early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detkds.config_file import parse_config
from detkds.evaluation.coco_ap import Metrics
from detkds.runs.confirmation import Confirmed
from detkds.runs.pipeline import find_policy
from detkds.runs.plan import make_plan
from detkds.runs.summary import summarise
from detkds.search.result import State
from detkds.training import population


class Interrupted(BaseException):
    """What a run is ended by."""


class Impatient:
    """A listener that ends the run in the middle of telling a round."""

    def __init__(self, results: int) -> None:
        self.left = results

    def stage(self, title: str, total: int) -> None:
        assert (title, total) == ("search", 9)

    def note(self, text: str) -> None:
        assert text

    def advance(self, units: float, note: str = "") -> None:
        self.left -= bool(note)
        if not self.left:
            raise Interrupted


def by_weights(detector: Any, setting: Any) -> Metrics:
    """Metrics that any change of the weights changes; the tiny students here have no AP."""
    ap = float(sum(parameter.detach().double().abs().sum() for parameter in detector.parameters())) % 1
    return Metrics(ap, ap / 2, *[0.0] * 4, {})


@pytest.fixture
def plan(tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(population, "measure", by_weights)
    proxy = {"validation": 0.5, "draws": 4, "epochs": 3, "population": 4, "calibration_batches": 1}
    tiny_run["proxy"] = {**proxy, "halving": {"rungs": [1, 2], "eta": 2}}
    search = {"knowledge": ["global", "logits"], "single_budget": 3, "combination_budget": 3, "population": 2}
    tiny_run["search"] = {**tiny_run["search"], **search, "parallel": 3}
    return make_plan(parse_config(tiny_run))


def story(outcome: Any) -> list[dict[str, Any]]:
    return [{**record.to_dict(), "seconds": 0} for record in outcome.trials]


def test_a_search_with_halving_resumes_and_counts_what_it_saved(plan: Any, heard: Any, tmp_path: Path) -> None:
    outcome = find_policy(plan, tmp_path / "whole", heard)
    assert heard.done == pytest.approx([9]) and outcome.trained == 9
    pruned = [record for record in outcome.trials if record.state is State.PRUNED and record.counts]
    assert 0 < len(pruned) < 9 and {record.epochs for record in pruned} <= {1, 2}
    assert any("pruned: rung" in note for note in heard.notes)
    summary = summarise(plan, {"ap": 0.5}, [], outcome.trials, [Confirmed(outcome.best, {})], {})
    saved = sum(3 - record.epochs for record in pruned)
    assert summary["search"]["epochs"] == {"trained": 27 - saved, "saved": saved}

    with pytest.raises(Interrupted):
        find_policy(plan, tmp_path / "broken", Impatient(3))
    assert story(find_policy(plan, tmp_path / "broken", heard)) == story(outcome)
