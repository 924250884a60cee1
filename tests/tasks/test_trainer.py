"""Tasks that are really trained: screened, calibrated, side by side, stopped early, taken up again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from detkds.config import HalvingConfig
from detkds.detectors.weights import load_weights
from detkds.evaluation.coco_ap import Metrics
from detkds.policy import Policy, Term
from detkds.policy_search.result import HalvingGroup, State
from detkds.runs.plan import COMPARISON, SEARCH, Plan
from detkds.tasks import trainer as module
from detkds.tasks.executor import InlineExecutor
from detkds.tasks.task import Task, TaskResult
from detkds.tasks.trainer import Outcome, Trainer, next_population
from detkds.training.checkpoint import StateFiles
from detkds.training.loop import TrainingObserver
from detkds.training.setup import TrainingSetup
from detkds.training.student import StudentTrainer

POLICIES = [
    Policy([Term("global", ["norm(N)"], distance, weight)]) for distance in ("l1", "l2") for weight in (1.0, 2.0)
]
POLICIES.append(Policy([Term("global", ["scale(2)"], "l2", 1e9)]))
Make = Callable[..., Trainer]


@pytest.fixture
def plan(plan_of: Callable[..., Plan]) -> Plan:
    return plan_of(proxy={"epochs": 3, "draws": 4})


@pytest.fixture
def make(plan: Plan) -> Make:
    """``make(population=..., halving=...)``: a trainer of the plan's setups."""
    return lambda **options: Trainer(plan.setups, **{"calibration_batches": 1, **options})


def candidates(
    policies: Sequence[Policy], peers: Sequence[HalvingGroup] = (), *, screened: bool = True, **options: Any
) -> dict[str, Task]:
    """Tasks of the search, keyed by their place."""
    own = peers or [None] * len(policies)
    return {
        str(place): Task(SEARCH, policy, 0, screened=screened, group=one, **options)
        for place, (policy, one) in enumerate(zip(policies, own, strict=True))
    }


def run(trainer: Trainer, tasks: dict[str, Task]) -> list[TaskResult]:
    """The results in the order of the tasks; each task has exactly one."""
    outcomes = list(trainer.run(tasks))
    assert sorted(outcome.key for outcome in outcomes) == sorted(tasks)
    results = {outcome.key: outcome.result for outcome in outcomes}
    return [results[key] for key in tasks]


def timeless(results: Iterable[TaskResult]) -> list[TaskResult]:
    return [replace(result, seconds=0.0) for result in results]


def by_weights(setup: TrainingSetup, detector: Any, data: Any = None) -> Metrics:
    """Metrics that any change of the weights changes; the tiny students here have no AP."""
    ap = float(sum(parameter.detach().double().abs().sum() for parameter in detector.parameters())) % 1
    return Metrics(ap, ap / 2, *[0.0] * 4, {})


# -------------------------------------------------------------------------------------------------------- halving


def test_halving_stops_some_and_leaves_the_others_as_they_are(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Group a is judged against two high APs and stops whole at rung 1; group b has no company and goes on."""
    monkeypatch.setattr(TrainingSetup, "measure", by_weights)
    known = {"k0": (101.0, 50.0), "k1": (102.0, 60.0)}
    peers = [HalvingGroup("a", known)] * 2 + [HalvingGroup("b")] * 2 + [HalvingGroup("a", known)]
    plain = run(make(), candidates(POLICIES, peers))
    halved = run(make(halving=HalvingConfig(rungs=(1, 2)), population=3), candidates(POLICIES, peers))
    assert [result.state for result in halved] == [State.PRUNED] * 2 + [State.COMPLETE] * 2 + [State.FILTERED]
    for pruned in halved[:2]:
        assert len(pruned.rungs) == 1 and pruned.epochs == 1 and pruned.trained and not pruned.metrics
        assert pruned.reason.startswith("rung 1 of 2 (epoch 1): AP ") and " of 4, the best 2 go on" in pruned.reason
    assert len({result.ap for result in plain[:4]}) == 4
    for before, after in zip(plain[2:4], halved[2:4], strict=True):
        assert (after.metrics, after.epochs, len(after.rungs), before.rungs) == (before.metrics, 3, 2, ())
    assert halved[4].rungs == () and halved[4].epochs == 0 and not halved[4].trained


def test_aps_of_a_group_are_compared_in_points(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """APs in the order of measuring: at the rung, then at the end of the two that are left."""
    aps = iter([0.1, 0.4, 0.3, 0.2, 0.5, 0.6])
    monkeypatch.setattr(TrainingSetup, "measure", lambda *_: Metrics(next(aps), *[0.0] * 5, {}))
    results = run(make(halving=HalvingConfig(rungs=(1,), eta=2)), candidates(POLICIES[:4], [HalvingGroup()] * 4))
    states = [State.PRUNED, State.COMPLETE, State.COMPLETE, State.PRUNED]
    assert [result.state for result in results] == states
    assert [result.as_measurement().ap for result in results] == pytest.approx([10, 50, 60, 20])
    assert results[0].reason == "rung 1 of 1 (epoch 1): AP 10.0, place 4 of 4, the best 2 go on"


@pytest.mark.parametrize(
    ("groups", "size", "expected"),
    [
        ("aaabbbcc", 4, ["aaa", "bbb", "cc"]),
        ("aaabbbcc", 5, ["aaa", "bbbcc"]),
        ("aaabbbcc", 6, ["aaabbb", "cc"]),
        ("aaaaab", 2, ["aa", "aa", "ab"]),  # too large for any population
        ("......", 4, ["....", ".."]),  # no group
    ],
)
def test_a_group_trains_in_one_population(groups: str, size: int, expected: list[str]) -> None:
    waiting = [Task(SEARCH, Policy(), 0, group=None if g == "." else HalvingGroup(g), label=g) for g in groups]
    chunks = []
    while waiting:
        count = next_population(waiting, size)
        chunks.append("".join(task.label for task in waiting[:count]))
        waiting = waiting[count:]
    assert chunks == expected


# ------------------------------------------------------------------------------------------------------- failures


def test_what_fails_in_training_costs_itself_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second step one raises, one has weights that are no numbers, and one never fits into memory."""
    expected = run(make(), candidates([POLICIES[0], POLICIES[3]]))
    real = StudentTrainer.train_step

    def faulty(student: StudentTrainer, *batch: Any) -> Any:
        if student.steps == 1 and student.key == "1":
            raise ArithmeticError("too late")
        if student.steps == 1 and student.key == "2":
            next(student.student.parameters()).data.fill_(math.nan)
        if student.steps == 1 and student.key == "4":
            raise torch.OutOfMemoryError("tried to allocate 80 GiB")
        return real(student, *batch)

    monkeypatch.setattr(StudentTrainer, "train_step", faulty)
    trainer = make()
    policies = [*POLICIES[:4], Policy([Term("global", ["norm(N)"], "l1", 3.0)])]
    results = run(trainer, candidates(policies))
    assert [result.state is State.COMPLETE for result in results] == [True, False, False, True, False]
    assert timeless([results[0], results[3]]) == timeless(expected)
    reasons = ["ArithmeticError: too late", "DivergenceError", "out of memory when trained alone: tried to allocate"]
    for result, reason in zip((results[1], results[2], results[4]), reasons, strict=True):
        assert result.state is State.FAILED and result.ap is None and result.reason.startswith(reason)
    assert all(result.trained for result in results) and trainer.population == 8


def test_a_population_that_does_not_fit_is_halved(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    real, sizes = module.train_population, []

    def small_memory(setup: TrainingSetup, specs: Sequence[Any], **options: Any) -> Any:
        sizes.append(len(specs))
        if len(specs) > 1 or specs[0].key == "1":
            raise torch.OutOfMemoryError("full")
        return real(setup, specs, **options)

    monkeypatch.setattr(module, "train_population", small_memory)
    outcomes = list(make(population=4).run(candidates([Policy(), POLICIES[0], POLICIES[1]], screened=False)))
    assert sizes == [3, 1, 1, 1] and [outcome.key for outcome in outcomes] == ["0", "1", "2"]
    assert outcomes[1].result.reason == "out of memory when trained alone: full"
    assert [outcome.transient for outcome in outcomes] == [False, True, False], "another machine may have more memory"


def test_without_screening_what_it_refuses_is_trained(make: Make) -> None:
    """One explodes, one is fine though its loss is over the limit; a weight no number can hold has failed."""
    fine, extreme = Term("global", ["norm(HW)"], "l1", 300.0), Term("global", ["scale(2)"], "l2", 1e35)
    faint = Term("global", ["norm(HW, mode=l2)"], "kl", 1.7e308, "gradient")
    policies = [Policy([term]) for term in (fine, extreme, faint)]
    filtered = run(make(), candidates(policies))
    assert [result.state for result in filtered] == [State.FILTERED] * 3
    assert not any(result.trained for result in filtered)
    scored, exploded, failed = run(make(), candidates(policies, screened=False))
    assert scored.state is State.COMPLETE and scored.epochs == 3 and scored.trained
    assert exploded.state is State.FAILED and exploded.trained and "not finite" in exploded.reason
    assert failed.state is State.FAILED and not failed.trained and "finite" in failed.reason


def test_without_screening_what_cannot_be_measured_has_failed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *_: Any) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr("detkds.distances.elementwise.L1.__call__", broken)
    relative = Policy([Term("global", [], "l1", 1.0, "gradient")])
    [result] = run(make(), {"a": Task(SEARCH, relative, 0)})
    assert result.state is State.FAILED and not result.trained and "no such thing" in result.reason


# ---------------------------------------------------------------------------------------------------- calibration


def test_ratios_are_calibrated_once_for_all_tasks_of_a_call(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], module.probe_terms

    def counted(terms: Any, *more: Any, **options: Any) -> Any:
        calls.append(len(list(terms := list(terms))))
        return real(terms, *more, **options)

    monkeypatch.setattr(module, "probe_terms", counted)
    terms = [Term("global", [], "l2", weight, "gradient") for weight in (0.5, 1.0)] + [Term("logits", [], "kl", 1.0)]
    trainer = make()
    first, second, absolute = run(trainer, candidates([Policy([term]) for term in terms]))
    assert calls == [3] and absolute.policy is None
    weights = [Policy.from_dict(result.policy).terms[0].weight for result in (first, second) if result.policy]
    assert weights[1] == pytest.approx(2 * weights[0]) and weights[0] > 0
    run(trainer, candidates([Policy(terms[:1])], label="again"))
    assert calls == [3]
    run(make(), {"a": Task(SEARCH, POLICIES[0], 0)})
    assert calls == [3], "nothing is measured where nothing asks for it"


def test_the_calibration_has_a_seed_of_its_own(make: Make) -> None:
    relative = Policy([Term("global", [], "l2", 1.0, "gradient")])
    results = run(make(), {str(seed): Task(SEARCH, relative, seed, calibration_seed=7) for seed in (0, 1)})
    assert results[0].policy == results[1].policy and results[0].curve != results[1].curve


# -------------------------------------------------------------------------------------------------------- outcomes


def test_outcomes_have_weights_where_they_are_kept_and_a_curve(make: Make, plan: Plan, tmp_path: Path) -> None:
    fractions: list[tuple[str, float]] = []
    tasks = {"kept": Task(SEARCH, POLICIES[0], 0, keep_weights=True), "not": Task(SEARCH, POLICIES[1], 0)}
    with InlineExecutor(make()) as executor:
        kept, other = executor.run(tasks, lambda key, done: fractions.append((key, done)))
    assert fractions == [(key, done / 3) for done in (1, 2, 3) for key in tasks]
    assert other.weights is None and kept.weights is not None
    (tmp_path / "student.safetensors").write_bytes(kept.weights)
    load_weights(plan.build_student(1, False), tmp_path / "student.safetensors")
    assert len(kept.result.curve) == 3 and kept.result.curve[0]["global/l1"] > 0
    assert kept.result.metrics["kind"] == "box" and kept.result.weights == "", "the store gives them their digest"


def test_tasks_of_other_seeds_and_setups_are_trained_apart_as_they_would_be_alone(make: Make) -> None:
    tasks = {f"{setup}{seed}": Task(setup, POLICIES[0], seed) for setup in (SEARCH, COMPARISON) for seed in (0, 1)}
    together = run(make(), tasks)
    alone = [run(make(), {key: task})[0] for key, task in tasks.items()]
    assert timeless(together) == timeless(alone)
    assert len({str(result.curve) for result in together}) == 4


# --------------------------------------------------------------------------------------------------------- resume


class KilledError(BaseException):
    """What a process is killed by."""


class KillAfter(TrainingObserver):
    """Kills at the end of a pass."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._epoch = epoch

    def epoch(self, done: int, students: Sequence[StudentTrainer]) -> None:
        if done == self._epoch:
            raise KilledError


def test_a_killed_training_is_taken_up_in_other_company_with_the_same_result(make: Make, tmp_path: Path) -> None:
    tasks = {str(place): Task(SEARCH, POLICIES[place], 0, keep_weights=True) for place in range(3)}
    expected = {outcome.key: outcome for outcome in make().run(tasks)}
    states = StateFiles(tmp_path, every=0)
    for key, epoch in (("0", 2), ("1", 3)):
        with pytest.raises(KilledError):
            list(make(states=states, observer=KillAfter(epoch)).run({key: tasks[key]}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.1.state", "1.2.state"]
    fractions: list[tuple[str, float]] = []
    outcomes: list[Outcome] = []
    for outcome in make(states=states).run(tasks, lambda key, done: fractions.append((key, done))):
        assert list(tmp_path.glob(f"{outcome.key}.*")), "kept until the result is in safe hands"
        outcomes.append(outcome)
    assert not list(tmp_path.iterdir())
    assert sorted(fractions) == [("0", 2 / 3), ("0", 1), ("1", 1), ("2", 1 / 3), ("2", 2 / 3), ("2", 1)]
    for outcome in outcomes:
        same, whole = (load(each.weights) for each in (outcome, expected[outcome.key]) if each.weights)
        assert same.keys() == whole.keys() and all(same[name].equal(whole[name]) for name in whole)
        assert timeless([outcome.result]) == timeless([expected[outcome.key].result])
