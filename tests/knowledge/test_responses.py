"""Logits and boxes: padding weighs nothing, the teacher's confidence weighs boxes, refusals say why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from detkds.knowledge.general_instances import general_instances
from detkds.knowledge.global_ import Global
from detkds.knowledge.localization import Localization
from detkds.knowledge.logits import Logits
from detkds.knowledge.responses import confidence
from detkds.structures import DetectorInfo, DetectorOutput, FeatureSpec, KnowledgeInput, Layout

REGION = Layout("region", "softmax", num_classes=2, anchors=1, regression="deltas")


def region_output(seed: int) -> DetectorOutput:
    generator = torch.Generator().manual_seed(seed)
    regression = torch.randn(5, 4, 3, generator=generator)
    return DetectorOutput(
        features={},
        image_sizes=torch.tensor([[64, 64]]),
        layout=REGION,
        logits={"roi": torch.randn(5, 3, generator=generator)},
        regression={"roi": regression},
        boxes={"roi": 10 * regression},
    )


def test_global_gives_the_maps_of_every_level(output, strides):
    student, teacher = output(0), output(1)
    pairs = list(Global()(KnowledgeInput(student, teacher, None, strides)))
    assert [pair.student is student.features[level] for pair, level in zip(pairs, strides, strict=True)] == [True] * 2
    assert all(pair.weight is None and pair.kind == "feature" and pair.factor == 1 for pair in pairs)
    assert len(list(Global()(KnowledgeInput(student, teacher, None, {"p4": 16})))) == 1


def test_padding_weighs_nothing(output, strides):
    for knowledge in (Logits(), Localization()):
        for pair, side, valid in zip(
            knowledge(KnowledgeInput(output(0), output(1), None, strides)), (8, 4), ((5, 7), (3, 4)), strict=True
        ):
            assert pair.weight.shape == (2, 1, 2, side, side)
            inside = torch.zeros(side, side, dtype=torch.bool)
            inside[: valid[0], : valid[1]] = True
            assert (pair.weight[0] > 0).all()
            assert torch.equal(pair.weight[1] > 0, inside.expand(1, 2, side, side))


def test_logits_weigh_valid_anchors_alike(output, strides):
    student, teacher = output(0), output(1)
    for level, pair in zip(strides, Logits()(KnowledgeInput(student, teacher, None, strides)), strict=True):
        assert pair.kind == "logits" and set(pair.weight.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(pair.student, student.logits[level]) and torch.equal(pair.teacher, teacher.logits[level])


def test_boxes_weigh_by_the_teachers_confidence(output, strides):
    student, teacher = output(0), output(1)
    teacher.logits["p3"].requires_grad_()
    for level, pair in zip(strides, Localization()(KnowledgeInput(student, teacher, None, strides)), strict=True):
        expected = 1 / (1 + torch.exp(-teacher.logits[level].detach().amax(1, keepdim=True)))
        torch.testing.assert_close(pair.weight[0], expected[0])
        assert not pair.weight.requires_grad and pair.kind == "regression"
        assert torch.equal(pair.student, student.regression[level])
        assert pair.decoded is not None and torch.equal(pair.decoded[1], teacher.boxes[level])


def test_region_logits_are_rows(strides):
    [pair] = Logits()(KnowledgeInput(region_output(0), region_output(1), None, strides))
    assert pair.student.shape == (5, 3) and pair.weight is None


def test_region_boxes_are_read_at_the_teachers_likeliest_class(strides):
    student, teacher = region_output(0), region_output(1)
    [pair] = Localization()(KnowledgeInput(student, teacher, None, strides))
    for row in range(5):
        label = 1 + int(teacher.logits["roi"][row, 1:].argmax())
        assert torch.equal(pair.student[row], student.regression["roi"][row, :, label])
        assert torch.equal(pair.teacher[row], teacher.regression["roi"][row, :, label])
        assert torch.equal(pair.decoded[0][row], student.boxes["roi"][row, :, label])
        share = torch.softmax(teacher.logits["roi"][row], 0)[1:].max()
        assert pair.weight[row].item() == pytest.approx(share.item())


def test_no_regions_give_empty_pairs(strides):
    def emptied(output: DetectorOutput) -> DetectorOutput:
        cut = {name: {"roi": getattr(output, name)["roi"][:0]} for name in ("logits", "regression", "boxes")}
        return replace(output, **cut)

    for knowledge in (Logits(), Localization()):
        [pair] = knowledge(KnowledgeInput(emptied(region_output(0)), emptied(region_output(1)), None, strides))
        assert len(pair.student) == 0 and pair.mean(pair.student) == 0


def test_confidence_of_sigmoid_and_softmax(output):
    assert confidence(output(0), "p3").shape == (2, 1, 2, 8, 8)
    logits = torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    regions = replace(region_output(0), logits={"roi": logits})
    low, high = confidence(regions, "roi").flatten().tolist()
    assert low == pytest.approx(1 / (5.0**0 * 2 + torch.e**5), rel=1e-5) and high > 0.98


def info(layout: Layout) -> DetectorInfo:
    return DetectorInfo({"p3": FeatureSpec(8, 8)}, layout)


DENSE = Layout("dense", "sigmoid", 3, 2, "deltas", "a")


@pytest.mark.parametrize(
    ("changes", "logits", "boxes"),
    [
        ({}, None, None),
        ({"anchors": 3}, "anchors differs: student 2, teacher 3", "anchors differs: student 2, teacher 3"),
        ({"num_classes": 4}, "num classes differs: student 3, teacher 4", "num classes differs: student 3, teacher 4"),
        ({"activation": "softmax"}, "activation differs: student sigmoid, teacher softmax", "activation differs"),
        ({"anchor_key": "b"}, None, "anchor key differs: student a, teacher b"),
        ({"regression": "sides"}, None, "regression differs: student deltas, teacher sides"),
        ({"regression": "none"}, None, "one of the detectors offers no box regression"),
        ({"kind": "none"}, "one of the detectors offers no responses", "one of the detectors offers no responses"),
        ({"kind": "region"}, "kind differs: student dense, teacher region", "kind differs"),
    ],
)
def test_refusals_say_why(changes: dict, logits: str | None, boxes: str | None):
    student, teacher = info(DENSE), info(replace(DENSE, **changes))
    assert Global().refusal(student, teacher) is None
    for knowledge, expected in ((Logits(), logits), (Localization(), boxes)):
        reason = knowledge.refusal(student, teacher)
        assert reason is None if expected is None else reason is not None and reason.startswith(expected)


# ---------------------------------------------------------------------------------------------- weights and divisors


def marked(output: DetectorOutput) -> DetectorOutput:
    """Two positives in the first image and none in the second; around, one anchor of weight 0.25."""
    main = {level: torch.zeros_like(value[:, :1]) for level, value in output.logits.items()}
    main["p3"][0, 0, 1, 2, 3] = main["p4"][0, 0, 0, 1, 1] = 1
    vlr = {level: 0.25 * value.roll(1, -1) for level, value in main.items()}
    background = {level: (value == 0).float() for level, value in main.items()}
    background["p3"][0, 0, 0, 0, 0] = 0  # left out of the losses
    regions = {"main": main, "vlr": vlr, "background": background}

    def region(name: str, boxes: Sequence[torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        if boxes is None:
            return regions[name]
        return {level: torch.full_like(value, len(torch.cat(list(boxes)))) for level, value in main.items()}

    return replace(output, region=region)


@pytest.mark.parametrize("knowledge", [Logits, Localization])
def test_weights_by_difference_and_by_region(knowledge: type, output, strides):
    student, teacher = marked(output(0)), output(1)

    def weights(name: str) -> torch.Tensor:
        return next(iter(knowledge(weights=name)(KnowledgeInput(student, teacher, None, strides)))).weight

    p, q = (side.logits["p3"][0, :, 1, 2, 3].sigmoid() for side in (teacher, student))
    assert weights("difference")[0, 0, 1, 2, 3].item() == pytest.approx((p - q).abs().max().item())
    assert weights("positive")[0, 0, 1, 2, 3] == 1 and weights("positive").sum() == 1
    assert weights("main")[0, 0, 1, 2, 3].item() == pytest.approx(q.max().item())
    assert weights("vlr")[0, 0, 1, 2, 4] == 0.25 and weights("vlr").sum() == 0.25
    assert weights("negative")[0].sum() == 2 * 8 * 8 - 2
    assert weights("cells") is None
    assert (weights("difference")[1, :, :, 5:] == 0).all() and not weights("difference").requires_grad


@pytest.mark.parametrize("knowledge", [Logits, Localization])
def test_general_instances_weigh_where_the_student_would_see_them(knowledge: type, output, strides):
    student, teacher = marked(output(0)), output(1)
    found = sum(map(len, general_instances(KnowledgeInput(student, teacher, None, strides))))
    pair = next(iter(knowledge(weights="general")(KnowledgeInput(student, teacher, None, strides))))
    assert found > 2 and pair.weight.unique().tolist() == [0, found]  # 0 on padding
    teacher_without = replace(DENSE, regression="none")
    offered = replace(info(DENSE), regions=("main",))
    assert "general instances need the boxes" in (Logits("general").refusal(offered, info(teacher_without)) or "")
    assert "weights=general needs a student that marks" in (Logits("general").refusal(info(DENSE), info(DENSE)) or "")


@pytest.mark.parametrize("knowledge", [Logits, Localization])
def test_a_cell_counts_once_by_its_peak(knowledge: type, output, strides):
    student, teacher = output(0), output(1)
    pair = next(iter(knowledge(weights="peak", per="cell")(KnowledgeInput(student, teacher, None, strides))))
    peak = torch.sigmoid(teacher.logits["p3"].flatten(1, 2).amax(1))
    torch.testing.assert_close(pair.weight[0, 0, 0], peak[0])
    assert torch.equal(pair.weight[:, :, 0], pair.weight[:, :, 1])
    assert pair.divisor.item() == pytest.approx(pair.weight[:, :, 0].sum().item())
    [rows] = knowledge(weights="peak", per="cell")(KnowledgeInput(region_output(0), region_output(1), None, strides))
    assert rows.divisor is None and torch.equal(rows.weight, confidence(region_output(1), "roi"))


def test_positives_of_regions_are_counted_image_by_image(strides):
    student, teacher = region_output(0), region_output(1)
    student.proposals = [torch.zeros(3, 4), torch.zeros(2, 4)]
    student.region = lambda name, boxes=None: {"roi": torch.tensor([[1.0], [1.0], [0.0], [0.0], [0.0]])}
    [pair] = Logits(per="positive")(KnowledgeInput(student, teacher, None, strides))
    assert pair.divisor == 3


@pytest.mark.parametrize("knowledge", [Logits, Localization])
def test_sums_are_divided_by_positives_of_which_an_image_has_one_at_least(knowledge: type, output, strides):
    student, teacher = marked(output(0)), output(1)
    for per, expected in (("positive", 3), ("batch", 1), ("weight", None)):
        pairs = list(knowledge(per=per)(KnowledgeInput(student, teacher, None, strides)))
        assert [pair.divisor for pair in pairs] == [expected] * 2


def test_regions_need_a_pass_with_targets(output, strides):
    for knowledge in (Logits(per="positive"), Logits(weights="positive"), Localization(weights="vlr")):
        with pytest.raises(ValueError, match="marks no region"):
            list(knowledge(KnowledgeInput(output(0), output(1), None, strides)))


def test_distributions_travel_where_their_bins_agree(output, strides):
    def with_bins(one: DetectorOutput, bins: str) -> DetectorOutput:
        logits = {level: torch.stack([value, -value], 2) for level, value in one.regression.items()}
        return replace(one, layout=replace(one.layout, bins=bins), box_distribution=logits)

    student = with_bins(output(0), "0 to 1")
    [pair, _] = Localization()(KnowledgeInput(student, with_bins(output(1), "0 to 1"), None, strides))
    assert pair.distributions is not None and pair.distributions[0] is student.box_distribution["p3"]
    for other in (with_bins(output(1), "0 to 2"), output(1)):
        assert all(pair.distributions is None for pair in Localization()(KnowledgeInput(student, other, None, strides)))
