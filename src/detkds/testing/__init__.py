"""What every piece of a family must do, as checks that plug-ins can run on their own.

>>> from detkds.testing import check_distance
>>> check_distance("l2")

A check raises an ``AssertionError`` that says what is wrong, and returns nothing where all is well.
"""

from detkds.testing.adapters import check_adapter
from detkds.testing.detectors import check_detector
from detkds.testing.distances import DistanceTraits, check_distance
from detkds.testing.knowledge import check_knowledge
from detkds.testing.samplers import check_sampler
from detkds.testing.schedules import check_schedule
from detkds.testing.transforms import check_transform

__all__ = [
    "DistanceTraits",
    "check_adapter",
    "check_detector",
    "check_distance",
    "check_knowledge",
    "check_sampler",
    "check_schedule",
    "check_transform",
]
