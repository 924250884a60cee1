"""Policies that begin slowly, or late, as their authors' training loops do."""

from __future__ import annotations

import pytest


def test_frs_grows_over_500_steps(case):
    begun, whole = (case.distil("frs", step=step)[0] for step in (250, 500))
    assert begun == pytest.approx([loss / 2 for loss in whole])


def test_fgfi_begins_after_400_steps(case):
    assert case.distil("fgfi", step=399)[0] == [0.0]
    assert case.distil("fgfi", step=400)[0][0] > 0
