"""MGD against its loss, the generated map taken layer by layer from the distiller's own."""

from __future__ import annotations

import pytest
import torch


def test_masked_generation(case):
    losses, distiller = case.distil("mgd")
    generator = torch.Generator().manual_seed(0)  # the draws of seed 0 at step 0
    expected = 0.0
    for level, feature in case.student.features.items():
        keep = torch.rand(2, 1, *feature.shape[-2:], generator=generator) >= 0.65
        first, activation, second = distiller.adapters[f"{level} generate"].generate
        generated = second(activation(first(feature * keep)))
        pairs = zip(generated.flatten().tolist(), case.teacher.features[level].flatten().tolist(), strict=True)
        expected += 2e-5 * sum((a - b) ** 2 for a, b in pairs) / 2
    assert losses == pytest.approx([expected], rel=1e-6)
