"""What every kind of knowledge must do; a newly registered one is tested with no further edit."""

from __future__ import annotations

import pytest

from detkds.registry import KNOWLEDGE, expression
from detkds.testing import check_knowledge
from detkds.testing.pieces import examples

WRITTEN = [expression(piece) for name in KNOWLEDGE for piece in examples(KNOWLEDGE[name], (1, 3))]
OF_QUERIES = [written for written in WRITTEN if written.startswith("object_")]  # tested in test_objects.py
OF_SOFTMAX = [written for written in WRITTEN if "scores=softmax" in written]  # the example's head has sigmoids


@pytest.mark.parametrize("expression", sorted(set(WRITTEN) - {*OF_SOFTMAX, *OF_QUERIES}))
def test_conforms(expression: str) -> None:
    check_knowledge(expression)


def test_a_refusal_is_told() -> None:
    with pytest.raises(AssertionError, match="refuses two equal dense heads: scores=softmax is for heads of such"):
        check_knowledge(OF_SOFTMAX[0])
