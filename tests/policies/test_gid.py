"""GID against its loss: instances chosen one by one, pooled by torchvision, their distances in a loop."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou_loss, roi_align

from detkds import Distiller, load_policy
from detkds.detectors import build_detector
from detkds.knowledge.general_instances import general_instances
from detkds.structures import Batch, KnowledgeInput, Target


def instances(case, image, valid):
    """Greedily the positions of the largest difference, IoU with better ones at most 0.3, ten of them."""
    found = []
    for level, stride in (("p3", 8), ("p4", 16)):
        ours, theirs = (torch.sigmoid(side.logits[level][image]) for side in (case.student, case.teacher))
        _, anchors, height, width = ours.shape
        for a in range(anchors):
            for i in range(height):
                for j in range(width):
                    if valid(image, i, j, stride):
                        gaps = [abs(theirs[k, a, i, j] - ours[k, a, i, j]).item() for k in range(3)]
                        k = gaps.index(max(gaps))
                        side = case.teacher if theirs[k, a, i, j] > ours[k, a, i, j] else case.student
                        found.append((max(gaps), side.boxes[level][image, :, a, i, j]))
    found.sort(key=lambda one: -one[0])
    kept: list[torch.Tensor] = []
    for _, box in found:
        if len(kept) < 10 and all(box_iou(box[None], other[None]).item() <= 0.3 for other in kept):
            kept.append(box)
    return torch.stack(kept)


def inside(case, boxes, level, image, a, i, j):
    """Whether the student's box there overlaps one of these a little: an assignment as simple as any."""
    return box_iou(case.student.boxes[level][image, :, a, i, j][None], boxes).max().item() > 0.2


def marked(case, name, boxes=None):
    """Where the student sees general instances."""
    assert name == "main" and boxes is not None
    weights = {level: torch.zeros_like(logits[:, :1]) for level, logits in case.student.logits.items()}
    for level, weight in weights.items():
        for image, _, a, i, j in product(*map(range, weight.shape)):
            weight[image, 0, a, i, j] = inside(case, boxes[image], level, image, a, i, j)
    return weights


def test_features_and_relations(case, valid):
    case.student.region = partial(marked, case)
    losses, _ = case.distil("gid")
    boxes = [instances(case, image, valid) for image in range(2)]
    assert sum(map(len, boxes)) >= 6
    # All instances are smaller than 224 pixels by more than one level, so that the finest level has them.
    crops = [
        roi_align(side.features["p3"], boxes, 10, 1 / 8, sampling_ratio=2, aligned=True).flatten(1)
        for side in (case.student, case.teacher)
    ]
    ours, theirs = (crop.tolist() for crop in crops)
    count = len(ours)
    feature = sum(
        (a - b) ** 2 for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)
    )

    def relations(rows):
        distances = {(i, j): math.dist(rows[i], rows[j]) for i in range(count) for j in range(count) if i != j}
        mean = sum(distances.values()) / len(distances)
        return {pair: value / mean for pair, value in distances.items()}

    relation = 0.0
    student, teacher = relations(ours), relations(theirs)
    for pair, value in student.items():
        gap = abs(value - teacher[pair])
        relation += 0.5 * gap**2 if gap < 1 else gap - 0.5
    responses = [0.0, 0.0]
    for level, stride in (("p3", 8), ("p4", 16)):
        values: list[tuple[float, float]] = []
        for image, a, i, j in product(range(2), range(2), *[range(64 // stride)] * 2):
            if not (valid(image, i, j, stride) and inside(case, boxes[image], level, image, a, i, j)):
                continue
            sides = (case.student, case.teacher)
            q, p = (torch.sigmoid(side.logits[level][image, :, a, i, j]).tolist() for side in sides)
            entropy = sum(
                t * math.log(t / s) + (1 - t) * math.log((1 - t) / (1 - s)) for s, t in zip(q, p, strict=True)
            )
            box = [side.boxes[level][image, :, a, i, j] for side in sides]
            values.append((entropy, generalized_box_iou_loss(*box).item()))
        for part, found in enumerate(zip(*values, strict=True)):
            responses[part] += sum(found) / len(found)
    assert losses == pytest.approx([5e-4 * feature / count, 40 * relation / len(student), *responses], rel=1e-5)


@torch.no_grad()
def test_responses_of_regions_are_those_of_proposals_that_overlap_an_instance():
    """Of a real pair of two-stage detectors: rows found one by one, their divergence and their boxes averaged."""
    options = {"backbone": "narrow8", "neck_channels": 16, "representation": 32, "rpn_post_nms": 30}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student, teacher = (build_detector("faster_rcnn", ("a", "b", "c"), **options) for _ in range(2))
        target = Target(boxes=torch.tensor([[10.0, 12.0, 44.0, 50.0]]), labels=torch.tensor([1]))
        batch = Batch(torch.rand(2, 3, 96, 96), torch.tensor([[96, 96], [96, 80]]), (0, 1), [target, target])
        output, answers = student.train()(batch), teacher.eval()(batch)
    policy = load_policy("gid-softmax")
    losses = list(Distiller(policy, student=student, teacher=teacher)(output, answers, batch.targets).values())

    assert output.proposals is not None and answers.respond_at is not None
    theirs = answers.respond_at(output.proposals)
    asked = replace(answers, logits={"roi": theirs.logits}, boxes={"roi": theirs.boxes})
    found = general_instances(KnowledgeInput(output, asked, None, {"p2": 4}))
    owners = [image for image, one in enumerate(output.proposals) for _ in one]
    divergence, overlap = [], []
    for row, (image, proposal) in enumerate(zip(owners, torch.cat(output.proposals), strict=True)):
        if box_iou(proposal[None], found[image]).max().item() < 0.5:
            continue
        p, q = (side.softmax(0).tolist() for side in (theirs.logits[row], output.logits["roi"][row]))
        divergence.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        column = 1 + max(range(3), key=lambda k: p[k + 1])
        boxes = (side[row, :, column] for side in (output.boxes["roi"], theirs.boxes))
        overlap.append(generalized_box_iou_loss(*boxes).item())
    assert 0 < len(divergence) < len(owners)
    expected = [sum(values) / len(values) for values in (divergence, overlap)]
    assert [loss.item() for loss in losses[2:]] == pytest.approx(expected, rel=1e-4)
