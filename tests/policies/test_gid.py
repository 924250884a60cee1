"""GID of two-stage detectors: responses of the proposals that overlap a general instance, in a loop."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_iou

from detkds import Distiller, load_policy
from detkds.detectors import build_detector
from detkds.knowledge.general_instances import general_instances
from detkds.structures import Batch, KnowledgeInput, Target


@torch.no_grad()
def test_responses_of_regions_are_those_of_proposals_that_overlap_an_instance():
    """Of a real pair of two-stage detectors: rows found one by one, their divergence and their deltas averaged."""
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
    divergence, deltas = [], []
    for row, (image, proposal) in enumerate(zip(owners, torch.cat(output.proposals), strict=True)):
        if box_iou(proposal[None], found[image]).max().item() < 0.5:
            continue
        p, q = (side.softmax(0).tolist() for side in (theirs.logits[row], output.logits["roi"][row]))
        divergence.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        column = 1 + max(range(3), key=lambda k: p[k + 1])
        numbers = (side[row, :, column].tolist() for side in (output.regression["roi"], theirs.regression))
        deltas.append(sum(abs(a - b) for a, b in zip(*numbers, strict=True)))
    assert 0 < len(divergence) < len(owners)
    expected = [weight * sum(values) / len(values) for weight, values in ((0.1, divergence), (1, deltas))]
    assert [loss.item() for loss in losses[2:]] == pytest.approx(expected, rel=1e-4)
