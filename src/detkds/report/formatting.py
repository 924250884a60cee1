"""Numbers as tables and the report show them."""

from __future__ import annotations


def points(value: float | None, missing: str = "-") -> str:
    """A metric in points with one decimal; a dash where it is undefined.

    >>> points(12.34), points(None), points(float("nan"), "–")
    ('12.3', '-', '–')
    """
    return missing if value is None or value != value else f"{value:.1f}"
