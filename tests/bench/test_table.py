"""The measured table: looked up by loss, and its statistics by hand."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkds.bench.describe import main
from detkds.bench.table import MeasuredTable
from detkds.config import HalvingConfig, SearchConfig
from detkds.errors import ConfigError, DataError
from detkds.policy import Policy, Term
from detkds.policy_search.divide_and_conquer import make_sampler
from detkds.policy_search.result import State
from detkds.policy_search.space import points
from detkds.policy_search.study import SearchStudy
from detkds.registry import SAMPLERS


def one(attention: str, distance: str, scale: str = "none") -> dict[str, Any]:
    return {"attention": attention, "scale": scale, "distance": distance, "weight": 3.0}


def written(lines: list[dict[str, Any]], path: Path) -> Path:
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    return path


@pytest.fixture
def table(measured: list[dict[str, Any]], tmp_path: Path) -> MeasuredTable:
    return MeasuredTable.load(written(measured, tmp_path / "table.jsonl.gz"))


def test_every_spelling_of_a_measured_loss_is_found(table: MeasuredTable) -> None:
    """local(2) before a distance of single values changes nothing, nor does scale(1)."""
    space, evaluator = table.space("global"), table.evaluator("global")
    policies = [space.policy(one("none", "l2", scale)) for scale in ("none", "local(2)")]
    policies.append(Policy([Term("global", ["scale(1)"], "l2", 3, "gradient")]))
    assert [result.ap for result in evaluator.evaluate(policies)] == [24.0, 24.0, 24.0]
    assert {table.ap(policy) for policy in policies} == {24.0}
    assert len(list(points(space))) == 8


def test_a_search_sees_the_first_seed_and_what_was_refused(table: MeasuredTable) -> None:
    space = table.space("global")
    found, refused, unknown = table.evaluator("global").evaluate(
        [space.policy(one("none", "l1")), space.policy(one("catt", "l2")), Policy([Term("logits", [], "l1")])]
    )
    assert (found.state, found.ap, found.metrics["AP50"], found.epochs) == (State.COMPLETE, 20.0, 40.0, 3)
    assert (refused.state, refused.reason, refused.counts) == (State.FILTERED, "over the limit", False)
    assert unknown.state is State.FILTERED


def test_losing_candidates_stop_where_the_rule_says(table: MeasuredTable) -> None:
    """AP 10, 12 and 11 after one epoch, of which the best two of three go on."""
    space, evaluator = table.space("global"), table.evaluator("global", HalvingConfig(rungs=(1,), eta=2))
    policies = [space.policy(one(*pair)) for pair in (("none", "l1"), ("none", "l2"), ("catt", "l1"))]
    results = evaluator.evaluate(policies)
    assert [(r.state, r.ap, r.epochs) for r in results] == [
        (State.PRUNED, 10.0, 1.0),
        (State.COMPLETE, 24.0, 3.0),
        (State.COMPLETE, 30.0, 3.0),
    ]
    with pytest.raises(ConfigError, match=r"rungs: expected epochs out of \[1\], got \[2\]"):
        table.evaluator("global", HalvingConfig(rungs=(2,)))


def test_what_was_not_measured_is_not_legal(measured: list[dict[str, Any]], tmp_path: Path) -> None:
    whole = MeasuredTable.load(written(measured, tmp_path / "whole.jsonl"))
    part = MeasuredTable.load(written(measured[:3], tmp_path / "part.jsonl"))
    space = part.space("global")
    assert space.legal(one("none", "l2", "local(2)")) and not space.legal(one("catt", "l1"))
    assert len(list(points(space))) == 4
    assert space.describe() != whole.space("global").describe()


def test_ap_is_what_the_search_is_told(table: MeasuredTable) -> None:
    space = table.space("global")
    aps = [table.ap(space.policy(one(*pair))) for pair in (("none", "l1"), ("none", "l2"), ("catt", "l1"))]
    assert aps == [20.0, 24.0, 30.0]
    assert table.best["global"] == space.policy(one("catt", "l1"))
    assert table.median["global"] == space.policy(one("none", "l2"))
    assert [table.regret(space.policy(one(*pair))) for pair in (("none", "l1"), ("catt", "l1"))] == [10.0, 0.0]


def test_there_is_no_regret_of_what_was_not_completed(table: MeasuredTable) -> None:
    for policy in (table.space("global").policy(one("catt", "l2")), Policy(), Policy([Term("logits", [], "kl")])):
        with pytest.raises(ConfigError, match="expected one that was measured"):
            table.regret(policy)


def test_noise_is_the_spread_between_seeds_beyond_their_shift(
    table: MeasuredTable, measured: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Differences of 3 and 1: their deviation of sqrt(2) is that of two measurements, each of deviation 1."""
    assert table.noise == pytest.approx(1.0)
    assert math.isnan(MeasuredTable.load(written(measured[:6], tmp_path / "less.jsonl")).noise)


def test_rungs_agree_on_two_pairs_of_three(table: MeasuredTable) -> None:
    """10 < 11 < 12 after one epoch, 20 < 30 > 24 after three."""
    assert table.rank_correlation("global") == {(1, 3): pytest.approx(1 / 3)}


def test_main_effects_are_means_over_all_choices(table: MeasuredTable) -> None:
    """Twice each of 20, 24 and 30: mean 74 / 3; attention explains 4 (8/3)^2 + 2 (16/3)^2 of 304 / 3."""
    effects = table.effects("global")
    assert effects["attention"].means == {"none": pytest.approx(-8 / 3), "catt": pytest.approx(16 / 3)}
    assert effects["attention"].share == pytest.approx((4 * 64 / 9 + 2 * 256 / 9) / (304 / 3))
    assert effects["scale"].means == {"none": pytest.approx(0), "local(2)": pytest.approx(0)}
    assert effects["distance"].means["l1"] == pytest.approx(25 - 74 / 3)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_finds_all_that_there_is(name: str, table: MeasuredTable) -> None:
    space, evaluator = table.space("global"), table.evaluator("global")
    config = SearchConfig(population=2, parents=2)
    study = SearchStudy("global", make_sampler(name, space, 0, config), None, 20)
    while trials := study.ask():
        for trial in trials:
            study.tell(trial, evaluator.evaluate([trial.policy])[0])
    assert study.stopped == "exhausted"
    assert len({trial.key for trial in study.trials}) == 4
    assert study.best is not None
    assert table.regret(study.best.policy) == 0


def test_a_table_in_which_nothing_was_completed_is_no_use(measured: list[dict[str, Any]], tmp_path: Path) -> None:
    path = written([measured[0], measured[4]], tmp_path / "table.jsonl")
    with pytest.raises(DataError, match="global: no training with seed 0 was completed"):
        MeasuredTable.load(path)


def test_the_module_describes_a_file(
    measured: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(written(measured, tmp_path / "table.jsonl"))]) == 0
    text = capsys.readouterr().out
    assert "# Measured table: tiny" in text
    assert "| global | 8 | 4 | 3 | 1 | 0 | 2 | 0.00 |" in text
    assert "between seeds at the last rung: 1.00 AP" in text
    assert "| best | 30.00 | `global: catt \\| l1 x 3 of the task's gradient` |" in text
    assert "| 1 and 3 | 0.33 |" in text
    assert "| attention | 84% | catt +5.33, none -2.67 |" in text
    assert main([str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: cannot be read" in capsys.readouterr().err


def test_the_shipped_table_holds_all_that_its_spaces_offer() -> None:
    table = MeasuredTable.load(Path(__file__).parents[2] / "benchmarks" / "table" / "digits.jsonl.gz")
    for knowledge, whole in table.spaces.items():
        assert {whole.key(params) for params in points(whole)} == set(table.aps(knowledge))
    assert table.noise < 0.6 * np.std(list(table.aps("global").values()))
