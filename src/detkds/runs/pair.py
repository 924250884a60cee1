"""What can be distilled between two detectors, what joins them, and why the rest cannot; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detkds.alignment import match_levels
from detkds.detectors import build_detector
from detkds.detectors.base import Detector
from detkds.errors import ConfigError, Faults, UserError
from detkds.registry import DETECTORS, KNOWLEDGE, parse_expression
from detkds.structures import DetectorInfo


def detectors_of(teacher: str, student: str, classes: Sequence[str]) -> tuple[Detector, Detector]:
    """Build both detectors from expressions such as ``retinanet(backbone=resnet50)``.

    Raises:
        ConfigError: every fault of both.
    """
    faults = Faults()
    built: list[Detector] = []
    for side, expression in (("teacher", teacher), ("student", student)):
        try:
            name, positional, options = parse_expression(expression)
            if positional:
                raise UserError(f"expected options as name=value, got {positional[0]!r}")
            if name in DETECTORS:
                built.append(build_detector(name, classes, **options))
            else:
                DETECTORS[name]
        except UserError as error:
            faults.add(ConfigError([f"{side}: {fault}" for fault in error.faults]))
    faults.raise_as(ConfigError)
    return built[0], built[1]


def describe_pair(student: DetectorInfo, teacher: DetectorInfo) -> dict[str, Any]:
    """The levels, the kinds of knowledge with the reason why one cannot be offered, and the class columns used."""
    matches = match_levels(student, teacher)
    refusals = {}
    for kind in KNOWLEDGE:
        reason = None if matches else "no levels of equal or similar stride"
        refusals[kind] = reason or KNOWLEDGE.build(kind).refusal(student, teacher)
    columns = student.layout.columns(teacher.layout)
    return {
        "levels": describe_levels(student, teacher),
        "offered": [kind for kind, reason in refusals.items() if reason is None],
        "refused": {kind: reason for kind, reason in refusals.items() if reason is not None},
        "responses": {"student": _responses(student), "teacher": _responses(teacher)},
        "classes_by_name": columns is not None,
    }


def describe_levels(student: DetectorInfo, teacher: DetectorInfo) -> list[dict[str, Any]]:
    """The pyramid levels of the student, the teacher's level that each imitates, and what joins them."""
    matches = match_levels(student, teacher)
    rows = []
    for name, spec in student.features.items():
        match = matches.get(name)
        rows.append(
            {
                "level": name,
                "stride": spec.stride,
                "channels": spec.channels,
                "teacher_level": match.teacher if match else None,
                "teacher_stride": match.strides[1] if match else None,
                "teacher_channels": match.channels[1] if match else None,
                "adapter": match is not None and match.adapted,
                "resized": match is not None and match.resized,
            }
        )
    return rows


def _responses(info: DetectorInfo) -> str:
    layout = info.layout
    if layout.kind == "none":
        return "none"
    rows = {
        "dense": f"{layout.anchors} per cell",
        "region": "one per proposal",
        "query": "one per object query",
    }[layout.kind]
    return f"{layout.kind}, {rows}, {layout.activation} classes, boxes as {layout.regression}"
