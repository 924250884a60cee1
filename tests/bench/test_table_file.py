"""Files that cannot be used: every fault with its line."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detkds.bench.table_file import read_table
from detkds.errors import DataError
from detkds.policy_search.result import State

Lines = list[dict[str, Any]]


def written(lines: Lines, path: Path) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def faults_of(path: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        read_table(path)
    return list(caught.value.faults)


def test_a_file_is_read_gzipped_or_not(measured: Lines, tmp_path: Path) -> None:
    plain = written(measured, tmp_path / "plain.jsonl")
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    found = read_table(packed)
    assert found == read_table(plain)
    assert (found.rungs, found.header["name"], len(found.measurements)) == ((1, 3), "tiny", 6)
    assert found.spaces["global"].genes["distance"] == ("l1", "l2")
    first, refused = found.measurements[0], found.measurements[3]
    assert (first.ap, first.ap50, first.seconds) == ((10.0, 20.0), (20.0, 40.0), 1.8)
    assert (refused.state, refused.ap, refused.reason) == (State.FILTERED, (), "over the limit")


def test_what_is_no_table_is_said(tmp_path: Path) -> None:
    assert "cannot be read as a measured table" in faults_of(tmp_path / "none.jsonl")[0]
    for name, data, said in (
        ("cut.gz", gzip.compress(b"x" * 99)[:-9], "cannot be read as a measured table"),
        ("bad.gz", b"\x1f\x8b\x08\x00 nothing of the kind", "cannot be read as a measured table"),
        ("image", b"\x89PNG\xff", "cannot be read as a measured table"),
        ("empty", b"\n", "got an empty file"),
        ("text", b"hello\n", "text:1: not valid JSON"),
        ("list", b"[1, 2]\n", "list:1: expected a JSON object"),
        ("other", b'{"format": 2}\n', "other:1: format: expected 1, got 2"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        assert said in faults_of(path)[0]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda head: head.update(rungs=[3, 1]), "rungs: expected whole numbers > 0 in ascending order, got [3, 1]"),
        (lambda head: head.update(rungs=[]), "rungs: expected"),
        (lambda head: head.pop("spaces"), "spaces: expected the space of every kind of knowledge, got None"),
        (lambda head: head["spaces"].update(fgbg=3), "spaces.fgbg: expected genes with lists of options, got 3"),
        (lambda head: head["spaces"]["global"].update(weighting="x"), "weighting: expected 'absolute' or 'gradient'"),
        (lambda head: head["spaces"]["global"]["genes"].update(distance=["l9"]), "unknown distance 'l9'"),
        (lambda head: head["spaces"]["global"]["genes"].update(distance=[["l1"]]), "expected genes with lists"),
    ],
)
def test_faults_of_the_header(
    spoil: Callable[[dict[str, Any]], object], said: str, measured: Lines, tmp_path: Path
) -> None:
    spoil(measured[0])
    (fault,) = faults_of(written(measured, tmp_path / "table.jsonl"))
    assert fault.startswith(f"{tmp_path}/table.jsonl:1: ")
    assert said in fault


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"knowledge": "globl"}, "unknown knowledge 'globl'; did you mean 'global'?"),
        ({"knowledge": ["global"]}, "unknown knowledge"),
        ({"params": {"attention": "none"}}, "params: expected one option for each of attention, scale, distance, weig"),
        ({"params": "none"}, "params: expected one option"),
        ({"seed": -1}, "seed: expected a whole number >= 0, got -1"),
        ({"seed": True}, "seed: expected a whole number >= 0, got True"),
        ({"state": "pruned"}, "state: expected one of complete, filtered, failed, got 'pruned'"),
        ({"ap": [1.0]}, "ap: expected 2 finite numbers, one per rung, got [1.0]"),
        ({"ap50": [1.0, float("nan")]}, "ap50: expected 2 finite numbers"),
        ({"ap": None}, "ap: expected 2 finite numbers"),
        ({"seconds": "2"}, "seconds: expected a finite number, got '2'"),
    ],
)
def test_faults_of_a_training(change: dict[str, Any], said: str, measured: Lines, tmp_path: Path) -> None:
    measured[2].update(change)
    (fault,) = faults_of(written(measured, tmp_path / "table.jsonl"))
    assert fault.startswith(f"{tmp_path}/table.jsonl:3: ")
    assert said in fault


def test_all_faults_are_named_with_their_lines(measured: Lines, tmp_path: Path) -> None:
    again = copy.deepcopy(measured[1])
    measured[2]["params"]["distance"] = "l11"
    measured[2]["seed"] = 0.5
    del measured[3]["seed"]
    path = written([*measured, again], tmp_path / "table.jsonl")
    path.write_text(path.read_text() + '{"knowledge": "glo')
    faults = faults_of(path)
    said = {
        3: ["params.distance: unknown option 'l11'; did you mean 'l1'? Known: l1, l2", "seed: expected"],
        4: ["missing keys: seed"],
        8: ["the same choice and seed stand in an earlier line"],
        9: ["not valid JSON"],
    }
    expected = [(line, text) for line, texts in said.items() for text in texts]
    assert len(faults) == len(expected)
    for fault, (line, text) in zip(faults, expected, strict=True):
        assert fault.startswith(f"{path}:{line}: ")
        assert text in fault


def test_transforms_and_a_distance_that_do_not_fit_are_a_fault(measured: Lines, tmp_path: Path) -> None:
    genes = {"transform": ["none", "decode"], "distance": ["l1", "iou"], "weight": [1.0]}
    measured[0]["spaces"] = {"localization": {"knowledge": "localization", "weighting": "absolute", "genes": genes}}
    params = {"transform": "none", "distance": "iou", "weight": 1.0}
    line = {**measured[1], "knowledge": "localization", "params": params}
    (fault,) = faults_of(written([measured[0], line], tmp_path / "table.jsonl"))
    assert "table.jsonl:2: params: expected transforms and a distance that fit together, got {'transform'" in fault
