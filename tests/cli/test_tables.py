"""Results on a terminal: the numbers of the summary."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from detkds.cli.tables import print_results

ROW = {"policy": "", "spread": 0.5, "metrics": {"ap50": 30.0}, "failures": {}, "seconds": 1.0}
SUMMARY: dict[str, Any] = {
    "rows": [
        {**ROW, "name": "teacher", "kind": "teacher", "ap": {0: 40.04}, "mean": 40.04, "to_plain": None},
        {**ROW, "name": "[b]plain[/b]", "kind": "plain", "ap": {0: 10.0, 1: 11.0}, "mean": 10.5, "to_plain": None},
        {
            **ROW,
            "name": "pkd",
            "kind": "hand",
            "ap": {0: 20.0, 1: 21.0},
            "mean": 20.5,
            "to_plain": {"mean": 10.0, "low": 9.0, "high": 11.0},
        },
        {**ROW, "name": "cwd", "kind": "hand", "ap": {}, "mean": None, "spread": None, "metrics": {}, "to_plain": None},
    ],
    "seeds": [0, 1],
    "verdict": "[red]'pkd' wins",
    "policy": {"terms": [{"knowledge": "global", "transforms": ["catt"], "distance": "l1", "weight": 0.123456}]},
}


def shown(folder: Path) -> str:
    out = io.StringIO()
    print_results(Console(file=out, width=140), SUMMARY, folder)
    return out.getvalue()


def test_every_number_of_the_summary_is_shown(tmp_path: Path) -> None:
    text = shown(tmp_path)
    for expected in (
        "seeds 0, 1",
        "40.0",
        "10.5 ± 0.5",
        "+10.0 [+9.0, +11.0]",
        "20.0 21.0",
        "failed",
        "0.1235",
        "catt",
    ):
        assert expected in text, expected


def test_names_and_verdicts_are_shown_as_they_are(tmp_path: Path) -> None:
    text = shown(tmp_path)
    assert "[b]plain[/b]" in text
    assert "[red]'pkd' wins" in text


def test_only_files_that_are_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("terms: []")
    text = shown(tmp_path)
    assert "policy.yaml" in text
    assert "student.safetensors" not in text
