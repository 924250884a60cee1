"""Distil into a detector that this package never saw: `hooked` needs its feature maps, its loss and its predictions.

The foreign detector is a small CenterNet (Zhou et al. 2019, arXiv 1904.07850): one level of stride 4, where a peak of a
heat map is an object's centre. It learns from an FCOS on the embedded digits, in seconds:

    python examples/foreign_detector.py

The same from a run configuration, with this file where Python finds it:

    student:
      detector: hooked
      options:
        model: foreign_detector:CenterNet
        arguments: {num_classes: 2}
        features: {fine: [neck, 4], middle: ['backbone[middle]', 8]}
        losses: foreign_detector:losses
        predictions: foreign_detector:predictions
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkds.config import TrainConfig
from detkds.data.coco import load_coco
from detkds.data.digits import make_digits
from detkds.detectors import Detector, build_detector
from detkds.policy import Policy, load_policy
from detkds.structures import Batch, Detections
from detkds.training.loop import TrainingObserver
from detkds.training.population import StudentSpec, train_population
from detkds.training.setup import TrainingSetup
from detkds.training.student import StudentTrainer

STRIDE = 4


# --- The foreign detector: plain torch. Nothing of it was written with distillation in mind. ---


class Body(nn.Module):
    """Images to maps of stride 4 and 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(3, width, 2), block(width, width, 2), block(width, width, 1))
        self.stage = nn.Sequential(block(width, 2 * width, 2), block(2 * width, 2 * width, 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = self.stem(images)
        return {"fine": fine, "middle": self.stage(fine)}


class CenterNet(nn.Module):
    """Images to maps of ``num_classes`` heats and of four side lengths in strides: left, top, right, bottom."""

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.backbone = Body(width)
        self.neck = block(3 * width, 2 * width, 1)
        self.heat = nn.Sequential(block(2 * width, width, 1), nn.Conv2d(width, num_classes, 1))
        self.sides = nn.Sequential(block(2 * width, width, 1), nn.Conv2d(width, 4, 1))
        nn.init.constant_(self.heat[-1].bias, -2.0)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.backbone(images)
        coarse = F.interpolate(maps["middle"], maps["fine"].shape[-2:])
        features = self.neck(torch.cat((maps["fine"], coarse), dim=1))
        return self.heat(features), self.sides(features).exp()


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


# --- What `hooked` asks for: two functions of the model, the batch and what the model returned. ---


def losses(model: nn.Module, batch: Batch, raw: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """The focal loss of the heat, whose peaks are Gaussian, and the L1 distance of the sides at the centres."""
    heat, sides = raw
    wanted, errors, count = torch.zeros_like(heat), [], 0
    rows, columns = (torch.arange(n, device=heat.device) for n in heat.shape[-2:])
    for image, target in enumerate(batch.targets or []):
        boxes = target["boxes"] / STRIDE
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        for box, (x, y), label in zip(boxes, centres.long().tolist(), target["labels"].tolist(), strict=True):
            spread = ((box[2:] - box[:2]).mean() / 6).clamp_min(0.5)
            distance = (rows[:, None] - y) ** 2 + (columns[None, :] - x) ** 2
            wanted[image, label] = torch.maximum(wanted[image, label], torch.exp(-distance / (2 * spread**2)))
            lengths = torch.stack((x - box[0], y - box[1], box[2] - x, box[3] - y))
            errors.append((sides[image, :, y, x] - lengths).abs().sum())
            count += 1
    score, at_peak = heat.sigmoid().clamp(1e-4, 1 - 1e-4), wanted == 1
    peaks = ((1 - score) ** 2 * score.log())[at_peak].sum()
    others = ((1 - wanted) ** 4 * score**2 * (1 - score).log())[~at_peak].sum()
    distances = torch.stack(errors).sum() if errors else sides.sum() * 0
    return {"heat": -(peaks + others) / max(count, 1), "sides": 0.1 * distances / max(count, 1)}


def predictions(model: nn.Module, batch: Batch, raw: tuple[Tensor, Tensor]) -> list[Detections]:
    """The strongest peaks of the heat that outshine their neighbours."""
    heat, sides = raw[0].sigmoid(), raw[1].flatten(2)
    cells, width = heat[0, 0].numel(), heat.shape[-1]
    heat = heat * (F.max_pool2d(heat, 3, stride=1, padding=1) == heat)
    found = []
    for one, lengths in zip(heat, sides, strict=True):
        scores, places = one.flatten().topk(30)
        cell, label = places % cells, places // cells
        centre = torch.stack((cell % width, cell // width), dim=1)
        before, after = lengths[:, cell].T.split(2, dim=1)
        found.append(Detections(torch.cat((centre - before, centre + after), dim=1) * STRIDE, scores, label))
    return found


# --- A pair of them. ---


class Steps(TrainingObserver):
    """Keeps the losses of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[dict[str, float]] = []

    def step(self, student: StudentTrainer, losses: dict[str, Tensor]) -> None:
        self.losses.append({name: loss.item() for name, loss in losses.items()})


def main(teacher_epochs: int = 6, epochs: int = 5) -> None:
    """Train the teacher, distil it into the foreign detector, and print its losses and its precision."""
    torch.set_num_threads(1)
    cpu, size = torch.device("cpu"), 64
    with tempfile.TemporaryDirectory() as folder:
        paths = make_digits(Path(folder), train=64, val=32, size=size, num_classes=2)
        train, test = (load_coco(*path) for path in paths)
        names = train.class_names

        def make_teacher(seed: int, inherit: bool) -> Detector:
            return build_detector("fcos", names, backbone="narrow16", neck_channels=32, head_convs=1)

        def make_student(seed: int, inherit: bool) -> Detector:
            return build_detector(
                "hooked",
                names,
                model=CenterNet(len(names)),
                features={"fine": ["neck", 4], "middle": ["backbone[middle]", 8]},  # channels are found by one pass
                losses=losses,
                predictions=predictions,
            )

        config = TrainConfig(epochs=teacher_epochs, batch_size=4, optimizer="adamw", lr=0.008, warmup_steps=8)
        alone = TrainingSetup(None, make_teacher, train, test, config, size, cpu)
        [teacher] = train_population(alone, [StudentSpec("teacher", Policy())], seed=0)

        config = config.model_copy(update={"epochs": epochs})
        pair = TrainingSetup(teacher.student, make_student, train, test, config, size, cpu)
        watching = Steps()
        [student] = train_population(pair, [StudentSpec("student", load_policy("pkd"))], seed=0, observer=watching)
        for name, first in watching.losses[0].items():
            print(f"{name}: {first:.2f} in the first step, {watching.losses[-1][name]:.2f} in the last")
        assert student.metrics is not None, student.failure
        print(f"AP50 {100 * student.metrics.ap50:.1f} on the test images")


if __name__ == "__main__":
    main()
