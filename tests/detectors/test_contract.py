"""What every detector built on a body keeps; each registered one that has ``neck_channels`` is put through it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from detkds.detectors import build_detector
from detkds.errors import UserError
from detkds.registry import DETECTORS
from detkds.structures import Batch, Target
from detkds.testing.detectors import CHECKS, Build, inherits_all_but_the_body, predicts_inside_the_images, run, total

NAMES = [name for name in DETECTORS if "neck_channels" in inspect.signature(DETECTORS[name]).parameters]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_check(name: str, small: Build, check: Callable[[Build], None]) -> None:
    check(partial(small, name))


@pytest.mark.parametrize(
    ("method", "spoil", "check"),
    [
        ("predict", lambda found: [replace(one, boxes=one.boxes + 99) for one in found], predicts_inside_the_images),
        ("forward", lambda output: replace(output, features=dict(reversed(output.features.items()))), CHECKS[0]),
        ("inherit", lambda names: names[1:], inherits_all_but_the_body),
    ],
)
def test_a_detector_that_breaks_its_contract_is_caught(small: Build, method: str, spoil: Any, check: Any) -> None:
    def build(**options: Any) -> Any:
        detector = small("retinanet", score_threshold=0.0, **options)
        own = getattr(detector, method)
        setattr(detector, method, lambda given: spoil(own(given)))
        return detector

    with pytest.raises(AssertionError):
        check(build)


def test_levels_are_named_by_their_stride_and_distributions_mean_sides(name: str, small: Build, batch: Batch) -> None:
    detector = small(name).train()
    output, layout = run(detector, batch), detector.info.layout
    assert all(spec.stride == 2 ** int(level[1:]) for level, spec in detector.info.features.items())
    for level, logits in output.box_distribution.items():
        sides, bins = output.regression[level], torch.arange(float(logits.shape[2])).view(-1, 1, 1, 1)
        assert layout.regression == "sides" and list(output.box_distribution) == list(output.features)
        assert torch.allclose((logits.softmax(2) * bins).sum(2), sides, atol=1e-5)
    regions = sum(map(len, output.proposals or []))
    assert all(len(logits) == regions for logits in output.logits.values()) or layout.kind == "dense"


def test_gradient_reaches_all_parts(name: str, small: Build, batch: Batch) -> None:
    detector = small(name).train()
    total(run(detector, batch)).backward()
    silent = [n for n, p in detector.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert silent == []
    body = [p for n, p in detector.named_parameters() if detector.is_backbone(n)]
    assert body and all(p.grad is not None and p.grad.abs().sum() > 0 for p in body)


def test_body_and_head_run_once(name: str, small: Build, batch: Batch) -> None:
    detector = small(name)
    calls: list[str] = []
    for part in ("model.backbone", "model.head", "model.rpn.head", "model.roi_heads.box_predictor"):
        try:
            module = detector.get_submodule(part)
        except AttributeError:
            continue
        module.register_forward_hook(lambda *_, part=part: calls.append(part))
    run(detector.train(), batch)
    assert len(calls) >= 2 and len(calls) == len(set(calls))
    calls.clear()
    with torch.no_grad():
        detector.eval().predict(batch)
    assert len(calls) >= 2 and len(calls) == len(set(calls))


def test_predictions_are_as_many_as_are_asked_for(name: str, small: Build, batch: Batch) -> None:
    detector = small(name, score_threshold=0.0, max_detections=7).eval()
    with torch.no_grad():
        assert [len(detections.boxes) for detections in detector.predict(batch)] == [7, 7]
    predicts_inside_the_images(partial(small, name, score_threshold=0.0, max_detections=7))


def test_padding_content_and_neighbors_do_not_matter(name: str, small: Build, batch: Batch) -> None:
    detector = small(name).eval()
    sizes = torch.tensor([[70, 50], [128, 128]])
    noisy = batch.images.clone()
    noisy[0, :, 70:] = 0.7
    with torch.no_grad():
        plain = detector(replace(batch, image_sizes=sizes))
        other = detector(replace(batch, images=noisy, image_sizes=sizes))
    assert all(torch.equal(plain.features[level], other.features[level]) for level in plain.features)


def test_crowd_regions_are_not_background(name: str, small: Build, batch_of: Callable[..., Batch]) -> None:
    boxes = [[[70, 70, 120, 120]], [[8, 8, 40, 40]]]
    plain, crowded = batch_of(boxes), batch_of(boxes)
    assert plain.targets is not None and crowded.targets is not None
    empty, everything = torch.zeros(0, 4), torch.tensor([[-999.0, -999, 999, 999]])
    for target, crowd in zip(crowded.targets, (empty, everything), strict=True):
        target["crowd_boxes"] = crowd
    for target in plain.targets:
        target["crowd_boxes"] = empty
    key = "loss_objectness" if "loss_objectness" in run(small(name).train(), plain).losses else "classification"
    detector = small(name).train()
    without, with_crowd = run(detector, plain), run(small(name).train(), crowded)
    assert with_crowd.losses[key] != without.losses[key]
    assert torch.isfinite(total(with_crowd))

    only_crowd = Target(boxes=empty, labels=torch.zeros(0, dtype=torch.int64), crowd_boxes=everything)
    silent = run(small(name).train(), replace(plain, targets=[only_crowd, only_crowd]))
    assert {k: float(v.detach()) for k, v in silent.losses.items()} == dict.fromkeys(silent.losses, 0.0)
    total(silent).backward()


def test_inherit_copies_neck_and_head_only(name: str, small: Build, batch: Batch) -> None:
    teacher, student = small(name, backbone="narrow16", seed=1), small(name, seed=2)
    before = copy.deepcopy(student.state_dict())
    copied = set(student.inherit(teacher))
    theirs = teacher.state_dict()
    assert copied and not any(student.is_backbone(one) for one in copied)
    for one, tensor in student.state_dict().items():
        expected = theirs[one] if one in copied else before[one]
        assert torch.equal(tensor, expected), one
    kept = [one for one in before if not student.is_backbone(one) and one not in copied]
    assert kept and all("fpn.inner_blocks" in one and one.endswith("weight") for one in kept)


def test_is_backbone_names_the_body(name: str, small: Build) -> None:
    detector = small(name)
    body = {f"model.backbone.body.{one}" for one in detector.get_submodule("model.backbone.body").state_dict()}
    assert {one for one in detector.state_dict() if detector.is_backbone(one)} == body


def test_normalization_and_helpers_are_not_in_the_weights(name: str, small: Build) -> None:
    detector = small(name)
    assert all(one.startswith("model.") for one in detector.state_dict())
    assert set(detector.home_state_dict()) == {one.removeprefix("model.") for one in detector.state_dict()}


def test_autocast_changes_losses_little(name: str, small: Build, batch: Batch) -> None:
    detector = small(name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = run(detector, batch)
    exact = run(small(name).train(), batch)
    for key, loss in exact.losses.items():
        # a rounding may move one of a stage's few positives across its IoU, which is a part of that stage's loss
        slack = 0.1 if name.startswith("cascade") else 0.05
        assert float(output.losses[key].detach()) == pytest.approx(float(loss.detach()), rel=0.2, abs=slack), key


def test_a_few_steps_lower_the_loss(name: str, small: Build, batch: Batch) -> None:
    detector = small(name).train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    values = []
    for _ in range(12):
        loss = total(run(detector, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.75 * values[0]


def test_faults_are_listed_at_once(name: str) -> None:
    with pytest.raises(UserError) as caught:
        build_detector(name, ["a", "a"], backbone="narrow8", neck_channels=0, score_threshold=3)
    text = str(caught.value)
    assert all(word in text for word in ("class_names", "neck_channels", "score_threshold")), text
    with pytest.raises(UserError) as caught:
        build_detector(name, ["a"], bckbone="narrow8", neck_chanels=8)
    assert "'backbone'" in str(caught.value) and "'neck_channels'" in str(caught.value)
    with pytest.raises(UserError, match="resnet50"):
        build_detector(name, ["a"], backbone="resnet5o")
    with pytest.raises(UserError, match="class_names"):
        build_detector(name, "ab", backbone="narrow8")


def test_columns_without_a_class_have_no_name_of_their_own(name: str, small: Build) -> None:
    """As torchvision publishes its lists of names, for a file of which some columns were never trained."""
    detector = small(name, class_names=("ant", "N/A", "bee", "N/A"))
    assert detector.info.layout.num_classes == 4
    student = small(name, class_names=("bee", "ant"))
    first = int(detector.info.layout.activation == "softmax")
    assert student.info.layout.mismatch(detector.info.layout) is None
    assert student.info.layout.columns(detector.info.layout) == [*range(first), first + 2, first]


def test_nothing_is_inherited_from_a_detector_of_other_levels(small: Build) -> None:
    """The names of a pyramid's parts are numbers: its first lateral is p2's in one family and p3's in another."""
    assert small("retinanet").inherit(small("faster_rcnn", seed=1)) == []
    copied = small("retinanet").inherit(small("fcos", seed=1))
    assert copied and all(name.startswith("model.backbone.fpn.") for name in copied)
