"""What every transform must do; a newly registered one is tested with no further edit."""

from __future__ import annotations

from typing import Any

import pytest

from detkds.registry import TRANSFORMS, expression
from detkds.structures import Kind
from detkds.testing.pieces import examples
from detkds.testing.transforms import CHECKS, cases, check_declaration

PIECES = [piece for name in TRANSFORMS for piece in examples(TRANSFORMS[name], (1, 2, 4), (0.5, 2.0))]
CASES = [
    pytest.param(piece, kind, shape, id=f"{expression(piece)}-{kind}-{'x'.join(map(str, shape))}")
    for piece in PIECES
    for kind, shape in cases(piece)
]


@pytest.mark.parametrize("piece", PIECES, ids=expression)
def test_is_declared(piece: Any) -> None:
    check_declaration(piece)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("piece", "kind", "shape"), CASES)
def test_every_check(piece: Any, kind: Kind, shape: tuple[int, ...], check: Any) -> None:
    check(piece, kind, shape)
