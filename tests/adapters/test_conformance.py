"""What every adapter must do; a newly registered one is tested with no further edit."""

from __future__ import annotations

import pytest

from detkds.registry import ADAPTERS, expression
from detkds.testing import check_adapter
from detkds.testing.pieces import examples

EXPRESSIONS = [expression(piece) for name in ADAPTERS for piece in examples(ADAPTERS[name], (1, 3))]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_conforms(expression: str) -> None:
    check_adapter(expression)
