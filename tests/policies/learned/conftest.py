"""Small outputs and distillers that the tests of methods with learned parts share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from detkds import Distiller, Policy, load_policy
from detkds.structures import DetectorOutput, FeatureSpec

SIZES = {"p3": (4, 3), "p4": (2, 1)}
SPECS = {"p3": FeatureSpec(4, 8), "p4": FeatureSpec(4, 16)}


@pytest.fixture
def maps() -> Callable[[int], DetectorOutput]:
    """``maps(seed)``: features of two images, 4 channels on 4 x 3 and 2 x 1 cells."""

    def make(seed: int) -> DetectorOutput:
        generator = torch.Generator().manual_seed(seed)
        features = {level: torch.randn(2, 4, *size, generator=generator) for level, size in SIZES.items()}
        return DetectorOutput(features, torch.tensor([[32, 24]] * 2))

    return make


@pytest.fixture
def shaken() -> Callable[[str | Policy], Distiller]:
    """``shaken(policy)``: a distiller for such maps with every learned number drawn anew, so that none is 0."""

    def make(policy: str | Policy) -> Distiller:
        chosen = load_policy(policy) if isinstance(policy, str) else policy
        distiller = Distiller(chosen, student=SPECS, teacher=SPECS)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in distiller.parameters():
                parameter.normal_(generator=generator)
        return distiller

    return make
