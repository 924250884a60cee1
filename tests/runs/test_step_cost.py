"""What a training step costs: bytes counted by hand, times taken in turn, nothing measured twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from detkds.config_file import parse_config
from detkds.policy import Policy, Term
from detkds.runs import step_cost
from detkds.runs.plan import COMPARISON, make_plan
from detkds.runs.step_cost import bytes_held, step_costs
from detkds.training.setup import TrainingSetup

L2 = Policy([Term("global", (), "l2", 1.0, levels=("p3",))])
GRADIENT = Policy([Term("global", (), "l2", 3.0, weighting="gradient", levels=("p3",))])
PKD = Policy([Term("global", ("norm_batch",), "l2", 1.0, levels=("p3",))])
CWD = Policy([Term("global", ("reshape(C)",), "kl", 1.0)])


@pytest.fixture
def setup(tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> TrainingSetup:
    monkeypatch.setattr(step_cost, "WARM_UP", 1)
    monkeypatch.setattr(step_cost, "TIMED", 3)
    return make_plan(parse_config(tiny_run)).setups[COMPARISON]


def test_every_storage_counts_once_and_what_is_known_does_not() -> None:
    x, w = torch.ones(10, requires_grad=True), torch.ones(10, requires_grad=True)
    with bytes_held([w]) as held:
        y = x * w  # keeps x, and w, which is known
        z = (y * y.view(10)).exp()  # keeps y, once, and its own result
    assert sum(held.values()) == 3 * 10 * 4
    z.sum().backward()
    assert x.grad is not None


def test_the_losses_hold_what_they_make_and_no_more(setup: TrainingSetup, tmp_path: Path) -> None:
    """l2 keeps both maps, which are there anyway; normalised, each is new: 4 images, 16 channels, 8 x 8 cells."""
    plain, l2, pkd = step_costs(setup, [Policy(), L2, PKD], 0, tmp_path / "cost.jsonl")
    assert plain.student_mb == l2.student_mb == pkd.student_mb and plain.student_mb is not None
    assert plain.losses_mb == l2.losses_mb == 0
    assert pkd.losses_mb == pytest.approx(2 * 4 * 16 * 8 * 8 * 4 / 1e6, abs=1e-3)
    assert plain.ratio == 1.0 and plain.rounds == l2.rounds == 3
    assert l2.ratio is not None and l2.ratio > 1  # it asks a teacher


def test_a_slow_policy_is_seen_to_be_slow(
    setup: TrainingSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every reading of the clock is one second later; a step of l2 reads it five times more."""
    clock = iter(range(10**6))
    monkeypatch.setattr(step_cost.time, "perf_counter", lambda: float(next(clock)))
    real, order = step_cost.StudentTrainer.train_step, []

    def slow(student: Any, *arguments: Any) -> Any:
        order.append(student.key)
        for _ in range(5 * student.distils):
            step_cost.time.perf_counter()
        return real(student, *arguments)

    monkeypatch.setattr(step_cost.StudentTrainer, "train_step", slow)
    plain, l2 = step_costs(setup, [Policy(), L2], 0, tmp_path / "cost.jsonl")
    assert (plain.seconds, l2.seconds, l2.ratio) == (1.0, 6.0, 6.0)
    assert order == [Policy().key, L2.key] * 4


def test_nothing_is_measured_twice(setup: TrainingSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, measured, real = tmp_path / "cost.jsonl", [], step_cost.measure_costs

    def counted(setup: Any, policies: Any, seed: int) -> Any:
        measured.append([policy.key for policy in policies])
        return real(setup, policies, seed)

    monkeypatch.setattr(step_cost, "measure_costs", counted)
    first = step_costs(setup, [Policy(), L2, GRADIENT], 0, path)
    assert step_costs(setup, [Policy(), L2], 0, path) == first[:2]
    more = step_costs(setup, [Policy(), L2, CWD], 0, path)
    assert more[:2] == first[:2] and more[2].losses_mb
    assert [len(keys) for keys in measured] == [3, 1] and measured[1] == [CWD.key]


def test_a_policy_that_fails_costs_nothing_known(setup: TrainingSetup, tmp_path: Path) -> None:
    bad = Policy([Term("global", (), "l2", 1e38)])
    plain, failed = step_costs(setup, [Policy(), bad], 0, tmp_path / "cost.jsonl")
    assert plain.seconds and failed.seconds is None and failed.failure and "DivergenceError" in failed.failure
    assert len((tmp_path / "cost.jsonl").read_text().splitlines()) == 1
