"""A finished run that is searched again: under other budgets and back, and with damaged records."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from detkds.cli import app


@pytest.fixture(scope="module")
def finished(tiny_module_run: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The configuration of a run of one kind and one seed that has ended, and its rows."""
    runs = Path(tiny_module_run["runs"])
    path = runs.parent / "run.yaml"
    search = {**tiny_module_run["search"], "knowledge": ["global"], "single_budget": 2}
    path.write_text(yaml.safe_dump({**tiny_module_run, "search": search, "final": {"seeds": [0], "policies": ["pkd"]}}))
    return path, rows(path)


def rows(path: Path, *more: str) -> list[dict[str, Any]]:
    """Search, and see that the shipped student is the shipped policy's; the rows without times."""
    result = CliRunner().invoke(app, ["search", str(path), *more, "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    config = yaml.safe_load(path.read_text())
    weights = Path(config["runs"]) / summary["name"] / "student.safetensors"
    measured = CliRunner().invoke(app, ["evaluate", str(path), "--weights", str(weights), "--json"])
    assert 100 * json.loads(measured.stdout)["ap"] == pytest.approx(summary["rows"][-1]["ap"]["0"])
    return [{key: value for key, value in row.items() if key != "seconds"} for row in summary["rows"]]


def test_other_budgets_and_back(finished: tuple[Path, dict[str, Any]]) -> None:
    path, first = finished
    assert [row["name"] for row in rows(path, "search.single_budget=3")] == [row["name"] for row in first]
    assert rows(path) == first


def flipped(name: str) -> Callable[[Path], object]:
    """Scribbles over the weights in a file."""

    def scribble(folder: Path) -> None:
        [path] = folder.glob(name)
        content = bytearray(path.read_bytes())
        for place in range(len(content) // 2, len(content) // 2 + 400):
            content[place] ^= 0x41
        path.write_bytes(content)

    return scribble


def written(name: str, content: bytes) -> Callable[[Path], object]:
    """Puts something else in a file's place."""
    return lambda folder: (folder / name).write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no students": lambda folder: shutil.rmtree(folder / "students"),
    "config torn": written("config.yaml", b"name: damaged\ndata: {tra"),
    "config a list": written("config.yaml", b"[1]"),
    "config not text": written("config.yaml", b"\xff\xfe\xfa"),
    "content torn": written("content.json", b'{"a'),
    "teacher outputs": written("teacher_outputs.json", b"[]"),
    "proxy check": written("proxy_check.json", b'{"tau": "x", "low": [], "high": 1, "policies": 3}'),
    "results": lambda folder: (folder / "results.jsonl").write_text(
        "null\n{}\n" + (folder / "results.jsonl").read_text().replace('"ap": 0', '"ap": 9')
    ),
    "times": written("timing.jsonl", b"null\n{}\n"),
    "teacher": flipped("teacher.safetensors"),
    "stored teacher": flipped("students/teacher-*.safetensors"),
    "summary": written("summary.json", b"{"),
    "left by kills": lambda folder: [written(name, b"x")(folder) for name in ("b.1.part", "students/c.2.part")],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_costs_time_at_most(damage: str, finished: tuple[Path, dict[str, Any]]) -> None:
    path, first = finished
    runs = Path(yaml.safe_load(path.read_text())["runs"])
    folder = runs / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(runs / "tiny", folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("name: tiny", "name: damaged"))
    DAMAGES[damage](folder)
    assert rows(path, "name=damaged") == first
    assert not list(folder.rglob("*.part"))


def test_a_trial_with_another_ap_is_refused(finished: tuple[Path, dict[str, Any]]) -> None:
    path, _ = finished
    runs = Path(yaml.safe_load(path.read_text())["runs"])
    journal = runs / "trial" / "study.journal"
    shutil.copytree(runs / "tiny", journal.parent)
    (journal.parent / "config.yaml").unlink()
    text, changed = re.subn(r'"ap":[0-9.]+', '"ap":99.5', journal.read_text(), count=1)
    journal.write_text(text)
    result = CliRunner().invoke(app, ["search", str(path), "name=trial"])
    assert changed and result.exit_code == 2
    assert "trial 0 is damaged" in result.stderr and "restore the file from a copy" in result.stderr
