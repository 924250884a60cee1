"""The examples of CONTRIBUTING.md run and do what they say."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from detkds.config import SearchConfig
from detkds.detectors import build_detector
from detkds.policy_search.result import State, Trial
from detkds.policy_search.space import Space
from detkds.registry import DETECTORS, DISTANCES, KNOWLEDGE, SAMPLERS, TRANSFORMS
from detkds.structures import DetectorOutput, KnowledgeInput, Pair
from detkds.testing import check_detector, check_distance, check_knowledge, check_sampler, check_transform

GUIDE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"
REGISTRIES = (KNOWLEDGE, TRANSFORMS, DISTANCES, DETECTORS, SAMPLERS)


BLOCKS = re.findall(r"^```python\n# src/(\S+)\.py\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.S | re.M)

FILES = [f"src/{path}.py" for path, _ in BLOCKS]


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every example as a module of its own, in registries that forget it afterwards."""
    for registry in REGISTRIES:
        registry.names()
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    assert len(BLOCKS) == len(REGISTRIES), "one example per family"
    for path, code in BLOCKS:
        module = ModuleType(path.replace("/", "."))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, f"{GUIDE.name}:{path}", "exec"), module.__dict__)


def test_distance() -> None:
    """Log cosh of 0, 1 and 2 has the mean (0 + 0.433781 + 1.325003) / 3."""
    student = torch.tensor([[0.0, 1.0, -2.0]])
    distance = DISTANCES.build("log_cosh")(Pair(student, torch.zeros(1, 3), kind="feature"))
    assert distance.item() == pytest.approx((math.log(math.cosh(1)) + math.log(math.cosh(2))) / 3, rel=1e-6)


def test_transform() -> None:
    pair = TRANSFORMS.build("soft_clip(3)")(Pair(torch.tensor([[3.0, 1e6]]), torch.tensor([[0.0, -1e6]])))
    assert pair.student.tolist() == [pytest.approx([3 * math.tanh(1), 3.0])]
    assert pair.teacher.tolist() == [[0.0, -3.0]]


def test_knowledge() -> None:
    """Maps of 2 x 3: the left square has the mean (0 + 1 + 3 + 4) / 4, what is left of the right one (2 + 5) / 2."""
    maps = torch.arange(6.0).view(1, 1, 2, 3)
    outputs = [DetectorOutput({"p3": sign * maps}, torch.tensor([[16, 24]])) for sign in (1, -1)]
    (pair,) = KNOWLEDGE.build("coarse(2)")(KnowledgeInput(*outputs, None, {"p3": 8}))
    assert pair.student.tolist() == [[[[2.0, 3.5]]]]
    assert pair.teacher.tolist() == [[[[-2.0, -3.5]]]]


def test_detector() -> None:
    detector = build_detector("retinanet_nano", ["cat", "dog"], neck_channels=16)
    assert {spec.channels for spec in detector.info.features.values()} == {16}
    assert detector.info.layout.num_classes == 2


def test_sampler() -> None:
    """From the best of two measured choices only one untried neighbour is left."""
    space = Space("global", {"distance": ("l1", "l2"), "weight": (1.0, 2.0)})
    sampler = SAMPLERS["climb"](space, 0, SearchConfig())
    rng = np.random.default_rng(0)
    assert sampler.propose([], 0, rng).role == "random"

    def trial(number: int, distance: str, weight: float, ap: float) -> Trial:
        params = {"distance": distance, "weight": weight}
        return Trial("global", number, State.COMPLETE, params, space.policy(params), space.key(params), ap=ap)

    history = [trial(0, "l1", 1.0, 0.2), trial(1, "l2", 1.0, 0.4)]
    proposal = sampler.propose(history, 2, rng)
    assert proposal.params == {"distance": "l2", "weight": 2.0}
    assert proposal.parents == (1,)


def test_the_pieces_conform() -> None:
    check_distance("log_cosh")
    check_transform("soft_clip(3)")
    check_knowledge("coarse(2)")
    check_detector("retinanet_nano", neck_channels=16)
    check_sampler("climb")


@pytest.fixture
def placed(tmp_path: Path) -> Path:
    """A copy of the package and its settings with every example in its place."""
    shutil.copy(GUIDE.parent / "pyproject.toml", tmp_path)
    shutil.copytree(GUIDE.parent / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for path, code in BLOCKS:
        (tmp_path / "src" / f"{path}.py").write_text(code, encoding="utf-8")
    return tmp_path


def run_tool(folder: Path, *command: str | Path) -> None:
    done = subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [("format", "--check"), ("check", "--no-cache")])
def test_the_examples_are_in_style(placed: Path, command: tuple[str, ...]) -> None:
    run_tool(placed, "ruff", *command, *FILES)


@pytest.mark.slow
def test_the_examples_are_typed(placed: Path) -> None:
    run_tool(placed, "pyright", "--pythonpath", sys.executable, *FILES)
