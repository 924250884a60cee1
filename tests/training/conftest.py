"""Narrow pairs of detectors, batches and students that the training tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from detkds import Policy, Term
from detkds.config import TrainConfig
from detkds.data.coco import CocoDataset, load_coco
from detkds.data.digits import make_digits
from detkds.detectors import Detector, build_detector
from detkds.structures import Batch, Target
from detkds.training.loop import TrainingObserver
from detkds.training.setup import TrainingSetup
from detkds.training.student import StudentTrainer

DETECTORS = ("retinanet", "fcos", "faster_rcnn")
CPU = torch.device("cpu")
OPTIONS: dict[str, dict[str, Any]] = {
    "retinanet": {"head_convs": 1},
    "fcos": {"head_convs": 1},
    "gfl": {"head_convs": 1},
    "faster_rcnn": {
        "representation": 16,
        "roi_resolution": 3,
        "rpn_samples": 16,
        "roi_samples": 8,
        "rpn_pre_nms": 30,
        "rpn_post_nms": 15,
    },
}
FIVE = Policy(
    [
        Term("global", ["mask", "norm(N)"], "l1", 0.5),
        Term("fgbg", ["satt"], "l2"),
        Term("instance", ["norm(C)"], "smooth_l1"),
        Term("logits", [], "kl", 0.1),
        Term("localization", ["sigmoid"], "ciou"),
    ],
    name="five",
)
"""Every kind of knowledge and a random transform, on any pair."""
CONFIG = TrainConfig(epochs=2, batch_size=2, lr=0.01, warmup_steps=0)


def make_detector(name: str = "retinanet", *, seed: int = 0, neck_channels: int = 8, **options: Any) -> Detector:
    """A narrow detector of two classes with reproducible weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = {"backbone": "narrow4", "neck_channels": neck_channels, **OPTIONS.get(name, {}), **options}
        return build_detector(name, ["ant", "bee"], **settings)


def make_batch(seed: int, images: int = 2, side: int = 64) -> Batch:
    """Random images with one or two objects each."""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for image in range(images):
        count = 1 + image % 2
        corners = side / 2 * torch.rand(count, 2, generator=generator)
        boxes = torch.cat([corners, corners + 8 + side / 3 * torch.rand(count, 2, generator=generator)], 1)
        targets.append(Target(boxes=boxes, labels=torch.arange(count)))
    pixels = torch.rand(images, 3, side, side, generator=generator)
    return Batch(pixels, torch.tensor([[side, side]] * images), tuple(range(images)), targets)


def make_batches(epoch: int) -> list[Batch]:
    """Three batches of an epoch."""
    return [make_batch(10 * epoch + index) for index in range(3)]


def make_trainer(
    policy: Policy = FIVE,
    key: str = "one",
    detector: str = "retinanet",
    *,
    config: TrainConfig = CONFIG,
    seed: int = 0,
) -> StudentTrainer:
    """A student with its distiller; its neck is narrower than the teacher's, so that adapters are needed."""
    student, teacher = make_detector(detector, seed=seed), make_teacher(detector)
    return StudentTrainer(key, student, policy, teacher, config, total_steps=6, seed=seed, device=CPU)


def make_teacher(detector: str = "retinanet") -> Detector:
    """A teacher with a wider neck than the students' and anchors like theirs."""
    return make_detector(detector, seed=7, neck_channels=12)


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def trainer() -> Callable[..., StudentTrainer]:
    """``trainer(policy, key, detector, config=...)``."""
    return make_trainer


class Observer(TrainingObserver):
    """Calls ``on_step(student, losses)`` after a step, and ``on_epoch(done)`` after a pass."""

    def __init__(
        self,
        on_step: Callable[[StudentTrainer, dict[str, torch.Tensor]], object] = lambda student, losses: None,
        on_epoch: Callable[[int], object] = lambda done: None,
    ) -> None:
        super().__init__()
        self._on_step, self._on_epoch = on_step, on_epoch

    def step(self, student: StudentTrainer, losses: dict[str, torch.Tensor]) -> None:
        self._on_step(student, losses)

    def epoch(self, done: int, students: Sequence[StudentTrainer]) -> None:
        self._on_epoch(done)


@pytest.fixture
def observer() -> type[Observer]:
    """``observer(on_step=..., on_epoch=...)``."""
    return Observer


@pytest.fixture
def teacher() -> Callable[..., Detector]:
    """``teacher(detector)``."""
    return make_teacher


@pytest.fixture
def detector() -> Callable[..., Detector]:
    """``detector(name, seed=0, neck_channels=8)``."""
    return make_detector


@pytest.fixture
def batch() -> Callable[..., Batch]:
    """``batch(seed, images=2)``."""
    return make_batch


@pytest.fixture
def batches() -> Callable[[int], Sequence[Batch]]:
    """``batches(epoch)``: three batches."""
    return make_batches


@pytest.fixture
def five() -> Policy:
    """A policy of all five kinds of knowledge."""
    return FIVE


@pytest.fixture
def config() -> TrainConfig:
    """Two epochs of plain SGD."""
    return CONFIG


@pytest.fixture
def same() -> Callable[..., bool]:
    """``same(a, b)``: whether two state dicts are equal to the last bit."""
    return same_weights


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[CocoDataset, CocoDataset]:
    """7 and 3 images of 64 pixels, 2 classes."""
    parts = make_digits(tmp_path_factory.mktemp("digits") / "set", train=7, val=3, size=64, num_classes=2)
    return load_coco(*parts[0]), load_coco(*parts[1])


@pytest.fixture
def setup(few_digits: tuple[CocoDataset, CocoDataset]) -> Callable[..., TrainingSetup]:
    """``setup(detector, epochs=...)``: narrow students on a few digits, three steps an epoch."""

    def build(name: str = "retinanet", **changes: Any) -> TrainingSetup:
        config = TrainConfig(**{"epochs": 2, "batch_size": 2, "lr": 0.01, "warmup_steps": 0, **changes})
        return TrainingSetup(
            teacher=make_teacher(name),
            build_student=lambda seed, inherit: make_detector(name, seed=seed if inherit else seed + 100),
            train_data=few_digits[0],
            test_data=few_digits[1],
            config=config,
            size=64,
            device=CPU,
        )

    return build
