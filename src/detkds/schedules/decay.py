"""End without the teacher."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from pydantic import Field

from detkds.arguments import Positive, piece
from detkds.protocols import Schedule
from detkds.registry import SCHEDULES


@SCHEDULES.register("cosine")
@piece
class CosineDecay(Schedule):
    """From the whole weight to ``end`` of it at the last step, along half a cosine.

    Source: DAMO-YOLO (Xu et al., 2022) ends at 0.1 of the weight, YOLOv6 (Li et al., 2022) at 0.01.
    """

    needs_total: ClassVar[bool] = True

    end: Positive = 0.1

    def __call__(self, step: int, total: int | None) -> float:
        """The factor at a step, counted from 0, of ``total``."""
        assert total is not None
        done = min(1.0, step / max(1, total - 1))
        return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * done))


@SCHEDULES.register("stop")
@piece
class Stop(Schedule):
    """The whole weight until ``at`` of the training, then none.

    Source: RTMDet (Lyu et al., 2022) distils for 280 of 300 epochs.
    """

    needs_total: ClassVar[bool] = True

    at: Annotated[float, Field(gt=0, le=1)] = 0.9

    def __call__(self, step: int, total: int | None) -> float:
        """The factor at a step, counted from 0, of ``total``."""
        assert total is not None
        return 1.0 if step < self.at * total else 0.0
