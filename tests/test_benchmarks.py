"""The benchmark of the samplers, made tiny."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def samplers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_samplers", BENCHMARKS / "samplers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def table(path: Path, early: float = 0.0) -> Path:
    """Twelve losses whose AP is 10 for l1, 20 for l2 and 30 for kl, and 0 to 3 more by the normalisation.

    ``early``: AP after the first of three epochs, as a multiple of that; 0 for a table of one epoch.
    """
    more = {"none": 0, "norm(N)": 1, "norm(HW)": 2, "minmax": 3}
    genes = {"normalise": list(more), "distance": ["l1", "l2", "kl"], "weight": [1.0]}
    space = {"knowledge": "global", "weighting": "absolute", "genes": genes}
    lines: list[dict[str, Any]] = [{"format": 1, "rungs": [1, 3] if early else [1], "spaces": {"global": space}}]
    for normalise, bonus in more.items():
        for base, distance in enumerate(genes["distance"], start=1):
            params = {"normalise": normalise, "distance": distance, "weight": 1.0}
            ap = [10.0 * base + bonus]
            ap = [50 + early * ap[0], *ap] if early else ap
            lines.append(
                {"knowledge": "global", "params": params, "seed": 0, "state": "complete", "ap": ap, "ap50": ap}
            )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_searches_of_a_table_are_kept_and_read_at_every_budget(samplers: ModuleType, tmp_path: Path) -> None:
    """A search of all twelve has no regret; with one training fewer it may."""
    arguments = ["--table", str(table(tmp_path / "table.jsonl")), "--out", str(tmp_path), "--repetitions", "3"]
    arguments += ["--samplers", "random", "kdzero", "--budgets", "1", "12"]
    samplers.main(arguments)
    kept = (tmp_path / "searches.jsonl").read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [(row["sampler"], row["budget"], row["searches"]) for row in summary["rows"]] == [
        ("random", 1, 3), ("random", 12, 3), ("kdzero", 1, 3), ("kdzero", 12, 3)]  # fmt: skip
    for row in summary["rows"]:
        assert row["low"] <= row["regret"] <= row["high"]
        assert (row["regret"] == 0) == (row["budget"] == 12)
    assert (tmp_path / "regret.png").read_bytes().startswith(b"\x89PNG")

    (tmp_path / "searches.jsonl").write_text(kept[:-30])  # torn by a kill
    samplers.main(arguments)
    assert json.loads((tmp_path / "summary.json").read_text())["rows"] == summary["rows"]
    assert {json.loads(line)["key"] for line in kept.splitlines()} == {
        found["key"] for found in samplers.read_lines(tmp_path / "searches.jsonl")
    }


def test_halving_is_played_beside_the_whole_searches(samplers: ModuleType, tmp_path: Path) -> None:
    """Early AP ranks as the end does: nothing is lost. Of 12 at once 4 train for 3 epochs and 8 for one: 20 of 36."""
    path = table(tmp_path / "table.jsonl", early=0.5)
    arguments = ["--table", str(path), "--out", str(tmp_path), "--repetitions", "4", "--samplers", "random"]
    samplers.main([*arguments, "--budgets", "12", "--parallel", "12", "--halving", "1"])
    whole, halved = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert (whole["sampler"], halved["sampler"]) == ("random", "random, rungs 1, 1 of 3")
    assert halved["trained"] == pytest.approx(20 / 36) and "trained" not in whole
    assert halved["regret"] == whole["regret"] == 0 and halved["more"] == {"regret": 0, "low": 0, "high": 0}

    path = table(tmp_path / "table.jsonl", early=-1.0)  # early AP is the opposite of late AP
    samplers.main([*arguments, "--budgets", "6", "--parallel", "6", "--halving", "1"])
    whole, halved = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert halved["more"]["regret"] == pytest.approx(halved["regret"] - whole["regret"]) and halved["more"]["low"] > 0
    with pytest.raises(SystemExit):
        samplers.main(["--halving", "1", "--out", str(tmp_path)])


def test_a_landscape_is_searched_as_a_table_is(samplers: ModuleType, tmp_path: Path) -> None:
    arguments = ["--landscapes", "2", "--repetitions", "1", "--samplers", "random", "--budgets", "5"]
    samplers.main([*arguments, "--knowledge", "localization", "--out", str(tmp_path)])
    (row,) = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert (row["units"], row["searches"]) == (2, 2)
    assert row["regret"] > 0
