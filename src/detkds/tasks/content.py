"""What trainings are made from, by content: so that what changed under a path is found, and nothing is mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detkds.config import DetectorConfig, TrainConfig
from detkds.training.digests import data_digest, detector_digest, digest_of, file_digest
from detkds.training.setup import TrainingSetup
from detkds.version import __version__


def setup_digest(setup: TrainingSetup, described: DetectorConfig, further: object = None) -> str:
    """Of everything that the result of a training depends on beside its task.

    That is images with their annotations, sizes, every field of the training that matters for numbers, the detector as
    it is configured with the content of the files it names, the teacher with its weights, and this package's version.

    Args:
        described: the detector that is trained.
        further: what else it depends on.
    """
    images = (setup.train_data, setup.test_data, setup.validation_data if setup.config.validate_every else None)
    return digest_of(
        __version__,
        [None if data is None else data_digest(data) for data in images],
        setup.size,
        numbers_of(setup.config),
        detector_content(described),
        None if setup.teacher is None else detector_digest(setup.teacher),
        (setup.self_taught, setup.masks),
        further,
    )


def numbers_of(config: TrainConfig) -> dict[str, Any]:
    """The fields of a training whose change is another experiment, as plain data."""
    return {name: value for name, value in config.model_dump(mode="json").items() if name != "workers"}


def detector_content(described: DetectorConfig) -> dict[str, Any]:
    """How a detector is built, with the content of every file it names in place of the path."""
    return {**described.model_dump(mode="json", exclude={"train", "weights"}), "files": files_of(described)}


def files_of(described: DetectorConfig) -> dict[str, str]:
    """The digest of every local file that a detector is built from, by the key that names it; addresses as they are."""
    named = {"weights": described.weights, "backbone_weights": described.backbone_weights}
    named |= {f"options.{key}": value for key, value in described.options.items()}
    texts = {key: value for key, value in named.items() if isinstance(value, str)}
    return {
        key: file_digest(Path(value)) if _is_file(value) else value
        for key, value in texts.items()
        if key == "weights" or _is_file(value)
    }


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except (OSError, ValueError):
        return False
