"""The page of the shipped policies says what the policy files and the code say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from detkds.policy import Policy, Term, list_policies, load_policy

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    pytest.importorskip("transformers", reason="the page names the families of transformers too")
    spec = importlib.util.spec_from_file_location("distillers_page", ROOT / "benchmarks" / "distillers_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_as_it_would_be_made_now(maker: ModuleType) -> None:
    made = maker.page([load_policy(name) for name in list_policies()], maker.described())
    said = "run python benchmarks/distillers_page.py --out docs/distillers.md"
    assert (ROOT / "docs" / "distillers.md").read_text(encoding="utf-8") == made, said


@pytest.mark.parametrize("name", list_policies())
def test_every_shipped_policy_states_its_loss_and_its_fidelity(name: str) -> None:
    policy = load_policy(name)
    assert policy.formula and policy.fidelity, "add formula: and fidelity: to its file"


def test_a_section_names_the_families_a_policy_serves(maker: ModuleType) -> None:
    infos = {name: maker.small(name, seed=0, neck_channels=16).info for name in ("retinanet", "gfl")}
    policy = Policy([Term("logits", (), "l1", 0.5)], name="a/b|c", fidelity="approximate: a sketch")
    text = maker.page([policy, Policy([Term("global")], name="x")], infos)
    assert "| [a/b|c](#abc) |  | logits | approximate | 2 of 2 |" in text
    assert "- Serves a teacher and a student of: every family.\n- Between different families: 0 of 2 pairs." in text
    assert "| logits | l1 | 0.5 |" in text
    assert "- Fidelity: not stated." in text and "- Between different families: 2 of 2 pairs." in text
