"""Whether two forms of a detector find the same: detections matched one to one, within tolerances."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from detkds.errors import ConfigError
from detkds.exporters.onnx_file import OUTPUTS, require
from detkds.structures import Detections

BOX_TOLERANCE_PX = 0.5
SCORE_TOLERANCE = 1e-3
SHARE = 0.99
"""Of the detections that must agree: one at a threshold may fall on either side of it by rounding alone."""

Detect = Callable[[Tensor], Detections]


@dataclass(frozen=True)
class Parity:
    """What a comparison detected.

    Attributes:
        images: compared.
        expected, detected: detections of the detector and of its other form.
        agreed: pairs of one class whose corners are within 0.5 px and whose scores within 0.001 of each other.
        box_error, score_error: the largest differences among these, in pixels and in scores.
    """

    images: int
    expected: int
    detected: int
    agreed: int
    box_error: float
    score_error: float

    @property
    def passed(self) -> bool:
        """Whether at least 99 % agree, of one detection or more."""
        return self.expected > 0 and self.agreed >= SHARE * max(self.expected, self.detected)

    def __str__(self) -> str:
        if not self.expected:
            return f"no detections in {self.images} images, so there is nothing to compare"
        return (
            f"{self.agreed} of {max(self.expected, self.detected)} detections in {self.images} images agree; "
            f"the largest differences are {self.box_error:.2g} px and {self.score_error:.2g} in score"
        )


def compare(reference: Detect, other: Detect, images: Iterable[Tensor]) -> Parity:
    """Run both on each image ``(1, 3, S, S)`` and match what they find."""
    count = expected = detected = agreed = 0
    worst = torch.zeros(2)
    for image in images:
        first, second = reference(image), other(image)
        errors = match(first, second)
        count, expected, detected = count + 1, expected + len(first.boxes), detected + len(second.boxes)
        agreed += len(errors)
        worst = torch.cat([worst[None], errors]).amax(0)
    return Parity(count, expected, detected, agreed, *worst.tolist())


def match(reference: Detections, other: Detections) -> Tensor:
    """Pair detections within the tolerances, the nearest first: ``(P, 2)`` differences of corners and scores."""
    corners = (reference.boxes[:, None] - other.boxes[None]).abs().amax(-1)  # (R, Q)
    scores = (reference.scores[:, None] - other.scores[None]).abs()
    close = (
        (corners <= BOX_TOLERANCE_PX) & (scores <= SCORE_TOLERANCE) & (reference.labels[:, None] == other.labels[None])
    )
    rows, columns = close.nonzero(as_tuple=True)
    taken: tuple[set[int], set[int]] = set(), set()
    pairs = []
    for index in (corners + scores)[rows, columns].argsort().tolist():
        row, column = int(rows[index]), int(columns[index])
        if row not in taken[0] and column not in taken[1]:
            taken[0].add(row)
            taken[1].add(column)
            pairs.append((row, column))
    if not pairs:
        return torch.zeros(0, 2)
    rows, columns = torch.tensor(pairs).unbind(1)
    return torch.stack((corners[rows, columns], scores[rows, columns]), dim=1)


def in_onnxruntime(path: Path) -> Detect:
    """The detector in an ONNX file of :mod:`detkds.exporters.onnx_file`, run on the CPU.

    Raises:
        ConfigError: onnxruntime is not installed; later, that it cannot run the file on an image.
    """
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised; the rest is of how a trace looks
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def detect(image: Tensor) -> Detections:
        try:
            boxes, scores, labels = session.run(list(OUTPUTS), {"images": image.numpy()})
        except Exception as error:  # onnxruntime's errors have no base class of their own
            raise ConfigError(f"export: onnxruntime cannot run the file on every image: {error}") from error
        return Detections(*map(torch.from_numpy, (boxes, scores, labels)))

    return detect
