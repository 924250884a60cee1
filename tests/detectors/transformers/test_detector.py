"""The adapter of the transformers library: one contract for its ten detectors, beside the library's own results."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from detkds.detectors import build_detector
from detkds.detectors.transformers.detector import TransformersDetector
from detkds.detectors.transformers.families import FAMILIES
from detkds.detectors.transformers.parts import gather_losses
from detkds.detectors.weights import load_weights, save_weights
from detkds.distiller import Distiller
from detkds.errors import ConfigError, UserError, WeightsError
from detkds.policy import Policy, Term
from detkds.structures import Batch
from detkds.testing.detectors import CHECKS, CLASSES, run, seeded_detector, total

pytestmark = pytest.mark.skipif(find_spec("transformers") is None, reason="the transformers library is not installed")

HYBRID = ("rt_detr", "rt_detr_v2", "d_fine", "deim_v2")
FAST = ("rt_detr", "d_fine", "deformable_detr")
STRIDES = {
    **{key: {"p3": 8, "p4": 16, "p5": 32} for key in HYBRID},
    **{key: {"p4": 16} for key in ("detr", "conditional_detr", "dab_detr", "lw_detr", "rf_detr")},
    "deformable_detr": {"p3": 8, "p4": 16, "p5": 32, "p6": 64},
}


@pytest.fixture(params=[name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def nano(name: str, **options: Any) -> TransformersDetector:
    detector = seeded_detector(name, size="nano", **options)
    assert isinstance(detector, TransformersDetector)
    return detector


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_check(name: str, check: Callable[..., None]) -> None:
    check(partial(nano, name))


def test_output_has_the_announced_levels_and_shapes(name: str, batch: Batch) -> None:
    detector = nano(name).train()
    layout = detector.info.layout
    assert {level: spec.stride for level, spec in detector.info.features.items()} == STRIDES[name]
    assert layout.kind == "query" and layout.class_names == CLASSES and layout.regression == "centre"
    assert layout.activation == ("softmax" if name == "detr" else "sigmoid")
    columns, queries = 3 + (name == "detr"), 40 if name in ("lw_detr", "rf_detr") else 50
    trained, alone = run(detector, batch), run(detector, replace(batch, targets=None))
    with torch.no_grad():
        evaluated = run(detector.eval(), batch)
    for output in (trained, alone, evaluated):
        assert list(output.features) == list(detector.info.features)
        for level, spec in detector.info.features.items():
            side = -(-128 // int(spec.stride))
            assert output.features[level].shape == (2, spec.channels, side, side)
        assert output.logits["query"].shape == (2, columns, queries)
        assert output.regression["query"].shape == output.boxes["query"].shape == (2, 4, queries)
        assert ("query" in output.box_distribution) == (name in ("d_fine", "deim_v2"))
        for distribution in output.box_distribution.values():
            assert distribution.shape == (2, 4, 33, queries)
    assert trained.losses and not alone.losses and not evaluated.losses
    for field in ("logits", "boxes"):  # queries that only train do not touch the others
        ours, theirs = getattr(trained, field)["query"], getattr(alone, field)["query"]
        assert torch.allclose(ours, theirs, atol=1e-3)


def test_losses_are_the_librarys(name: str, batch: Batch) -> None:
    detector = nano(name).train()
    twin = copy.deepcopy(detector.model)
    del twin._loss_function  # the library's own, without our precision
    labels = [
        {
            "class_labels": target["labels"],
            "boxes": box_convert(target["boxes"], "xyxy", "cxcywh") / 128,
        }
        for target in batch.targets or []
    ]
    images = batch.images
    if name not in HYBRID:
        images = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
            :, None, None
        ]
    ours = run(detector, batch)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = twin(pixel_values=images, labels=labels)
    assert float(total(ours).detach()) == pytest.approx(float(theirs.loss.detach()), rel=1e-4)
    last = [key for key in ours.losses if not key.endswith(("_auxiliary", "_denoising", "_encoder"))]
    assert len(last) == 3 and {"loss_bbox", "loss_giou"} < set(last)


def test_gradient_reaches_all_parts(name: str, batch: Batch) -> None:
    detector = nano(name).train()
    total(run(detector, batch)).backward()
    silent = [one for one, p in detector.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    constants = ["model.model.decoder.reg_scale", "model.model.decoder.up"] if name in ("d_fine", "deim_v2") else []
    assert silent == constants
    body = [p for one, p in detector.named_parameters() if detector.is_backbone(one)]
    assert body and all(p.grad is not None and p.grad.abs().sum() > 0 for p in body)


def test_features_and_responses_carry_gradient_to_the_body(name: str, batch: Batch) -> None:
    detector = nano(name).train()
    output = run(detector, replace(batch, targets=None))
    body = [p for one, p in detector.named_parameters() if detector.is_backbone(one)]
    for tensor in (*output.features.values(), output.logits["query"]):
        gradients = torch.autograd.grad(tensor.square().sum(), body, retain_graph=True, allow_unused=True)
        assert sum(float(gradient.abs().sum()) for gradient in gradients if gradient is not None) > 0


def test_predictions_are_the_librarys(name: str, batch: Batch) -> None:
    """In an image that fills the batch and in one that does not."""
    from transformers import DeformableDetrImageProcessor, DetrImageProcessor, RTDetrImageProcessor

    detector = nano(name, max_detections=20).eval()
    sizes = torch.tensor([[128, 128], [96, 64]])
    uneven = replace(batch, image_sizes=sizes)
    processors = {"detr": DetrImageProcessor, **dict.fromkeys(HYBRID, RTDetrImageProcessor)}
    with torch.no_grad():
        found = detector.predict(uneven)
        raw, _, _ = detector._run(uneven, None)
    target_sizes = torch.tensor([[128, 128]] * 2) if name in HYBRID else sizes
    theirs = processors.get(name, DeformableDetrImageProcessor)().post_process_object_detection(
        raw, threshold=0.0, target_sizes=target_sizes
    )
    for ours, expected, (height, width) in zip(found, theirs, sizes.tolist(), strict=True):
        boxes = expected["boxes"].clone()
        boxes[:, 0::2], boxes[:, 1::2] = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
        order = expected["scores"].argsort(descending=True, stable=True)[:20]
        real = (boxes[order, 2:] > boxes[order, :2]).all(1)
        assert 0 < len(ours.scores) <= 20 and (ours.scores.diff() <= 0).all()
        assert torch.allclose(ours.scores, expected["scores"][order][real], atol=1e-6)
        if len(torch.unique(expected["scores"][order])) == len(order):
            assert torch.allclose(ours.boxes, boxes[order][real], atol=1e-3)
            assert torch.equal(ours.labels, expected["labels"][order][real])


@pytest.mark.parametrize("name", ["detr", "conditional_detr", "dab_detr", "deformable_detr"])
def test_an_image_is_seen_alike_beside_a_larger_one(name: str, batch: Batch) -> None:
    """Where nothing leaks through the body's borders, padding changes neither features, logits nor boxes in pixels."""
    detector = nano(name).eval()
    for parameter in detector.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)  # last layers that start at 0 would hide what comes before
    for sequence in (m for m in detector.modules() if isinstance(m, nn.Sequential)):
        for index, module in enumerate(sequence):
            if isinstance(module, nn.GroupNorm):
                sequence[index] = nn.Identity()  # its mean is over the padding too
    valid = 64

    def clear(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        cells = -(-valid * output.shape[-1] // width)
        output = output.clone()
        output[0, :, cells:], output[0, :, :, cells:] = 0, 0
        return output

    for one, module in detector.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.MaxPool2d) and detector.is_backbone(f"{one}.weight"):
            module.register_forward_hook(clear)
    images = batch.images.clone()
    images[0, :, valid:], images[0, :, :, valid:] = 0, 0
    sizes = torch.tensor([[valid, valid], [128, 128]])
    with torch.no_grad():
        width = 128
        beside = detector(replace(batch, images=images, image_sizes=sizes, targets=None))
        width = valid
        alone = detector(Batch(images[:1, :, :valid, :valid], sizes[:1], (0,)))
    assert torch.allclose(beside.boxes["query"][0], alone.boxes["query"][0], atol=1e-3)
    assert torch.allclose(beside.logits["query"][0], alone.logits["query"][0], atol=1e-4)
    for level, features in alone.features.items():
        rows, columns = features.shape[-2:]
        assert torch.allclose(beside.features[level][0, :, :rows, :columns], features[0], atol=1e-4)


@pytest.mark.parametrize("name", ["rt_detr", "d_fine"])
def test_the_hybrid_line_takes_padding_for_picture(name: str, batch: Batch) -> None:
    """Its boxes are fractions of the batch: the same in pixels whatever part of it is said to be the image."""
    detector = nano(name).eval()
    images = batch.images.clone()
    images[0, :, 96:], images[0, :, :, 64:] = 0, 0
    part = replace(batch, images=images, image_sizes=torch.tensor([[96, 64], [128, 128]]))
    with torch.no_grad():
        padded, whole = detector(part), detector(replace(batch, images=images))
    assert torch.allclose(padded.logits["query"], whole.logits["query"], atol=1e-5)
    inside = (whole.boxes["query"][0, :2] > 0).all(0) & (
        whole.boxes["query"][0, 2:] < torch.tensor([[64.0], [96]])
    ).all(0)
    assert torch.allclose(padded.boxes["query"][0, :, inside], whole.boxes["query"][0, :, inside], atol=1e-2)
    assert torch.allclose(padded.boxes["query"][1], whole.boxes["query"][1], atol=1e-3)


def test_draws_come_from_the_generator_that_is_given(name: str, batch: Batch) -> None:
    losses = []
    for seed, elsewhere in ((3, 0), (3, 1), (4, 0)):
        detector = nano(name).train()
        detector.draw_from(torch.Generator().manual_seed(seed))
        with torch.random.fork_rng():
            torch.manual_seed(elsewhere)
            before = torch.get_rng_state()
            losses.append(detector(batch).losses)
            assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(losses[0][key], losses[1][key]) for key in losses[0])
    if name in HYBRID:
        assert not torch.equal(losses[0]["loss_bbox_denoising"], losses[2]["loss_bbox_denoising"])


def test_saved_weights_load_in_the_library_and_here(name: str, batch: Batch, tmp_path: Path) -> None:
    import transformers

    detector = nano(name).train()
    run(detector, batch)  # moves the running statistics
    detector.eval().save_pretrained(tmp_path)
    family = getattr(transformers, f"{FAMILIES[name].prefix}ForObjectDetection")
    home, found = family.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
    assert home.config.id2label == dict(enumerate(CLASSES))
    again = build_detector(name, CLASSES, pretrained=str(tmp_path)).eval()
    with torch.no_grad():
        ours = detector(batch)
        raw = home.eval()(pixel_values=detector.normalize(batch))
        reloaded = again(batch)
    logits = raw.logits.roll(1, 2) if name == "detr" else raw.logits
    assert torch.allclose(ours.logits["query"], logits.transpose(1, 2), atol=1e-5)
    assert torch.allclose(ours.logits["query"], reloaded.logits["query"], atol=1e-5)
    assert torch.allclose(ours.boxes["query"], reloaded.boxes["query"], atol=1e-3)
    assert set(detector.home_state_dict()) >= set(home.state_dict())


def test_weights_files_round_trip(batch: Batch, tmp_path: Path) -> None:
    """With weights that the library shares between two names."""
    one, other = nano("d_fine", seed=1), nano("d_fine", seed=2)
    save_weights(one, tmp_path / "d_fine.safetensors")
    assert load_weights(other, tmp_path / "d_fine.safetensors") == []
    with torch.no_grad():
        assert torch.equal(one.eval()(batch).logits["query"], other.eval()(batch).logits["query"])


def test_a_pair_is_distilled_through_matched_queries(batch: Batch) -> None:
    """Matched queries of another family give gradient to the student; a twin has nothing to learn."""
    terms = [Term("logits", distance="l2"), Term("localization", distance="l1")]
    teacher, student = nano("d_fine", seed=1).eval(), nano("deformable_detr").train()
    with torch.no_grad():
        answers = teacher(batch)
        same = Distiller(Policy(terms), student=teacher, teacher=teacher)(answers, answers, batch.targets)
    assert all(float(loss) == pytest.approx(0.0, abs=1e-6) for loss in same.values())
    losses = Distiller(Policy(terms), student=student, teacher=teacher)(student(batch), answers, batch.targets)
    torch.stack(list(losses.values())).sum().backward()
    assert all(float(loss.detach()) > 0 for loss in losses.values())
    assert any(p.grad is not None and p.grad.any() for one, p in student.named_parameters() if student.is_backbone(one))
    assert all(p.grad is None for p in teacher.parameters())


def test_inherit_copies_all_but_the_body(batch: Batch) -> None:
    teacher, student = nano("rt_detr", seed=1, backbone="narrow32"), nano("rt_detr", seed=2)
    copied = set(student.inherit(teacher))
    theirs = teacher.state_dict()
    assert copied and not any(student.is_backbone(one) for one in copied)
    assert all(torch.equal(tensor, theirs[one]) for one, tensor in student.state_dict().items() if one in copied)
    kept = [one for one in theirs if one not in copied and not student.is_backbone(one)]
    assert kept and all("encoder_input_proj" in one for one in kept)


@pytest.mark.parametrize(("name", "strides"), [("detr", [32]), ("rt_detr", [8, 16, 32])])
def test_a_timm_body_and_its_weights(name: str, strides: list[int], batch: Batch, tmp_path: Path) -> None:
    import timm

    body = timm.create_model("test_resnet", num_classes=0)
    torch.save(body.state_dict(), tmp_path / "body.pt")
    detector = nano(name, backbone="test_resnet", backbone_weights=str(tmp_path / "body.pt"))
    state = {one: tensor for one, tensor in detector.state_dict().items() if detector.is_backbone(one)}
    stem = next(tensor for one, tensor in state.items() if one.endswith("conv1.0.weight"))
    assert torch.equal(stem, body.state_dict()["conv1.0.weight"])
    output = run(detector.train(), batch)
    assert [features.shape[-1] for features in output.features.values()] == [128 // stride for stride in strides]
    total(output).backward()
    assert all(p.grad is not None for one, p in detector.named_parameters() if detector.is_backbone(one))


def test_a_frozen_body_stays_as_the_library_leaves_it(batch: Batch) -> None:
    import transformers

    assert not any(isinstance(m, nn.BatchNorm2d) for m in nano("detr", frozen_body=True).modules())
    frozen = nano("rt_detr", frozen_body=True)
    norms = [one for one, m in frozen.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(frozen.is_backbone(f"{one}.weight") for one in norms)
    plain = transformers.DetrForObjectDetection(nano("detr").model.config)
    mine = {one for one, p in nano("detr", frozen_body=True).model.named_parameters() if p.requires_grad}
    assert mine == {one for one, p in plain.named_parameters() if p.requires_grad}


def test_losses_are_grouped_and_weighted_by_hand() -> None:
    losses = {key: torch.tensor(value) for key, value in {
        "loss_ce": 1.0, "loss_bbox": 2.0, "loss_ce_0": 3.0, "loss_bbox_0": 4.0, "loss_bbox_1": 5.0,
        "loss_bbox_enc": 6.0, "loss_vfl_aux_0": 7.0, "loss_vfl_aux_1": 8.0, "loss_vfl_dn_0": 9.0, "loss_vfl_dn_1": 10.0,
        "cardinality_error": 99.0, "cardinality_error_0": 99.0,
    }.items()}  # fmt: skip

    class Config:
        box_weight = 5

    gathered = gather_losses(losses, {"loss_ce": 2.0, "loss_bbox": "box_weight"}, Config())
    assert {key: float(value) for key, value in gathered.items()} == {
        "loss_ce": 2, "loss_bbox": 10, "loss_ce_auxiliary": 6, "loss_bbox_auxiliary": 45, "loss_bbox_encoder": 30,
        "loss_vfl_auxiliary": 15, "loss_vfl_denoising": 19,
    }  # fmt: skip


def test_faults_are_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        build_detector("rt_detr", ["a", "a"], size="huge", max_detections=0, config={"num_querys": 3, "id2label": {}})
    text = str(caught.value)
    for word in ("class_names", "'huge'", "max_detections", "'num_queries'", "id2label follows from class_names"):
        assert word in text
    with pytest.raises(UserError, match="did you mean 'pretrained'"):
        build_detector("detr", ["a"], pretraind="x")
    with pytest.raises(WeightsError, match="nowhere"):
        build_detector("detr", ["a"], pretrained=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="size: expected nothing beside pretrained"):
        build_detector("detr", ["a"], pretrained="x", size="nano")
    with pytest.raises(ConfigError, match="the transformers library refuses it"):
        build_detector("rt_detr", ["a"], size="nano", config={"d_model": "wide"})
    with pytest.raises(ConfigError, match="body is part of it"):
        build_detector("rf_detr", ["a"], size="nano", backbone="narrow8")
    with pytest.raises(ConfigError, match="cannot use it"):
        build_detector("detr", ["a"], size="nano", backbone="test_efficientnet")


def test_pretrained_models_of_other_kinds_and_classes_are_refused(tmp_path: Path) -> None:
    nano("rt_detr").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"expected a detr in .*, got rt_detr"):
        build_detector("detr", CLASSES, pretrained=str(tmp_path))
    with pytest.raises(ConfigError, match=r"knows 3 classes \(ant, bee, cat\), got 2; .*new_head"):
        build_detector("rt_detr", ["ant", "bee"], pretrained=str(tmp_path))
    with pytest.raises(ConfigError, match="expected the order"):
        build_detector("rt_detr", ["bee", "ant", "cat"], pretrained=str(tmp_path))
    detector = build_detector("rt_detr", ["ant", "bee"], pretrained=str(tmp_path), new_head=True)
    assert detector.info.layout.num_classes == 2
    (tmp_path / "preprocessor_config.json").write_text(
        '{"do_normalize": true, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}'
    )
    detector = build_detector("rt_detr", CLASSES, pretrained=str(tmp_path))
    assert detector.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'detkds\[transformers\]'"):
        build_detector("detr", ["a"])
