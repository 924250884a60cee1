"""The contract every detector keeps, and what follows from it for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from detkds.structures import Batch, Detections, DetectorInfo, DetectorOutput


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a block; afterwards every part has its own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


class Detector(nn.Module, ABC):
    """A detector that gives everything distillation needs in one forward pass.

    Attributes:
        info: levels, channels, strides and response layout, known before any forward pass.
        class_names: one name per foreground class, in label order.
    """

    info: DetectorInfo
    class_names: tuple[str, ...]
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        class_names: Sequence[str],
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def core(self) -> Detector:
        """The detector itself, where this one only changes what it is given."""
        return self

    def normalize(self, batch: Batch) -> Tensor:
        """The batch's images with this detector's own mean and deviation; padding stays exactly 0."""
        images = (batch.images - self.mean) / self.std
        rows = torch.arange(images.shape[-2], device=images.device)
        columns = torch.arange(images.shape[-1], device=images.device)
        heights, widths = batch.image_sizes.to(images.device).unbind(1)
        valid = (rows[None, :] < heights[:, None])[:, :, None] & (columns[None, :] < widths[:, None])[:, None, :]
        return images * valid[:, None]

    @abstractmethod
    def forward(self, batch: Batch) -> DetectorOutput:
        """One pass; ``output.losses`` is filled where ``batch.targets`` is given.

        The responses are the same with and without targets, except that a region detector samples its proposals
        against the targets where it has them.
        """

    @abstractmethod
    def predict(self, batch: Batch) -> list[Detections]:
        """Detections of each image, boxes in pixels of the padded batch, best first, after suppression."""

    def restore(self, output: DetectorOutput) -> DetectorOutput | None:
        """The output of a pass in evaluation mode, from what of it was stored.

        Args:
            output: with ``features`` and, where the pass gave them, ``logits``, ``regression`` and
                ``box_distribution`` as they came, or rounded.

        Returns:
            ``output`` with what follows from these (decoded boxes, ``respond_at``); None where this detector gives
            more than can be stored, as is assumed unless it says otherwise.
        """
        return None

    @abstractmethod
    def home_state_dict(self) -> dict[str, Tensor]:
        """The weights under the names of the detector's home library, loadable there without this package."""

    def inherit(self, teacher: Detector) -> list[str]:
        """Copy the teacher's neck and head where names and shapes agree; return the names copied.

        Everything outside the backbone is a candidate (the "inheriting" of FGD, Yang et al. 2022), between detectors of
        the same levels: those of others share names, not meaning.
        """
        if list(self.info.features) != list(teacher.core.info.features):
            return []
        own, given = self.state_dict(), teacher.core.state_dict()
        copied = [
            name
            for name, tensor in own.items()
            if not self.is_backbone(name) and name in given and given[name].shape == tensor.shape
        ]
        with torch.no_grad():
            for name in copied:
                own[name].copy_(given[name])
        return copied

    @staticmethod
    @abstractmethod
    def is_backbone(name: str) -> bool:
        """Whether a state-dict name belongs to the backbone body (not to the neck or the head)."""
