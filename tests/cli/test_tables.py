"""Results on a terminal: the numbers of the summary."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from detkds.cli.tables import cost_table, metrics_table, print_comparison, print_results

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


def shown(folder: Path, summary: dict[str, Any] = SUMMARY) -> str:
    out = io.StringIO()
    print_results(Console(file=out, markup=False, width=140), summary, folder)
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


def test_a_pair_of_masks_shows_box_ap_beside_mask_ap(tmp_path: Path) -> None:
    rows = [{**row, "metrics": {"ap50": 30.0, "box_ap": 12.34}} for row in SUMMARY["rows"][1:]]
    teacher = {**SUMMARY["rows"][0], "ap": {}, "mean": None, "metrics": {"box_ap": 56.7}}
    text = shown(tmp_path, {**SUMMARY, "metric": "mask AP", "rows": [teacher, *rows]})
    assert "mask AP on the test images" in text and "box AP" in text and "12.3" in text and "56.7" in text
    assert text.count("failed") == 1  # the teacher has no masks, which is no failure
    assert "box AP on the test images" in shown(tmp_path, {**SUMMARY, "metric": "box AP"})


def test_metrics_of_masks_and_boxes_are_two_rows() -> None:
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    boxes = {"kind": "box", **dict.fromkeys(names, 0.25), "per_class": {"cell": 0.25}}
    masks = {"kind": "mask", **dict.fromkeys(names, 0.5), "per_class": {"cell": 0.5}, "boxes": boxes}
    out = io.StringIO()
    Console(file=out, markup=False, width=120).print(metrics_table(masks, "student"))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["mask", *["50.0"] * 6] in lines and ["box", *["25.0"] * 6] in lines
    assert "mask AP of each class" in out.getvalue() and "cell 50.0" in out.getvalue()


def test_names_and_verdicts_are_shown_as_they_are(tmp_path: Path) -> None:
    text = shown(tmp_path)
    assert "[b]plain[/b]" in text
    assert "[red]'pkd' wins" in text


def test_the_cost_of_a_step_is_shown_where_it_was_measured() -> None:
    cost = {"seconds": 0.25, "ratio": 1.0, "student_mb": 812.04, "losses_mb": 0.0, "rounds": 20, "failure": None}
    dearer = {**cost, "seconds": 0.311, "ratio": 1.244, "losses_mb": 12.34}
    failed = {**dict.fromkeys(cost), "rounds": 0, "failure": "DivergenceError: no"}
    rows = [{**row, "cost": one} for row, one in zip(SUMMARY["rows"], (None, cost, dearer, failed), strict=True)]
    found, out = {**SUMMARY, "rows": rows}, io.StringIO()
    print_comparison(Console(file=out, markup=False, width=140), found, {})
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert "[b]plain[/b] 0.25 1.00 812.0" in lines
    assert "pkd 0.311 1.24 812.0 + 12.3" in lines
    assert "cwd failed - -" in lines
    assert cost_table(SUMMARY) is None


def test_only_files_that_are_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("terms: []")
    text = shown(tmp_path)
    assert "policy.yaml" in text
    assert "student.safetensors" not in text
