"""What trainings are made from, by content: so that what changed under a path is found, and nothing is mixed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detkds.config import DetectorConfig, TrainConfig
from detkds.training.digests import data_digest, detector_digest, digest_of, file_digest
from detkds.training.setup import TrainingSetup
from detkds.version import __version__


def setup_digest(setup: TrainingSetup, student: DetectorConfig, calibration_batches: int) -> str:
    """Of everything that the result of a training depends on beside its task.

    That is images with their annotations, sizes, every field of the training that matters for numbers, the student as
    it is configured with the content of the files it names, the teacher with its weights, and this package's version.
    """
    return digest_of(
        __version__,
        [None if data is None else data_digest(data) for data in (setup.train_data, setup.test_data, setup.validation_data)],
        setup.size,
        numbers_of(setup.config),
        student_content(student),
        None if setup.teacher is None else detector_digest(setup.teacher),
        (setup.self_taught, setup.masks, calibration_batches),
    )


def numbers_of(config: TrainConfig) -> dict[str, Any]:
    """The fields of a training whose change is another experiment, as plain data."""
    return {name: value for name, value in config.model_dump(mode="json").items() if name != "workers"}


def student_content(student: DetectorConfig) -> dict[str, Any]:
    """How a detector is built, with the content of every file it names in place of the path."""
    described = student.model_dump(mode="json", exclude={"train"})
    return {name: _with_content(value) for name, value in described.items()}


def _with_content(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _with_content(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_content(inner) for inner in value]
    return content_of(value) if isinstance(value, str) else value


def content_of(value: str) -> str:
    """The digest of the file that a text names, or the text itself where it names none."""
    try:
        path = Path(value)
        return file_digest(path) if path.is_file() else value
    except (OSError, ValueError):
        return value
