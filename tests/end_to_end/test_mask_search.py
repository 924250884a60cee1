"""A whole search for a pair that predicts masks, on the embedded digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from detkds.cli import app

HEAD = {
    "neck_channels": 16,
    "representation": 16,
    "roi_resolution": 3,
    "roi_canonical_size": 32,
    "mask_resolution": 4,
    "mask_convs": 1,
    "mask_channels": 8,
    "anchor_scales": [4.0],
    "rpn_samples": 16,
    "roi_samples": 8,
    "rpn_pre_nms": 20,
    "rpn_post_nms": 10,
    "rpn_pre_nms_predict": 20,
    "rpn_post_nms_predict": 10,
}
TRAIN = {"epochs": 2, "draws": 16, "batch_size": 4, "optimizer": "adamw", "lr": 0.004, "warmup_steps": 1}


def _command(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["mask_rcnn", "cascade_mask_rcnn"])
def test_search_and_distillation_report_mask_ap(detector: str, tmp_path: Path) -> None:
    pair: dict[str, Any] = {"detector": detector, "options": HEAD}
    configuration = {
        "name": "masks",
        "data": {"embedded": "digits", "embedded_images": [24, 8], "embedded_classes": 2, "size": 64},
        "teacher": {**pair, "backbone": "narrow8", "train": TRAIN},
        "student": {**pair, "backbone": "narrow4"},
        "train": {**TRAIN, "epochs": 1},
        "proxy": {"validation": 0.5, "draws": 8, "population": 4, "calibration_batches": 1},
        "search": {
            "knowledge": ["global", "logits"],
            "method": "divide",
            "single_budget": 2,
            "combination_budget": 1,
            "population": 2,
            "race": [1],
        },
        "final": {"seeds": [0], "policies": ["pkd"]},
        "runs": str(tmp_path / "runs"),
        "device": "cpu",
        "executor": "inline",
    }
    path, folder = tmp_path / "run.yaml", tmp_path / "runs" / "masks"
    path.write_text(yaml.safe_dump(configuration))
    summary = json.loads(_command("search", str(path), "--json"))
    assert summary["metric"] == "mask AP" and summary["search"]["trainings"] == 5
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    compared = [result for result in results if result["task"]["setup"] == "comparison"]
    assert {result["task"]["label"] for result in compared} >= {"plain", "pkd", "searched"}
    for record in compared:
        label, metrics = record["task"]["label"], record["result"]["metrics"]
        assert record["result"]["state"] == "complete" and metrics["kind"] == "mask"
        row = next(row for row in summary["rows"] if row["name"] == label)
        assert row["ap"]["0"] == 100 * metrics["ap"]
        assert row["metrics"]["box_ap"] == 100 * metrics["boxes"]["ap"]
    assert "mask AP" in (folder / "report.html").read_text() and "box AP" in (folder / "report.html").read_text()
    shown = _command("search", str(path))
    assert "mask AP on the test images" in shown and "box AP" in shown
    distilled = json.loads(_command("distill", str(path), "--json"))
    student = ("--weights", distilled["weights"], "--json")
    assert json.loads(_command("evaluate", str(path), *student)) == distilled["metrics"]
