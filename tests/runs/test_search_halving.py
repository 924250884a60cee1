"""A search on real trainings in which losing candidates stop early."""

from __future__ import annotations

from typing import Any

import pytest

from detkds.config_file import parse_config
from detkds.evaluation.coco_ap import Metrics
from detkds.policy_search.divide_and_conquer import SearchOutcome
from detkds.policy_search.result import State
from detkds.progress import Event, Progress
from detkds.runs.confirmation import Confirmed
from detkds.runs.plan import Plan, make_plan
from detkds.runs.search import find_policy
from detkds.runs.session import open_session
from detkds.runs.summary import summarize
from detkds.training.setup import TrainingSetup


class Interrupted(BaseException):
    """What a run is ended by."""


class Impatient(Progress):
    """Ends the run in the middle of telling a round."""

    def __init__(self, results: int) -> None:
        super().__init__(self._hear)
        self.left = results

    def _hear(self, event: Event) -> None:
        self.left -= event.kind == "finished"
        if not self.left:
            raise Interrupted


def by_weights(setup: Any, detector: Any, data: Any = None) -> Metrics:
    """Metrics that any change of the weights changes; the tiny students here have no AP."""
    ap = float(sum(parameter.detach().double().abs().sum() for parameter in detector.parameters())) % 1
    return Metrics(ap, ap / 2, *[0.0] * 4, {})


@pytest.fixture
def run(tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """``run(name, progress)``: a search in a folder of its own; its plan and its outcome."""
    monkeypatch.setattr(TrainingSetup, "measure", by_weights)
    proxy = {"validation": 0.5, "draws": 4, "epochs": 3, "population": 4, "calibration_batches": 1}
    tiny_run["proxy"] = {**proxy, "halving": {"rungs": [1, 2], "eta": 2}}
    search = {"knowledge": ["global", "logits"], "single_budget": 3, "combination_budget": 3, "population": 2}
    tiny_run["search"] = {**tiny_run["search"], **search, "parallel": 3}

    def search(name: str, progress: Progress) -> tuple[Plan, SearchOutcome]:
        plan = make_plan(parse_config({**tiny_run, "name": name}))
        plan.teacher.eval().requires_grad_(False)
        with open_session(plan, progress) as session, session.scheduler() as scheduler:
            return plan, find_policy(session, scheduler)

    return search


def story(outcome: Any) -> list[dict[str, Any]]:
    return [{**record.to_dict(), "seconds": 0} for record in outcome.trials]


def test_a_search_with_halving_resumes_and_counts_what_it_saved(
    run: Any, heard: Any, trainings: list[tuple[str, int]]
) -> None:
    plan, outcome = run("whole", heard)
    assert heard.stages == [("search", 9)] and heard.done == pytest.approx([9]) and outcome.trained == 9
    pruned = [record for record in outcome.trials if record.state is State.PRUNED and record.counts]
    assert 0 < len(pruned) < 9 and {record.epochs for record in pruned} <= {1, 2}
    assert any(event.text.startswith("pruned: rung") for event in heard.events if event.kind == "finished")
    summary = summarize(plan, {"ap": 0.5}, [], outcome.trials, [Confirmed(outcome.best, {})], {})
    saved = sum(3 - record.epochs for record in pruned)
    assert summary["search"]["epochs"] == {"trained": 27 - saved, "saved": saved}

    with pytest.raises(Interrupted):
        run("broken", Impatient(3))
    assert story(run("broken", heard)[1]) == story(outcome)

    trainings.clear()
    again = type(heard)()
    assert story(run("whole", again)[1]) == story(outcome) and not trainings
    assert again.done == [9], "what was measured before is counted"
    assert again.events[-1].best == max(record.ap for record in outcome.trials if record.state is State.COMPLETE)
