"""A body alone: its maps, and what it says that it cannot do."""

from __future__ import annotations

import pytest
import torch

from detkds import Distiller, load_policy
from detkds.detectors import build_detector
from detkds.distiller import check_pair
from detkds.errors import ConfigError, PairError, UserError
from detkds.structures import Batch

VIT = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def body():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_detector("features", ("a",), backbone=VIT)


@pytest.fixture
def batch() -> Batch:
    images = torch.rand(2, 3, 72, 100, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.tensor([[72, 100], [64, 80]]), (0, 1))


def test_maps_cover_the_image(body, batch):
    output = body(batch)
    assert {level: tuple(maps.shape) for level, maps in output.features.items()} == {"s16": (2, 192, 5, 7)}
    assert body.info.features["s16"].channels == 192 and body.info.layout.kind == "none"
    assert not output.logits and not output.losses and not output.features["s16"].requires_grad


def test_it_is_not_trained(body):
    assert not body.train().training and not any(one.requires_grad for one in body.parameters())


def test_a_detector_learns_its_features_and_nothing_else(body, batch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = build_detector("retinanet", ("a",), backbone="narrow4", neck_channels=8, head_convs=1)
    for name in ("radio", "token-relations", "cwd"):
        losses = Distiller(load_policy(name), student=student, teacher=body)(student.train()(batch), body(batch))
        torch.stack(list(losses.values())).sum().backward()
    weights = [one for name, one in student.named_parameters() if student.is_backbone(name) and one.requires_grad]
    assert any(one.grad is not None and one.grad.abs().sum() > 0 for one in weights)
    with pytest.raises(PairError, match="offers no responses"):
        check_pair(load_policy("kd-sigmoid"), student, body)


def test_predictions_are_refused_with_the_reason(body, batch):
    with pytest.raises(UserError, match="a body alone cannot predict; it is a teacher of feature maps"):
        body.predict(batch)


def test_several_strides_of_a_pyramid(batch):
    body = build_detector("features", ("a",), backbone="narrow8", strides=(8, 32))
    assert [maps.shape[-2:] for maps in body(batch).features.values()] == [(9, 13), (3, 4)]
    restored = body.restore(body(batch))
    assert list(restored.features) == ["s8", "s32"]


@pytest.mark.parametrize("strides", [(), (8, 8), (0,)])
def test_wrong_strides_are_refused(strides):
    with pytest.raises(ConfigError, match="strides"):
        build_detector("features", ("a",), backbone="narrow8", strides=strides)
