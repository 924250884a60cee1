"""What every detector built on a body keeps; each registered one that has ``neck_channels`` is put through it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detkds.detectors import Detector, build_detector
from detkds.errors import UserError
from detkds.registry import DETECTORS
from detkds.structures import Batch, DetectorOutput, Target

NAMES = [name for name in DETECTORS if "neck_channels" in inspect.signature(DETECTORS[name]).parameters]
Build = Callable[..., Detector]
_STORED = ("features", "logits", "regression", "box_distribution")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _run(detector: Detector, batch: Batch) -> DetectorOutput:
    """A pass whose draws are reproducible."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return detector(batch)


def _total(output: DetectorOutput) -> Tensor:
    return torch.stack(list(output.losses.values())).sum()


def test_output_has_the_announced_levels_and_shapes(name: str, small: Build, batch: Batch) -> None:
    detector = small(name).train()
    output = _run(detector, batch)
    layout, classes = detector.info.layout, len(detector.class_names)
    assert output.layout == layout and layout.num_classes == classes == 3
    for level, spec in detector.info.features.items():
        side = -(-128 // spec.stride)
        assert spec.stride == 2 ** int(level[1:])
        assert tuple(output.features[level].shape) == (2, spec.channels, side, side)
    assert list(output.features) == list(detector.info.features)
    if layout.kind == "dense":
        for level, features in output.features.items():
            grid = features.shape[-2:]
            assert output.logits[level].shape == (2, classes, layout.anchors, *grid)
            assert output.regression[level].shape == output.boxes[level].shape == (2, 4, layout.anchors, *grid)
        for level, logits in output.box_distribution.items():
            sides, bins = output.regression[level], torch.arange(float(logits.shape[2])).view(-1, 1, 1, 1)
            assert layout.regression == "sides" and list(output.box_distribution) == list(output.features)
            assert torch.allclose((logits.softmax(2) * bins).sum(2), sides, atol=1e-5)
        assert output.proposals is None and output.respond_at is None
    else:
        assert output.proposals is not None
        regions = sum(len(proposals) for proposals in output.proposals)
        assert output.logits["roi"].shape == (regions, classes + 1)
        assert output.regression["roi"].shape == output.boxes["roi"].shape == (regions, 4, classes + 1)


def test_gradient_reaches_all_parts(name: str, small: Build, batch: Batch) -> None:
    detector = small(name).train()
    _total(_run(detector, batch)).backward()
    silent = [n for n, p in detector.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert silent == []
    body = [p for n, p in detector.named_parameters() if detector.is_backbone(n)]
    assert body and all(p.grad is not None and p.grad.abs().sum() > 0 for p in body)


def test_frozen_teacher_gives_no_losses_and_ignores_targets(name: str, small: Build, batch: Batch) -> None:
    teacher = small(name).eval().requires_grad_(False)
    with torch.no_grad():
        with_targets, without = teacher(batch), teacher(replace(batch, targets=None))
    assert with_targets.losses == {} and without.losses == {}
    for level in with_targets.features:
        assert torch.equal(with_targets.features[level], without.features[level])
    for level in with_targets.logits:
        assert torch.equal(with_targets.logits[level], without.logits[level])


def test_student_without_targets_gives_responses_but_no_losses(name: str, small: Build, batch: Batch) -> None:
    output = _run(small(name).train(), replace(batch, targets=None))
    assert output.losses == {} and output.logits and output.boxes


def test_marks_the_regions_it_names(name: str, small: Build, batch: Batch) -> None:
    detector = small(name).train()
    output = _run(detector, batch)
    assert _run(detector, replace(batch, targets=None)).region is None
    for region in detector.info.regions:
        assert output.region is not None
        marked = output.region(region)
        assert {level: (len(one), 1, *one.shape[2:]) for level, one in output.logits.items()} == {
            level: tuple(weights.shape) for level, weights in marked.items()
        }
        assert all((weights >= 0).all() and (weights <= 1).all() for weights in marked.values())
        assert any(weights.any() for weights in marked.values())
        assert not any(weights.requires_grad for weights in marked.values())
        assert batch.targets is not None
        objects = output.region(region, [target["boxes"] for target in batch.targets])
        assert all(torch.equal(objects[level], weights) for level, weights in marked.items())
        nothing = output.region(region, [torch.zeros(0, 4) for _ in batch.targets])
        assert all(weights.all() if region == "background" else not weights.any() for weights in nothing.values())


def test_body_and_head_run_once(name: str, small: Build, batch: Batch) -> None:
    detector = small(name)
    calls: list[str] = []
    for part in ("model.backbone", "model.head", "model.rpn.head", "model.roi_heads.box_predictor"):
        try:
            module = detector.get_submodule(part)
        except AttributeError:
            continue
        module.register_forward_hook(lambda *_, part=part: calls.append(part))
    _run(detector.train(), batch)
    assert len(calls) >= 2 and len(calls) == len(set(calls))
    calls.clear()
    with torch.no_grad():
        detector.eval().predict(batch)
    assert len(calls) >= 2 and len(calls) == len(set(calls))


@pytest.mark.parametrize("boxes", [[[], []], [[[3, 3, 40, 50]], []], [[[0, 0, 96, 96]], [[1, 1, 3, 2.5]]]])
def test_images_without_or_with_one_object(
    name: str, small: Build, batch_of: Callable[..., Batch], boxes: list
) -> None:
    detector = small(name).train()
    output = _run(detector, batch_of(boxes, (96, 96)))
    assert all(torch.isfinite(loss) for loss in output.losses.values())
    _total(output).backward()
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


def test_boxes_without_area_do_no_harm(name: str, small: Build, batch_of: Callable[..., Batch]) -> None:
    boxes = [[[10, 10, 60, 60]], [[20, 20, 50, 70]]]
    sound = _run(small(name).train(), batch_of(boxes, (96, 96)))
    boxes = [[[10, 10, 60, 60], [5, 5, 5, 20]], [[20, 20, 50, 70], [8, 9, 30, 9]]]
    mixed = _run(small(name).train(), batch_of(boxes, (96, 96)))
    for key, loss in sound.losses.items():
        assert torch.equal(loss, mixed.losses[key]), key


@pytest.mark.parametrize("size", [(97, 131), (45, 33)])
def test_odd_sizes(name: str, small: Build, batch_of: Callable[..., Batch], size: tuple[int, int]) -> None:
    detector = small(name, score_threshold=0.0).train()
    batch = batch_of([[[2, 2, 30, 40]], []], size)
    assert torch.isfinite(_total(_run(detector, batch)))
    with torch.no_grad():
        found = detector.eval().predict(batch)
    for one in found:
        assert len(one.boxes) and (one.boxes >= 0).all()
        assert (one.boxes[:, [0, 2]] <= size[1]).all() and (one.boxes[:, [1, 3]] <= size[0]).all()


def test_predictions_stay_in_the_valid_area_best_first(name: str, small: Build, batch: Batch) -> None:
    detector = small(name, score_threshold=0.0, max_detections=7).eval()
    images = batch.images.clone()
    images[0, :, 70:], images[0, :, :, 50:] = 0, 0
    sizes = torch.tensor([[70, 50], [128, 128]])
    with torch.no_grad():
        first, second = detector.predict(replace(batch, images=images, image_sizes=sizes))
    assert len(first.boxes) == len(second.boxes) == 7
    assert first.boxes[:, 2].max() <= 50 and first.boxes[:, 3].max() <= 70
    for one in (first, second):
        assert (one.scores.diff() <= 0).all()
        assert one.labels.dtype == torch.int64 and 0 <= int(one.labels.min()) <= int(one.labels.max()) <= 2


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
    key = "loss_objectness" if "loss_objectness" in _run(small(name).train(), plain).losses else "classification"
    detector = small(name).train()
    without, with_crowd = _run(detector, plain), _run(small(name).train(), crowded)
    assert with_crowd.losses[key] != without.losses[key]
    assert torch.isfinite(_total(with_crowd))

    only_crowd = Target(boxes=empty, labels=torch.zeros(0, dtype=torch.int64), crowd_boxes=everything)
    silent = _run(small(name).train(), replace(plain, targets=[only_crowd, only_crowd]))
    assert {k: float(v.detach()) for k, v in silent.losses.items()} == dict.fromkeys(silent.losses, 0.0)
    _total(silent).backward()


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


def test_autocast_gives_sound_boxes_and_losses(name: str, small: Build, batch: Batch) -> None:
    detector = small(name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = _run(detector, batch)
    _total(output).backward()
    assert torch.isfinite(_total(output))
    for group in (output.logits, output.regression, output.boxes, output.box_distribution):
        assert all(tensor.dtype == torch.float32 and torch.isfinite(tensor).all() for tensor in group.values())
    exact = _run(small(name).train(), batch)
    for key, loss in exact.losses.items():
        # a rounding may move one of a stage's few positives across its IoU, which is a part of that stage's loss
        slack = 0.1 if name.startswith("cascade") else 0.05
        assert float(output.losses[key].detach()) == pytest.approx(float(loss.detach()), rel=0.2, abs=slack), key


def test_a_few_steps_lower_the_loss(name: str, small: Build, batch: Batch) -> None:
    detector = small(name).train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    values = []
    for _ in range(12):
        loss = _total(_run(detector, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.75 * values[0]


def test_same_seed_same_losses(name: str, small: Build, batch: Batch) -> None:
    first, second = (_run(small(name).train(), batch).losses for _ in range(2))
    assert {k: float(v.detach()) for k, v in first.items()} == {k: float(v.detach()) for k, v in second.items()}


def test_copies_are_independent(name: str, small: Build, batch: Batch) -> None:
    detector = small(name).eval()
    twin = copy.deepcopy(detector)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        assert detector(batch).features["p5"].abs().sum() > 0


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


def test_a_stored_output_is_restored_bit_for_bit(name: str, small: Build, batch: Batch) -> None:
    detector = small(name).eval()
    with torch.no_grad():
        live = detector(batch)
        kept = {field: {k: v.clone() for k, v in getattr(live, field).items()} for field in _STORED}
        restored = detector.restore(DetectorOutput(image_sizes=live.image_sizes, layout=live.layout, **kept))
        assert restored is not None
        for field in (*_STORED, "boxes"):
            ours, theirs = getattr(restored, field), getattr(live, field)
            assert list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in theirs)
        assert (restored.respond_at is None) == (live.respond_at is None) == bool(live.boxes)
        if live.respond_at is not None and restored.respond_at is not None:
            proposals = [target["boxes"] for target in batch.targets or []]
            ours, theirs = restored.respond_at(proposals), live.respond_at(proposals)
            assert all(torch.equal(getattr(ours, one), getattr(theirs, one)) for one in ("logits", "boxes"))


def test_nothing_is_inherited_from_a_detector_of_other_levels(small: Build) -> None:
    """The names of a pyramid's parts are numbers: its first lateral is p2's in one family and p3's in another."""
    assert small("retinanet").inherit(small("faster_rcnn", seed=1)) == []
    copied = small("retinanet").inherit(small("fcos", seed=1))
    assert copied and all(name.startswith("model.backbone.fpn.") for name in copied)
