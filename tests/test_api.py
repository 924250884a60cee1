"""The commands from Python: overrides, typed results, and names that no sub-package takes away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import detkds
from detkds import api
from detkds.errors import ConfigError, PolicyError
from detkds.progress import Progress


@pytest.fixture
def small(tiny_run: dict[str, Any]) -> dict[str, Any]:
    """A comparison of the plain students and one policy on one seed."""
    return {**tiny_run, "final": {"seeds": [0], "policies": ["fitnets"]}}


def test_every_public_name_is_there_and_stays() -> None:
    for name in detkds.__all__:
        assert getattr(detkds, name) is not None
    for function in ("search", "compare", "distill", "evaluate", "export", "pair", "calibrate"):
        assert getattr(detkds, function) is getattr(api, function)


def test_overrides_reach_nested_keys_whatever_the_configuration_is(small: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(small))
    for config in (small, file, str(file), api.resolve(small, {})):
        resolved = api.resolve(config, {"name": "second", "train__lr": 0.25, "final__seeds": [3, 4]})
        assert (resolved.name, resolved.train.lr, resolved.final.seeds) == ("second", 0.25, (3, 4))
    with pytest.raises(ConfigError, match=r"train\.lrr: unknown key 'lrr'; did you mean 'lr'"):
        api.resolve(small, {"train__lrr": 1})


def test_a_comparison_has_a_leaderboard(small: dict[str, Any]) -> None:
    result = detkds.compare(small, progress=Progress())
    board = result.leaderboard()
    assert {record["name"] for record in board} == {"teacher", "plain", "plain, inherited", "fitnets"}
    aps = [record["ap"] for record in board]
    assert aps == sorted(aps, reverse=True)
    assert result.folder.is_dir() and result.verdict
    assert "<td>fitnets</td>" in result._repr_html_()
    one = detkds.distill(small, "fitnets", progress=Progress())
    by_name = {record["name"]: record for record in board}
    assert one.ap == by_name["fitnets"]["ap_by_seed"][0], "the training of the comparison is not repeated"
    again = detkds.evaluate(small, one.weights)
    assert 100 * again["ap"] == pytest.approx(one.ap, abs=1e-9)


def test_a_policy_is_calibrated_for_a_loop_of_ones_own(small: dict[str, Any]) -> None:
    from detkds.runs.plan import make_plan

    plan = make_plan(api.resolve(small, {}))
    student, teacher = plan.build_student(0, True), plan.teacher
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    batches = [next(iter(plan.setups["comparison"].batches(0)(0)))]
    policy = detkds.calibrate("fitnets-gradient", student, teacher, batches)
    assert [term.weighting for term in policy] == ["absolute"] and policy.terms[0].weight > 0
    assert all(bool((tensor == before[name]).all()) for name, tensor in student.state_dict().items())
    assert detkds.pair(teacher, student)["offered"]
    with pytest.raises(PolicyError, match="crossed_logits"):
        detkds.calibrate(detkds.load_policy("crosskd"), student, teacher, batches)
