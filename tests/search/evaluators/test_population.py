"""Candidates that are really trained: what halving stops, and that the others do not notice."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from detkds.config import HalvingConfig
from detkds.config_file import parse_config
from detkds.errors import ConfigError
from detkds.evaluation.coco_ap import Metrics
from detkds.policy import Policy, Term
from detkds.runs.plan import make_plan
from detkds.search.evaluators.population import PopulationEvaluator
from detkds.search.result import HalvingGroup, State
from detkds.training import population
from detkds.training.member import Member

POLICIES = [
    Policy([Term("global", ["norm(N)"], distance, weight)]) for distance in ("l1", "l2") for weight in (1.0, 2.0)
]
POLICIES.append(Policy([Term("global", ["scale(2)"], "l2", 1e9)]))


@pytest.fixture
def setting(tiny_run):
    config = parse_config({**tiny_run, "proxy": {**tiny_run["proxy"], "epochs": 3, "draws": 4}})
    plan = make_plan(config)
    return plan.setting(plan.proxy_data, plan.validation_data, plan.proxy_config)


def by_weights(detector, setting):
    """Metrics that any change of the weights changes; the tiny students here have no AP."""
    ap = float(sum(parameter.detach().double().abs().sum() for parameter in detector.parameters())) % 1
    return Metrics(ap, ap / 2, *[0.0] * 4, {})


def test_halving_stops_some_and_leaves_the_others_as_they_are(setting, monkeypatch):
    """Group a is judged against two high APs and stops whole at rung 1; group b has no company and goes on."""
    monkeypatch.setattr(population, "measure", by_weights)
    known = {"k0": (101.0, 50.0), "k1": (102.0, 60.0)}
    peers = [HalvingGroup("a", known)] * 2 + [HalvingGroup("b")] * 2 + [HalvingGroup("a", known)]
    plain = PopulationEvaluator(setting, calibration_batches=1).evaluate(POLICIES, peers)
    evaluator = PopulationEvaluator(setting, calibration_batches=1, halving=HalvingConfig(rungs=(1, 2)), population=3)
    found = evaluator.evaluate(POLICIES, peers)
    states = [State.PRUNED] * 2 + [State.COMPLETE] * 2 + [State.FILTERED]
    assert [result.state for result in found] == states
    for pruned in found[:2]:
        assert pruned.ap == pruned.rungs[-1] and len(pruned.rungs) == 1 and pruned.epochs == 1 and pruned.counts
        assert pruned.reason.startswith("rung 1 of 2 (epoch 1): AP ") and " of 4, the best 2 go on" in pruned.reason
    assert len({result.ap for result in plain[:4]}) == 4
    for before, after in zip(plain[2:4], found[2:4], strict=True):
        assert (after.ap, after.metrics, after.epochs) == (before.ap, before.metrics, 3)
        assert len(after.rungs) == 2 and before.rungs == ()
    assert found[4].rungs == () and found[4].epochs == 0


def test_without_peers_all_are_one_group(setting, monkeypatch):
    """APs in the order of measuring: at the rung, then at the end of the two that are left."""
    aps = iter([0.1, 0.4, 0.3, 0.2, 0.5, 0.6])
    monkeypatch.setattr(population, "measure", lambda *_: Metrics(next(aps), *[0.0] * 5, {}))
    evaluator = PopulationEvaluator(setting, calibration_batches=1, halving=HalvingConfig(rungs=(1,), eta=2))
    found = evaluator.evaluate(POLICIES[:4])
    assert [result.state is State.COMPLETE for result in found] == [False, True, True, False]
    assert [result.ap for result in found] == pytest.approx([10, 50, 60, 20])
    assert found[0].reason == "rung 1 of 1 (epoch 1): AP 10.0, place 4 of 4, the best 2 go on"


def test_what_fails_in_training_costs_itself_alone(setting, monkeypatch):
    """In the second step one raises, one has weights that are no numbers, and one never fits into memory."""
    expected = PopulationEvaluator(setting, calibration_batches=1).evaluate([POLICIES[0], POLICIES[3]])
    real = Member.train_step

    def faulty(member, batch, answer):
        if member.steps == 1 and member.name == "1":
            raise ArithmeticError("too late")
        if member.steps == 1 and member.name == "2":
            next(member.student.parameters()).data.fill_(math.nan)
        if member.steps == 1 and member.name == "4":
            raise torch.OutOfMemoryError("tried to allocate 80 GiB")
        return real(member, batch, answer)

    monkeypatch.setattr(Member, "train_step", faulty)
    policies = [*POLICIES[:4], Policy([Term("global", ["norm(N)"], "l1", 3.0)])]
    evaluator = PopulationEvaluator(setting, calibration_batches=1)
    found = evaluator.evaluate(policies)
    assert [result.state is State.COMPLETE for result in found] == [True, False, False, True, False]
    assert [replace(found[i], seconds=0.0) for i in (0, 3)] == [replace(one, seconds=0.0) for one in expected]
    reasons = ["ArithmeticError: too late", "DivergenceError", "out of memory when trained alone: tried to allocate"]
    for result, reason in zip((found[1], found[2], found[4]), reasons, strict=True):
        assert result.state is State.FAILED and result.ap is None and result.reason.startswith(reason)
    assert sum(result.counts for result in found) == 5 and evaluator.population == 8


def test_without_the_filter_what_it_refuses_is_trained(setting):
    """One explodes, one is fine though its loss is over the limit; a weight no number can hold has failed."""
    fine, extreme = Term("global", ["norm(HW)"], "l1", 300.0), Term("global", ["scale(2)"], "l2", 1e35)
    faint = Term("global", ["norm(HW, mode=l2)"], "kl", 1.7e308, "gradient")
    policies = [Policy([term]) for term in (fine, extreme, faint)]
    filtered = PopulationEvaluator(setting, calibration_batches=1).evaluate(policies)
    assert [result.state for result in filtered] == [State.FILTERED] * 3
    assert not any(result.counts for result in filtered)
    scored, exploded, failed = PopulationEvaluator(setting, calibration_batches=1, filter=False).evaluate(policies)
    assert scored.state is State.COMPLETE and scored.epochs == 3 and scored.counts
    assert exploded.state is State.FAILED and exploded.counts and "not finite" in exploded.reason
    assert failed.state is State.FAILED and not failed.counts and "finite" in failed.reason


def test_without_the_filter_what_cannot_be_measured_has_failed(setting, monkeypatch):
    def broken(self, *_):
        raise ValueError("no such thing")

    monkeypatch.setattr("detkds.distances.elementwise.L1.__call__", broken)
    evaluator = PopulationEvaluator(setting, calibration_batches=1, filter=False)
    assert "no such thing" in evaluator.evaluate(POLICIES[:1])[0].reason


def test_rungs_must_come_before_the_end(setting):
    with pytest.raises(ConfigError, match="expected epochs below the last one, 3"):
        PopulationEvaluator(setting, halving=HalvingConfig(rungs=(1, 3)))
