"""One distillation step between two detectors on random images: does every kind of knowledge reach the student?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from detkds.detectors.base import Detector
from detkds.distiller import Distiller
from detkds.policy import Policy, Term
from detkds.registry import KNOWLEDGE
from detkds.runs.pair import describe_pair
from detkds.structures import Batch, Target
from detkds.training.student import seeded
from detkds.training.teacher import teacher_forward


@dataclass(frozen=True)
class PairCheck:
    """What one step showed.

    Attributes:
        losses: of every term, by its name.
        faults: what is wrong, in words; none where all is well.
    """

    losses: dict[str, float]
    faults: tuple[str, ...]


def check_pair_step(student: Detector, teacher: Detector, *, side: int = 128, seed: int = 0) -> PairCheck:
    """Take one step with one term of every kind of knowledge that the pair offers.

    It is at fault where a loss is not finite, a term sends no gradient to the student or any to the teacher, a detector
    runs more than once, or the teacher is changed.

    Args:
        student, teacher: left as they are but for gradients.
        side: pixels of the random images' sides.
    """
    offered = describe_pair(student.info, teacher.info)["offered"]
    policy = Policy([_term(kind) for kind in offered])
    distiller = Distiller(policy, student=student, teacher=teacher, seed=seed)
    runs = {"student": 0, "teacher": 0}

    def count(name: str) -> Any:
        def counted(*_: Any) -> None:
            runs[name] += 1

        return counted

    hooks = [student.register_forward_hook(count("student")), teacher.register_forward_hook(count("teacher"))]
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    batch = random_batch(len(student.class_names), side, seed)
    faults: list[str] = []
    found: dict[str, float] = {}
    try:
        with seeded(seed, torch.device("cpu")):
            answer = teacher_forward(teacher, batch)
            output = student.train()(batch)
            losses = distiller.train()(output, answer, batch.targets)
        task = {f"task/{name}": loss for name, loss in output.losses.items()}
        for name, loss in {**task, **losses}.items():
            found[name] = loss.item()
            if not torch.isfinite(loss):
                faults.append(f"{name} is {loss.item()}")
        parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        for name, loss in losses.items():
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            if not any(bool(gradient.abs().sum() > 0) for gradient in gradients if gradient is not None):
                faults.append(f"{name} sends no gradient to the student")
        torch.stack([*losses.values(), *task.values()]).sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
    faults += [f"the {name} ran {number} times" for name, number in runs.items() if number != 1]
    if any(parameter.grad is not None for parameter in teacher.parameters()):
        faults.append("gradient reached the teacher")
    if any(not torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items()):
        faults.append("the teacher was changed")
    return PairCheck(found, tuple(faults))


def random_batch(classes: int, side: int, seed: int) -> Batch:
    """Two images, the second not as high, with three objects and one, boxes and rectangular masks."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[0.1, 0.1, 0.4, 0.5], [0.5, 0.5, 0.95, 0.7], [0.05, 0.55, 0.3, 0.7]]) * side
    targets = []
    for own in (boxes, boxes[:1]):
        masks = torch.zeros(len(own), side, side, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, own.round().int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
        targets.append(Target(boxes=own, labels=torch.arange(len(own)) % classes, masks=masks))
    images = torch.rand(2, 3, side, side, generator=generator)
    sizes = torch.tensor([[side, side], [side - side // 4, side]])
    images[1, :, side - side // 4 :] = 0
    return Batch(images, sizes, (0, 1), targets)


def _term(kind: str) -> Term:
    reads = KNOWLEDGE.build(kind).yields
    return Term(kind, ("decode",), "giou") if reads == "regression" else Term(kind, (), "l2")
