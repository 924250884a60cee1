"""Shipped policies against values that their authors' own code gave, and the words of fidelity that follow from them.

The values stand in ``reference/``; ``benchmarks/reference_values.py`` works them out again.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from detkds import Distiller, Policy, list_policies, load_policy
from detkds.structures import (
    Branch,
    BranchSpec,
    DetectorInfo,
    DetectorOutput,
    FeatureSpec,
    Layout,
    RegionResponse,
    Target,
)

ROOT = Path(__file__).resolve().parents[2]
RECORDS = [
    json.loads(path.read_text(encoding="utf-8")) for path in (Path(__file__).parent / "reference").glob("*.json")
]
VALUES: dict[str, dict[str, Any]] = {name: values for record in RECORDS for name, values in record["values"].items()}
LEVELS = {"defeat": (4, 5), "defeat-features": (4, 5)}
"""The pixels per cell of the finest level and the number of levels, where they are not 8 and 3."""
CONSTANT = {"frs", "maskd"}
"""Policies whose authors' loss has a part that does not depend on the student."""
REGION = {"kd", "dist", "defeat"}
TOLERANCE = 1e-5


def load_inputs() -> Any:
    """The helper that the script draws the same tensors with."""
    spec = importlib.util.spec_from_file_location("reference_inputs", ROOT / "benchmarks" / "reference" / "inputs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


INPUTS = load_inputs()


@dataclass
class Head:
    """The branches of a dense head of 1x1 convolutions over the features, which boxes are added to."""

    features: Mapping[str, Tensor]
    anchors: Mapping[str, Tensor]
    ends: list[nn.Conv2d]

    def before(self, branch: Branch, after: int) -> dict[str, Tensor]:
        return dict(self.features)

    def finish(self, branch: Branch, after: int, maps: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        end = self.ends[branch == "regression"]
        made = {level: end(torch.relu(one)) for level, one in maps.items()}
        count = next(iter(self.anchors.values())).shape[2]
        rows = {level: one.unflatten(1, (count, -1)).transpose(1, 2) for level, one in made.items()}
        if branch == "classification":
            return {"logits": rows}
        if self.ends[1].out_channels > 4 * count:
            sides = {level: one.unflatten(1, (4, -1)) for level, one in rows.items()}
            return {"box_distribution": sides}
        return {"regression": rows, "boxes": {level: self.anchors[level] + one for level, one in rows.items()}}


def output_of(side: Any, inputs: Any, info: DetectorInfo, sides: int) -> DetectorOutput:
    """What one detector says."""
    sizes = torch.tensor(inputs.case.sizes)
    if info.layout.kind == "region":
        boxes = torch.zeros(len(side.rows), 4, side.rows.shape[1], dtype=torch.float64)
        said = RegionResponse(side.rows, boxes, boxes)
        proposals = [*torch.zeros(len(side.rows), 4).tensor_split(len(inputs.case.sizes))]
        regions = {"main": {"roi": inputs.positive}, "background": {"roi": 1 - inputs.positive}}
        return DetectorOutput(
            side.features,
            sizes,
            info.layout,
            {"roi": side.rows},
            {"roi": boxes},
            {"roi": boxes},
            proposals=proposals,
            respond_at=lambda proposals: said,
            region=lambda name, boxes=None: regions[name],
        )
    count = len(inputs.case.sizes)
    anchors = {level: one[:1].expand(count, -1, -1, -1, -1) for level, one in inputs.teacher.boxes.items()}
    ends = [nn.Conv2d(INPUTS.CHANNELS, inputs.case.anchors * k, 1) for k in (INPUTS.CLASSES, sides)]
    fill(ends, "head")
    return DetectorOutput(
        side.features,
        sizes,
        info.layout,
        side.logits,
        side.regression,
        side.boxes,
        side.distributions,
        region=lambda name, boxes=None: inputs.regions[name] if boxes is None else overlapping(inputs, boxes),
        branches=Head(side.features, anchors, ends),
    )


def overlapping(inputs: Any, boxes: list[Tensor]) -> dict[str, Tensor]:
    """1 at the student's boxes that overlap one of these by an IoU over 0.2: an assignment as simple as any."""
    marked = {}
    for level, there in inputs.student.boxes.items():
        rows = there.detach().flatten(2).transpose(1, 2)
        hits = [(box_iou(one, two) > 0.2).any(1).double() for one, two in zip(rows, boxes, strict=True)]
        marked[level] = torch.stack(hits).view_as(there[:, :1])
    return marked


def fill(modules: list[nn.Module] | list[nn.Conv2d], role: str) -> None:
    """Give the parameters of these modules, in order, numbers that depend on the role alone."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    for index, parameter in enumerate(parameters):
        parameter.data = 0.3 * INPUTS.draw(f"{role} {index}", parameter.numel()).view(parameter.shape)


def info_of(policy: str, inputs: Any) -> DetectorInfo:
    features = {level: FeatureSpec(INPUTS.CHANNELS, stride) for level, stride in inputs.strides.items()}
    if policy in REGION:
        layout = Layout("region", "softmax", INPUTS.CLASSES, 1, "deltas")
        return DetectorInfo(features, layout, regions=("main", "background"))
    layout = Layout("dense", "sigmoid", INPUTS.CLASSES, inputs.case.anchors, "deltas", "a", bins="b")
    return DetectorInfo(
        features, layout, regions=("main", "background", "vlr", "centerness"), branches=BranchSpec(INPUTS.CHANNELS, 3)
    )


def measured(name: str, case: str) -> tuple[float, dict[str, float]]:
    """The loss of a policy on a case, and the length of its gradient on each group of the student's tensors."""
    inputs = INPUTS.make_inputs(case, *LEVELS.get(name, (8, 3)))
    groups = inputs.student.leaves()
    leaves = [tensor.requires_grad_() for tensors in groups.values() for tensor in tensors]
    loss = total_loss(name, inputs)
    gradients = iter(torch.autograd.grad(loss, leaves, allow_unused=True))
    lengths = {}
    for group, tensors in groups.items():
        there = [gradient for gradient in (next(gradients) for _ in tensors) if gradient is not None]
        lengths[group] = sum(gradient.square().sum().item() for gradient in there) ** 0.5
    if name not in CONSTANT:
        return loss.item(), lengths
    inputs.student = inputs.teacher
    return loss.item() - total_loss(name, inputs).item(), lengths


def total_loss(name: str, inputs: Any) -> Tensor:
    policy, info = load_policy(name), info_of(name, inputs)
    distiller = Distiller(policy, student=info, teacher=info, total_steps=10).double()
    distiller.step = INPUTS.STEP
    for level in inputs.strides:
        adapters = [one for key, one in distiller.adapters.items() if key.split(" ")[0] == level]
        fill(adapters, f"adapter {level}")
    for module in distiller.learned.values():
        for level, part in zip(inputs.strides, module.parts, strict=True):
            fill([part], f"learned {level}")
    sides = 4 * INPUTS.BINS if name == "crosskd-gfl" else 4
    student, teacher = (output_of(side, inputs, info, sides) for side in (inputs.student, inputs.teacher))
    if name.startswith("crosskd") and (head := teacher.branches) is not None:
        for branch in ("classification", "regression"):
            teacher = replace(teacher, **head.finish(branch, 3, head.before(branch, 3)))
    targets = [Target(boxes=one, labels=torch.zeros(len(one), dtype=torch.int64)) for one in inputs.boxes]
    return torch.stack([loss.double() for loss in distiller(student, teacher, targets).values()]).sum()


def word_of(policy: Policy) -> str:
    return policy.fidelity.partition(":")[0]


def factor_of(policy: Policy) -> float:
    """How many times the authors' loss a policy states to be."""
    stated = re.match(r"equivalent up to a stated factor: ([0-9.e+-]+) times", policy.fidelity)
    return float(stated[1]) if stated else 1.0


HELD = [name for name in list_policies() if word_of(load_policy(name)) != "approximate"]


@pytest.mark.parametrize("name", HELD)
def test_what_is_called_exact_has_the_loss_and_the_gradient_of_its_authors(name: str) -> None:
    assert name in VALUES, "exact, or a factor, needs values of the authors' code; see benchmarks/reference_values.py"
    factor = factor_of(load_policy(name))
    for case, wanted in VALUES[name].items():
        loss, lengths = measured(name, case)
        assert loss == pytest.approx(factor * wanted["loss"], rel=TOLERANCE), case
        there = {group: length for group, length in lengths.items() if length > 0}
        assert there == pytest.approx({k: factor * v for k, v in wanted["gradient"].items()}, rel=TOLERANCE), case


# What is compared at given masks or margins, or without one of several losses, and so is approximate all the same.
WITHIN_LIMITS = {"ld", "maskd", "cofd"}


@pytest.mark.parametrize("name", sorted(set(VALUES) - set(HELD) - WITHIN_LIMITS))
def test_what_is_called_approximate_though_it_was_compared_differs(name: str) -> None:
    differences = []
    for case, wanted in VALUES[name].items():
        loss, lengths = measured(name, case)
        pairs = [(loss, wanted["loss"]), *((lengths[group], length) for group, length in wanted["gradient"].items())]
        differences += [abs(one / other - 1) for one, other in pairs]
    assert TOLERANCE < max(differences) < 0.35


@pytest.mark.parametrize("name", sorted(WITHIN_LIMITS))
def test_what_can_be_compared_of_an_approximate_policy_is_the_same(name: str) -> None:
    for case, wanted in VALUES[name].items():
        loss, lengths = measured(name, case)
        assert loss == pytest.approx(wanted["loss"], rel=TOLERANCE), case
        for group, length in wanted["gradient"].items():
            assert lengths[group] == pytest.approx(length, rel=TOLERANCE), case


@pytest.mark.parametrize("name", sorted(set(list_policies()) - set(VALUES)))
def test_what_was_not_compared_says_so(name: str) -> None:
    policy = load_policy(name)
    assert word_of(policy) == "approximate"
    assert re.search("not compared|no code|no configuration|as fitnets", policy.fidelity)


def test_every_value_belongs_to_a_shipped_policy_and_every_case_is_there() -> None:
    assert set(VALUES) <= set(list_policies())
    assert all(set(cases) == set(INPUTS.CASES) for cases in VALUES.values())
    assert {record["seed"] for record in RECORDS} == {INPUTS.SEED}
