"""Imports point downwards only, and light imports stay light.

Every part of the package stands on a floor and may import what stands on a lower one. Parts of one floor stay
strangers but for the ones listed in ``NEIGHBOURS``. Imports inside functions count like any other; imports under
``if TYPE_CHECKING:`` do not, because nothing runs through them.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
PACKAGE = SOURCE / "detkds"

FLOORS = {
    **dict.fromkeys(("registry", "errors", "arguments", "yaml_reader", "files", "precision", "version"), 0),
    **dict.fromkeys(("progress", "progress_sinks", "statistics"), 0),
    **dict.fromkeys(("structures", "protocols", "term_schema", "policy", "canonical", "config"), 1),
    **dict.fromkeys(("config_file", "config_changes"), 1),
    **dict.fromkeys(("alignment", "adapters", "transforms", "distances", "knowledge", "schedules", "distiller"), 2),
    **dict.fromkeys(("detectors", "data", "evaluation", "training"), 3),
    **dict.fromkeys(("policy_search", "exporters", "tasks"), 4),
    # detkds: the public names of __init__.py
    **dict.fromkeys(("bench", "runs", "report", "testing", "api", "cli", "__main__", "detkds"), 5),
}
NEIGHBOURS = {
    "registry": {"errors"},
    "yaml_reader": {"errors"},
    "progress_sinks": {"errors", "progress", "files"},
    "protocols": {"structures"},
    "term_schema": {"protocols", "structures"},
    "policy": {"protocols", "structures", "term_schema", "canonical"},
    "canonical": {"protocols"},
    "config": {"structures", "policy", "canonical"},
    "config_file": {"config"},
    "config_changes": {"config"},
    "knowledge": {"alignment", "adapters"},
    "adapters": {"transforms"},
    "distiller": {"alignment", "adapters", "knowledge", "transforms", "distances", "schedules"},
    "evaluation": {"data", "detectors"},
    "training": {"data", "detectors", "evaluation"},
    "tasks": {"policy_search"},
    "runs": {"report", "detkds"},
    "report": {"detkds"},
    "api": {"runs"},
    "cli": {"runs", "report", "detkds"},
    "__main__": {"cli"},
}
EXTRAS = {"transformers", "ray", "optuna_dashboard", "onnx", "onnxscript", "onnxruntime"}
TRAINING_ENGINE = {"detectors", "data", "evaluation", "training", "tasks"}
MAX_LINES = 400


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, the file and line, and whether it runs when the file is imported."""

    target: str
    file: Path
    line: int
    at_import: bool

    @property
    def where(self) -> str:
        return f"{self.file.relative_to(SOURCE)}:{self.line}"


def module_name(file: Path, source: Path = SOURCE) -> str:
    """``src/detkds/data/coco.py`` is ``detkds.data.coco``; a package is named by its folder."""
    parts = file.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The part of the package a module belongs to: its first name below ``detkds``, or ``detkds`` itself."""
    names = module.split(".")
    return names[1] if len(names) > 1 else names[0]


def _is_typing_only(node: ast.If) -> bool:
    test = node.test
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def imports_of(file: Path, source: Path = SOURCE) -> list[Import]:
    """Every import statement of a file, relative ones resolved."""
    own = module_name(file, source).split(".")
    package = own if file.name == "__init__.py" else own[:-1]

    def is_module(dotted: str) -> bool:
        path = source.joinpath(*dotted.split("."))
        return path.is_dir() or path.with_suffix(".py").is_file()

    def targets(node: ast.Import | ast.ImportFrom) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        base = package[: len(package) - node.level + 1] if node.level else []
        prefix = ".".join([*base, *(node.module or "").split(".")]).strip(".")
        return [f"{prefix}.{a.name}" if is_module(f"{prefix}.{a.name}") else prefix for a in node.names]

    def walk(node: ast.AST, at_import: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield from (Import(name, file, child.lineno, at_import) for name in targets(child))
            elif isinstance(child, ast.If) and _is_typing_only(child):
                yield from (found for other in child.orelse for found in walk(ast.Module([other], []), at_import))
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, at_import and not inside)

    return list(walk(ast.parse(file.read_text(encoding="utf-8"), str(file)), True))


def upward(found: Import, source: Path = SOURCE) -> str | None:
    """Why an import does not point downwards; None where it does, or where it leaves the package."""
    if found.target.split(".")[0] != "detkds":
        return None
    here, there = part_of(module_name(found.file, source)), part_of(found.target)
    unknown = [part for part in (here, there) if part not in FLOORS]
    if unknown:
        return f"no floor is stated for {unknown[0]!r}; add it to FLOORS in tests/test_layers.py"
    if here == there or there in NEIGHBOURS.get(here, ()) or FLOORS[there] < FLOORS[here]:
        return None
    return f"{here} (floor {FLOORS[here]}) imports {there} (floor {FLOORS[there]})"


FILES = sorted(PACKAGE.rglob("*.py"))


def test_imports_point_downwards() -> None:
    faults = [f"{found.where}: {why}" for file in FILES for found in imports_of(file) if (why := upward(found))]
    assert not faults, "imports must point to a lower floor:\n" + "\n".join(faults)


def test_no_files_import_each_other_in_a_circle() -> None:
    names = {module_name(file) for file in FILES}
    graph = {
        module_name(file): {found.target for found in imports_of(file)} & names - {module_name(file)} for file in FILES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("imports go in a circle: " + " < ".join(error.args[1]))


def test_every_part_has_a_floor() -> None:
    parts = {part_of(module_name(file)) for file in FILES}
    assert parts - FLOORS.keys() == set(), "add it to FLOORS"


def test_search_never_sees_the_training_engine() -> None:
    """A search asks for a policy's score and is told a number."""
    engine = [
        f"{found.where}: {found.target}"
        for file in FILES
        if file.is_relative_to(PACKAGE / "policy_search")
        for found in imports_of(file)
        if found.target.startswith("detkds.") and part_of(found.target) in TRAINING_ENGINE
    ]
    assert not engine, "the search may not import the training engine:\n" + "\n".join(engine)


def test_tasks_know_of_a_search_no_more_than_its_results_and_its_rule_of_halving() -> None:
    known = {
        found.target
        for file in FILES
        if file.is_relative_to(PACKAGE / "tasks")
        for found in imports_of(file)
        if part_of(found.target) == "policy_search"
    }
    assert known <= {"detkds.policy_search.result", "detkds.policy_search.halving"}


def test_extras_are_imported_where_they_are_used() -> None:
    early = [
        f"{found.where}: {found.target}"
        for file in FILES
        for found in imports_of(file)
        if found.at_import and found.target.split(".")[0] in EXTRAS
    ]
    assert not early, "an optional package must be imported inside the function that needs it:\n" + "\n".join(early)


def test_no_file_is_too_long_to_read_in_one_sitting() -> None:
    lengths = {str(file.relative_to(SOURCE)): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {file: lines for file, lines in lengths.items() if lines >= MAX_LINES} == {}


def test_no_source_file_is_ignored() -> None:
    """A pattern such as ``runs/`` in .gitignore would keep ``src/detkds/runs`` from every clone."""
    files = [str(file) for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    if not (SOURCE.parent / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs git and a checkout")
    command = ["git", "-C", str(SOURCE.parent), "check-ignore", "--no-index", "--stdin"]
    run = subprocess.run(command, input="\n".join(files), capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stderr
    assert not run.stdout, f"ignored by .gitignore, so they would never be committed:\n{run.stdout}"


def test_import_detkds_is_light() -> None:
    """``import detkds`` answers at once: what is heavy is loaded by the first thing that needs it."""
    heavy = ["timm", "optuna", "transformers", "matplotlib", "ray", "torchvision", "sklearn", "faster_coco_eval"]
    code = f"import sys, detkds; print([name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


# --- the checker itself, on files written for it ---


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small source tree with one package per floor of interest."""
    for name in (
        "errors.py",
        "policy.py",
        "data/coco.py",
        "data/__init__.py",
        "policy_search/study.py",
        "training/loop.py",
    ):
        (tmp_path / "detkds" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "detkds" / name).write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text", "verdict"),
    [
        ("data/coco.py", "from detkds.errors import DataError", None),
        ("data/coco.py", "from detkds.data.formats import read", None),
        ("data/coco.py", "from ..errors import DataError", None),
        ("data/coco.py", "import numpy, torch", None),
        ("training/loop.py", "from detkds.data import coco", None),
        ("data/coco.py", "from detkds.training import loop", "data (floor 3) imports training (floor 3)"),
        ("data/coco.py", "from detkds import training", "data (floor 3) imports training (floor 3)"),
        ("data/coco.py", "from .. import policy_search", "data (floor 3) imports policy_search (floor 4)"),
        ("data/__init__.py", "from ..policy_search import study", "data (floor 3) imports policy_search (floor 4)"),
        ("policy.py", "import detkds.data.coco", "policy (floor 1) imports data (floor 3)"),
        ("policy.py", "def f():\n    from detkds.data import coco", "policy (floor 1) imports data (floor 3)"),
        ("policy.py", "from detkds import Distiller", "policy (floor 1) imports detkds (floor 5)"),
        ("policy.py", "import detkds.plugin", "no floor is stated for 'plugin'"),
        ("policy.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import detkds.data", None),
        ("policy.py", "import typing\nif typing.TYPE_CHECKING:\n    import detkds.data", None),
        (
            "policy.py",
            "if TYPE_CHECKING:\n    import detkds.errors\nelse:\n    import detkds.data",
            "policy (floor 1) imports data (floor 3)",
        ),
    ],
)
def test_the_checker_sees_what_it_should(tree: Path, file: str, text: str, verdict: str | None) -> None:
    path = tree / "detkds" / file
    path.write_text(text)
    reasons = [why for found in imports_of(path, tree) if (why := upward(found, tree))]
    if verdict is None:
        assert reasons == []
    else:
        assert len(reasons) == 1
        assert reasons[0].startswith(verdict)


def test_the_checker_tells_early_from_late_imports(tree: Path) -> None:
    path = tree / "detkds" / "policy.py"
    path.write_text(
        "import ray\ntry:\n    import onnx\nexcept ImportError:\n    onnx = None\ndef f():\n    import json\n"
    )
    assert [(found.target, found.line, found.at_import) for found in imports_of(path, tree)] == [
        ("ray", 1, True),
        ("onnx", 3, True),
        ("json", 7, False),
    ]
