"""Begin without the teacher."""

from __future__ import annotations

from detkds.arguments import Count, piece
from detkds.protocols import Schedule
from detkds.registry import SCHEDULES


@SCHEDULES.register("warmup")
@piece
class Warmup(Schedule):
    """From 0 to the whole weight, by equal steps over the first ``steps`` ones; with ``linear=false`` all at once.

    Source: FRS (Du et al., NeurIPS 2021) rises over 500 steps; FGFI (Wang et al., CVPR 2019) begins after 400.
    """

    steps: Count
    linear: bool = True

    def __call__(self, step: int, total: int | None) -> float:
        """The factor at a step, counted from 0."""
        if step >= self.steps:
            return 1.0
        return step / self.steps if self.linear else 0.0
