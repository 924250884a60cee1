"""The losses of seeded trainings, one policy for each kind of knowledge, as they were on 2026-11-28.

On the kind of machine that they were recorded on they are the same to the last bit; elsewhere to rounding, which a
training of six steps amplifies little.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
import torch

from detkds import Policy, Term
from detkds.registry import KNOWLEDGE
from detkds.training.population import StudentSpec, train_population

RECORD = json.loads((Path(__file__).parent / "pinned_losses.json").read_text(encoding="utf-8"))
HERE = [platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.__version__.partition("+")[0]]


def policy_of(knowledge: str) -> Policy:
    """A term of this knowledge that any pair of anchor-based detectors can serve."""
    if KNOWLEDGE.build(knowledge).yields == "regression":
        return Policy([Term(knowledge, ["decode"], "giou", 0.1)])
    return Policy([Term(knowledge, [], "l2", 0.1)])


@pytest.mark.parametrize("knowledge", RECORD["losses"])
def test_losses_of_a_seeded_training_stay(setup, observer, knowledge):
    steps = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        [result] = train_population(
            setup(),
            [StudentSpec(knowledge, policy_of(knowledge))],
            seed=3,
            observer=observer(lambda student, losses: steps.append({n: loss.item() for n, loss in losses.items()})),
        )
    finally:
        torch.set_num_threads(threads)
    assert result.failure is None
    expected = [
        {name: float.fromhex(value) for name, value in losses.items()} for losses in RECORD["losses"][knowledge]
    ]
    if RECORD["machine"] == HERE:
        assert steps == expected
    else:
        assert [list(step) for step in steps] == [list(step) for step in expected]
        for step, wanted in zip(steps, expected, strict=True):
            assert step == pytest.approx(wanted, rel=1e-3)
