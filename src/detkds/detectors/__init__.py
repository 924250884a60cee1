"""Detectors behind one contract: a single forward pass gives features, responses, boxes and losses."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from detkds.detectors.base import Detector
from detkds.errors import ConfigError, unknown_name
from detkds.registry import DETECTORS

__all__ = ["Detector", "build_detector"]


def build_detector(name: str, class_names: Sequence[str], **options: Any) -> Detector:
    """Build a registered detector.

    >>> build_detector("retinanet", ["zero", "one"], backbone="narrow16", neck_channels=64).info.layout.num_classes
    2

    Args:
        name: a name in ``DETECTORS``.
        class_names: one name per class, in label order.
        options: further arguments of the detector.

    Raises:
        UserError: the detector or an option is unknown, or a value is refused; all faults at once.
    """
    build = DETECTORS[name]
    parameters = inspect.signature(build).parameters.values()
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        known = [parameter.name for parameter in parameters if parameter.name not in ("self", "class_names")]
        unknown = [option for option in options if option not in known]
        if unknown:
            raise ConfigError(f"{name}: {unknown_name('option', option, known)}" for option in unknown)
    return build(class_names, **options)
