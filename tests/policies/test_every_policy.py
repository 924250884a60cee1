"""Every shipped policy takes a step with real detectors, or says why it does not serve them."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from detkds import Distiller, list_policies, load_policy
from detkds.detectors import build_detector
from detkds.detectors.base import Detector
from detkds.distiller import check_pair
from detkds.errors import PairError
from detkds.policy import Policy
from detkds.structures import Batch, DetectorOutput, Target
from detkds.training.calibrate import unit

CLASSES = ("a", "b", "c")
DENSE: dict[str, Any] = {"backbone": "narrow8", "neck_channels": 16, "head_convs": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "retinanet": DENSE,
    "fcos": {**DENSE, "neck_channels": 32},
    "gfl": {**DENSE, "reg_max": 4},
    "d_fine": {"size": "nano"},
    "faster_rcnn": {"backbone": "narrow8", "neck_channels": 16, "representation": 32, "rpn_post_nms": 20},
}


# A teacher that knows nothing yet finds no object, and points of random weights no box of more than 10 pixels.
WITHOUT_OBJECTS = {("dfine-cross", "d_fine"), ("gid", "fcos")}


@cache
def step(family: str) -> tuple[Detector, Detector, DetectorOutput, DetectorOutput, list[Target]]:
    """A student, a teacher, and what both say of one batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student, teacher = (build_detector(family, CLASSES, **FAMILIES[family]) for _ in range(2))
        targets = [
            Target(
                boxes=torch.tensor([[10.0, 12.0, 44.0, 50.0], [50.0, 8.0, 90.0, 40.0]]), labels=torch.tensor([0, 2])
            ),
            Target(boxes=torch.tensor([[20.0, 20.0, 70.0, 80.0]]), labels=torch.tensor([1])),
        ]
        batch = Batch(torch.rand(2, 3, 96, 96), torch.tensor([[96, 96], [96, 80]]), (0, 1), targets)
        teacher.eval().requires_grad_(False)
        return student, teacher, student.train()(batch), teacher(batch), targets


def serves(policy: Policy, family: str) -> bool:
    student, teacher, *_ = step(family)
    try:
        check_pair(policy, student, teacher)
    except PairError:
        return False
    return True


def absolute(name: str) -> Policy:
    policy = load_policy(name)
    return Policy([unit(term) for term in policy], name=policy.name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", list_policies())
def test_a_step_of_every_policy_is_finite_and_teaches_the_student(name: str, family: str) -> None:
    policy = absolute(name)
    if not serves(policy, family):
        pytest.skip(f"{name} refuses {family}, with a reason")
    student, teacher, ours, theirs, targets = step(family)
    distiller = Distiller(policy, student=student, teacher=teacher, seed=0)
    losses = distiller(ours, theirs, targets)
    total = torch.stack(list(losses.values())).sum()
    assert all(loss.isfinite() for loss in losses.values())
    if (name, family) in WITHOUT_OBJECTS:
        return
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(total, weights, allow_unused=True, retain_graph=True)
    found = [gradient for gradient in gradients if gradient is not None]
    assert all(gradient.isfinite().all() for gradient in found)
    assert any((gradient != 0).any() for gradient in found)


@pytest.mark.parametrize("name", list_policies())
def test_every_policy_serves_some_family(name: str) -> None:
    assert any(serves(absolute(name), family) for family in FAMILIES)
