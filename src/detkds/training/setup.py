"""What all trainings of one stage share: data, detectors and how each student is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch

from detkds.config import AugmentationConfig, TrainConfig
from detkds.data.coco import CocoDataset
from detkds.data.loader import batch_count, training_batches, training_store
from detkds.data.store import ImageStore
from detkds.detectors.base import Detector
from detkds.evaluation.coco_ap import Metrics, evaluate_boxes, evaluate_masks
from detkds.evaluation.predict import predict_images
from detkds.structures import Batch
from detkds.training.processes import ALONE, Processes


@dataclass(frozen=True, eq=False)
class TrainingSetup:
    """What all trainings of one stage share.

    Attributes:
        teacher: the frozen teacher, on ``device``; None only where no student distils.
        build_student: from (seed, inherit) to a fresh student.
        train_data, test_data: images to train on, and to measure the trained student on.
        config: how each student is trained.
        size: pixels of the longer image side.
        device: where students are trained.
        validation_data: images that a training is measured on as it goes, where ``config.validate_every`` asks for it.
        self_taught: whether every student is taught by its own moving average. ``teacher`` is then another student,
            against which losses are checked and scaled before a training.
        masks: whether the students predict masks: targets carry them, and AP is that of masks.
    """

    teacher: Detector | None
    build_student: Callable[[int, bool], Detector]
    train_data: CocoDataset
    test_data: CocoDataset
    config: TrainConfig
    size: int
    device: torch.device
    validation_data: CocoDataset | None = None
    self_taught: bool = False
    masks: bool = False

    @property
    def augmentation(self) -> AugmentationConfig:
        """How training images vary."""
        return self.config.augmentation

    @cached_property
    def store(self) -> ImageStore:
        """Decoded training images, shared by all epochs, seeds and students."""
        return training_store(self.train_data, size=self.size, augmentation=self.augmentation)

    @cached_property
    def _evaluation_stores(self) -> dict[CocoDataset, ImageStore]:
        """Decoded images that students are measured on."""
        return {}

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass in a single process."""
        return self.steps(epochs=1)

    def steps(self, *, epochs: int, world: int = 1) -> int:
        """Optimizer steps of ``epochs`` passes that ``world`` processes share, each taking its own batches.

        Raises:
            DataError: there are fewer batches than processes.
        """
        return epochs * batch_count(self.config.draws or len(self.train_data), self.config.batch_size, world)

    def batches(self, seed: int, processes: Processes = ALONE) -> Callable[[int], Iterable[Batch]]:
        """From an epoch's number to this process's batches, which depend on this setup and the arguments alone."""
        return lambda epoch: training_batches(
            self.train_data,
            size=self.size,
            batch_size=self.config.batch_size,
            seed=seed,
            epoch=epoch,
            augmentation=self.augmentation,
            draws=self.config.draws,
            masks=self.masks,
            store=self.store,
            workers=self.config.workers,
            rank=processes.rank,
            world=processes.world,
        )

    def measure(self, detector: Detector, data: CocoDataset | None = None) -> Metrics:
        """AP of a detector on ``data`` (the test images): of its masks, where it and the students predict them."""
        data = self.test_data if data is None else data
        if data not in self._evaluation_stores:
            self._evaluation_stores[data] = ImageStore(data, self.size)
        predictions = predict_images(
            detector,
            data,
            size=self.size,
            batch_size=self.config.batch_size,
            device=self.device,
            store=self._evaluation_stores[data],
        )
        evaluate = evaluate_masks if self.masks and detector.info.masks else evaluate_boxes
        return evaluate(data, predictions)
