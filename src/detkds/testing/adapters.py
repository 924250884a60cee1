"""What every adapter must do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from detkds.registry import ADAPTERS
from detkds.testing.pieces import check_arguments_are_named, check_spelling


def check_adapter(expression: str) -> None:
    """Every check of a registered adapter with these arguments, between equal and different channels."""
    piece = ADAPTERS.build(expression)
    check_spelling(ADAPTERS, piece)
    check_arguments_are_named(ADAPTERS, piece)
    for channels in ((4, 6), (6, 4), (5, 5)):
        check_module(piece, *channels)


def check_module(piece: Any, student: int, teacher: int) -> None:
    """Its module draws from the generators alone, keeps the map's size, and learns from finite gradients."""
    before = torch.get_rng_state()
    module = piece.build(student, teacher, torch.Generator().manual_seed(0))
    if module is None:
        assert student == teacher, "channels differ, and nothing adapts them"
        return
    again = piece.build(student, teacher, torch.Generator().manual_seed(0))
    assert all(map(torch.equal, module.state_dict().values(), again.state_dict().values())), "weights are not seeded"
    assert any(True for _ in module.parameters()), "nothing is learned"
    for shape in ((2, student, 6, 7), (1, student, 1, 1)):
        feature = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        kept = feature.detach().clone()
        adapted = _run(piece, module, feature)
        assert adapted.shape == (shape[0], teacher, *shape[2:]), tuple(adapted.shape)
        assert torch.equal(feature, kept), "the student's map was modified"
        assert torch.equal(adapted, _run(piece, again, feature)), "two passes of one seed differ"
        module.zero_grad()
        adapted.square().sum().backward()
        gradients = [feature.grad, *(parameter.grad for parameter in module.parameters())]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used"


def _run(piece: Any, module: nn.Module, feature: Tensor) -> Tensor:
    return module(feature, torch.Generator().manual_seed(2)) if piece.draws else module(feature)
