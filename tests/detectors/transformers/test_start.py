"""How a detector of the DETR line starts where it is trained from scratch."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from detkds.detectors import build_detector
from detkds.detectors.transformers.detector import TransformersDetector

pytestmark = pytest.mark.skipif(find_spec("transformers") is None, reason="the transformers library is not installed")


@pytest.mark.parametrize("name", ["detr", "conditional_detr", "dab_detr", "deformable_detr"])
def test_transformer_and_queries_start_as_published(name: str) -> None:
    """Weights (O, I) deviate by sqrt(2 / (O + I)), queries by 1; positions are uniform in [0, 1]; zeros stay."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        positions = {} if name == "dab_detr" else {"position_embedding_type": "learned"}
        detector = build_detector(name, ["ant", "bee", "cat"], size="nano", config=positions)
    assert isinstance(detector, TransformersDetector)
    modules = {one: m for one, m in detector.named_modules() if not detector.is_backbone(f"{one}.")}
    linear = {one: m for one, m in modules.items() if isinstance(m, nn.Linear)}
    zero = {one for one, module in linear.items() if not module.weight.any()}
    last = ("bbox_embed.0.layers.2", "bbox_embed.1.layers.2", "bbox_embed.layers.2", "bbox_predictor.layers.2")
    assert all(one.endswith((*last, "sampling_offsets", "attention_weights")) for one in zero)
    assert (len(zero) > 0) == (name in ("dab_detr", "deformable_detr"))
    for one in linear.keys() - zero:
        outputs, inputs = linear[one].weight.shape
        expected = math.sqrt(2 / (outputs + inputs))
        assert float(linear[one].weight.detach().std()) == pytest.approx(expected, rel=0.15), one
        assert float(linear[one].weight.detach().abs().max()) <= math.sqrt(3) * expected
    deviations = {one: float(m.weight.detach().std()) for one, m in modules.items() if isinstance(m, nn.Embedding)}
    assert sum("query" in one for one in deviations) == 1
    for one, deviation in deviations.items():
        assert deviation == pytest.approx(1 if "query" in one else math.sqrt(1 / 12), rel=0.15), one
