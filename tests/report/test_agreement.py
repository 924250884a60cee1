"""What a check of the proxy found, as it is said and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detkds.report.agreement import RECORD, agreement_line, agreement_plot, read_check

CHECK: dict[str, Any] = {"tau": 0.614, "low": 0.35, "high": 0.8, "policies": 20}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, "proxy and full budget agree: Kendall tau 0.61 [0.35, 0.80], 20 policies"),
        ({"low": -0.1}, "proxy and full budget are not shown to agree: Kendall tau 0.61 [-0.10, 0.80], 20 policies"),
        ({"tau": None, "low": None}, "proxy and full budget cannot be compared: AP of 20 policies is the same"),
    ],
)
def test_a_check_in_one_line(change: dict[str, Any], line: str) -> None:
    assert agreement_line({**CHECK, **change}) == line


def test_what_was_not_checked_is_not_claimed(tmp_path: Path) -> None:
    assert read_check(tmp_path) is None
    for damaged in ("[]", '{"tau": 1', '{"tau": "high", "low": [], "high": null, "policies": {}}'):
        (tmp_path / RECORD).write_text(damaged)
        assert read_check(tmp_path) is None
    assert agreement_line(None) == "proxy and full budget: not measured; run detkds proxy-check"


def test_the_picture_is_replaced_whole_and_the_same_each_time(tmp_path: Path) -> None:
    points = [{"knowledge": kind, "proxy_ap": ap, "mean": 2 * ap} for kind, ap in (("global", 1.0), ("logits", 3.0))]
    path = agreement_plot({**CHECK, "points": points}, tmp_path / "one.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    first = path.read_bytes()
    assert agreement_plot({**CHECK, "points": points}, path).read_bytes() == first
    assert agreement_plot({**CHECK, "points": points[:1]}, path).read_bytes() != first
    assert [file.name for file in tmp_path.iterdir()] == ["one.png"]
