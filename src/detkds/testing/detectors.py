"""What every detector must do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detkds.detectors import build_detector
from detkds.detectors.base import Detector
from detkds.structures import Batch, DetectorOutput, Target

CLASSES = ("ant", "bee", "cat")
STORED = ("features", "logits", "regression", "box_distribution")

Build = Callable[..., Detector]
"""Builds the detector with weights from ``seed``, 0 by default."""


def check_detector(name: str, **options: Any) -> None:
    """Every check of a registered detector built with these options; let them make it small.

    Images have 128 x 128 pixels and less, classes are ``ant``, ``bee`` and ``cat``.
    """
    for check in CHECKS:
        check(partial(seeded_detector, name, **options))


def seeded_detector(name: str, *, seed: int = 0, class_names: Sequence[str] = CLASSES, **options: Any) -> Detector:
    """A registered detector with reproducible weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_detector(name, class_names, **options)


def example_batch(
    boxes: Sequence[Sequence[Sequence[float]]], size: tuple[int, int] = (128, 128), *, classes: int = 3, seed: int = 0
) -> Batch:
    """Random images with the given boxes, an ellipse in each for its mask; labels count up from 0 in every image."""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for corners in (torch.tensor(given, dtype=torch.float32).reshape(-1, 4) for given in boxes):
        labels = torch.arange(len(corners)) % classes
        targets.append(Target(boxes=corners, labels=labels, masks=ellipses(corners, size)))
    images = torch.rand(len(boxes), 3, *size, generator=generator)
    return Batch(images, torch.tensor([size] * len(boxes)), tuple(range(len(boxes))), targets)


def ellipses(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The largest ellipse in each box as masks ``(R, H, W)``."""
    centers, radii = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    x = (torch.arange(size[1]) + 0.5 - centers[:, :1]) / radii[:, :1]
    y = (torch.arange(size[0]) + 0.5 - centers[:, 1:]) / radii[:, 1:]
    return x[:, None, :] ** 2 + y[:, :, None] ** 2 < 1


def four_objects() -> Batch:
    """Two images: three objects of different sizes, and one."""
    return example_batch([[[10, 12, 50, 60], [64, 70, 120, 126], [5, 80, 37, 112]], [[20, 20, 100, 90]]])


def run(detector: Detector, batch: Batch) -> DetectorOutput:
    """A pass whose draws are reproducible."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return detector(batch)


def total(output: DetectorOutput) -> Tensor:
    """The sum of all losses."""
    return torch.stack(list(output.losses.values())).sum()


def gives_what_it_announces(build: Build) -> None:
    """Levels in their order, with their channels and strides, also at odd sizes; and responses of its layout."""
    detector = build().train()
    layout, specs = detector.info.layout, detector.info.features
    assert detector.class_names == CLASSES and layout.num_classes == len(CLASSES), layout
    for size in ((128, 128), (97, 131), (45, 33)):
        output = run(detector, example_batch([[[2, 2, 30, 40]], []], size))
        assert output.layout == layout and list(output.features) == list(specs), list(output.features)
        for level, spec in specs.items():
            count, channels, *grid = output.features[level].shape
            assert (count, channels) == (2, spec.channels), (level, count, channels)
            for cells, side in zip(grid, size, strict=True):  # what detectors add at the edge makes whole 32s at most
                least, most = (-(-pixels // int(spec.stride)) for pixels in (side, -(-side // 32) * 32))
                assert least <= cells <= most, f"{level}: expected {least} to {most} cells for {side}, got {cells}"
        assert torch.isfinite(total(output)), output.losses
        columns = len(CLASSES) + (layout.activation == "softmax")
        for level, logits in output.logits.items():
            grid = output.features[level].shape[-2:] if layout.kind == "dense" else ()
            rows = (layout.anchors, *grid) if layout.kind == "dense" else logits.shape[2:]
            boxes = (4, columns) if layout.kind == "region" else (4, *rows)
            assert logits.shape == (len(logits), columns, *rows), (level, logits.shape)
            for given in (output.boxes[level], output.regression[level]):
                assert given.shape == (len(logits), *boxes), (level, given.shape)
        assert (output.proposals is None) == (layout.kind != "region")


def sends_gradient_to_its_body(build: Build) -> None:
    """The losses reach every part of the body, with finite gradients everywhere."""
    detector = build().train()
    total(run(detector, four_objects())).backward()
    body = [p for name, p in detector.named_parameters() if detector.is_backbone(name)]
    assert body and all(p.grad is not None and p.grad.abs().sum() > 0 for p in body)
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


def answers_alike_with_and_without_targets(build: Build) -> None:
    """In evaluation it gives no losses and the same responses; in training no losses where there are no targets."""
    batch, teacher = four_objects(), build().eval().requires_grad_(False)
    with torch.no_grad():
        given, without = teacher(batch), teacher(replace(batch, targets=None))
    assert given.losses == without.losses == {}
    for field in (*STORED, "boxes"):
        first, second = getattr(given, field), getattr(without, field)
        assert list(first) == list(second) and all(torch.equal(first[level], second[level]) for level in first), field
    alone = run(build().train(), replace(batch, targets=None))
    assert alone.losses == {} and alone.logits and alone.boxes


def bears_any_targets(build: Build) -> None:
    """No object, one, one of two pixels or one of the whole image; boxes without area change nothing."""
    for boxes in ([[], []], [[[3, 3, 40, 50]], []], [[[0, 0, 96, 96]], [[1, 1, 3, 2.5]]]):
        detector = build().train()
        output = run(detector, example_batch(boxes, (96, 96)))
        assert all(torch.isfinite(loss) for loss in output.losses.values()), (boxes, output.losses)
        total(output).backward()
        assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None), boxes
    sound = run(build().train(), example_batch([[[10, 10, 60, 60]], [[20, 20, 50, 70]]], (96, 96)))
    boxes = [[[10, 10, 60, 60], [5, 5, 5, 20]], [[20, 20, 50, 70], [8, 9, 30, 9]]]
    mixed = run(build().train(), example_batch(boxes, (96, 96)))
    assert all(torch.equal(loss, mixed.losses[key]) for key, loss in sound.losses.items()), "boxes without area count"


def predicts_inside_the_images(build: Build) -> None:
    """Detections of each image, best first, with labels of its classes and boxes inside the valid area."""
    batch, detector = four_objects(), build().eval()
    images = batch.images.clone()
    images[0, :, 70:], images[0, :, :, 50:] = 0, 0
    sizes = torch.tensor([[70, 50], [128, 128]])
    with torch.no_grad():
        detections = detector.predict(replace(batch, images=images, image_sizes=sizes))
    assert len(detections) == 2
    for found, (height, width) in zip(detections, sizes.tolist(), strict=True):
        assert len(found.boxes) == len(found.scores) == len(found.labels)
        assert found.labels.dtype == torch.int64 and set(found.labels.tolist()) <= set(range(len(CLASSES)))
        assert (found.scores.diff() <= 0).all() and ((found.scores >= 0) & (found.scores <= 1)).all()
        assert (found.boxes >= 0).all(), found.boxes.min()
        assert (found.boxes[:, [0, 2]] <= width).all() and (found.boxes[:, [1, 3]] <= height).all()


def marks_the_regions_that_it_names(build: Build) -> None:
    """Weights in [0, 1] for every response, which follow the objects that are given."""
    batch, detector = four_objects(), build().train()
    output = run(detector, batch)
    assert run(detector, replace(batch, targets=None)).region is None
    assert batch.targets is not None and (output.region is not None or not detector.info.regions)
    for region in detector.info.regions:
        assert output.region is not None
        marked = output.region(region)
        shapes = {level: (len(logits), 1, *logits.shape[2:]) for level, logits in output.logits.items()}
        assert shapes == {level: tuple(weights.shape) for level, weights in marked.items()}
        assert all((weights >= 0).all() and (weights <= 1).all() for weights in marked.values())
        assert any(weights.any() for weights in marked.values())
        assert not any(weights.requires_grad for weights in marked.values())
        objects = output.region(region, [target["boxes"] for target in batch.targets])
        assert all(torch.equal(objects[level], weights) for level, weights in marked.items())
        nothing = output.region(region, [torch.zeros(0, 4) for _ in batch.targets])
        assert all(weights.all() if region == "background" else not weights.any() for weights in nothing.values())


def repeats_itself(build: Build) -> None:
    """The same seed gives the same losses, in a copy that owns its weights; the batch stays as it is."""
    batch = four_objects()
    before = copy.deepcopy((batch.images, batch.image_sizes, batch.targets))
    detector = build().train()
    duplicate = copy.deepcopy(detector)
    first, second, third = (run(model, batch).losses for model in (detector, build().train(), duplicate))
    assert all(torch.equal(first[key], second[key]) and torch.equal(first[key], third[key]) for key in first)
    assert torch.equal(batch.images, before[0]) and torch.equal(batch.image_sizes, before[1])
    for target, kept in zip(batch.targets or [], before[2] or [], strict=True):
        assert all(torch.equal(target[key], kept[key]) for key in ("boxes", "labels"))
    with torch.no_grad():
        for parameter in duplicate.parameters():
            parameter.zero_()
    assert any(p.any() for p in detector.parameters()), "a copy shares its weights"


def restores_what_it_stores(build: Build) -> None:
    """The output of what was stored is that of the pass, bit for bit, where it says that it can."""
    batch, detector = four_objects(), build().eval()
    with torch.no_grad():
        live = detector(batch)
        kept: dict[str, Any] = {field: {k: v.clone() for k, v in getattr(live, field).items()} for field in STORED}
        restored = detector.restore(DetectorOutput(image_sizes=live.image_sizes, layout=live.layout, **kept))
        if restored is None:
            return
        for field in (*STORED, "boxes"):
            again, first = getattr(restored, field), getattr(live, field)
            assert list(again) == list(first) and all(torch.equal(again[k], first[k]) for k in first), field
        if live.respond_at is not None:
            assert restored.respond_at is not None
            proposals = [target["boxes"] for target in batch.targets or []]
            again, first = restored.respond_at(proposals), live.respond_at(proposals)
            assert all(torch.equal(getattr(again, name), getattr(first, name)) for name in ("logits", "boxes"))


def inherits_all_but_the_body(build: Build) -> None:
    """Neck and head come from the teacher, the body stays."""
    teacher, student = build(seed=1), build(seed=2)
    before, given = copy.deepcopy(student.state_dict()), teacher.state_dict()
    copied = set(student.inherit(teacher))
    assert copied == {name for name in before if not student.is_backbone(name)}
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, given[name] if name in copied else before[name]), name


def bears_autocast(build: Build) -> None:
    """Under bfloat16 losses, responses and gradients are finite, and responses are in full precision."""
    detector = build().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = run(detector, four_objects())
    total(output).backward()
    assert torch.isfinite(total(output)), output.losses
    for group in (output.logits, output.regression, output.boxes, output.box_distribution):
        assert all(tensor.dtype == torch.float32 and torch.isfinite(tensor).all() for tensor in group.values())


CHECKS = (
    gives_what_it_announces,
    sends_gradient_to_its_body,
    answers_alike_with_and_without_targets,
    bears_any_targets,
    predicts_inside_the_images,
    marks_the_regions_that_it_names,
    repeats_itself,
    restores_what_it_stores,
    inherits_all_but_the_body,
    bears_autocast,
)
