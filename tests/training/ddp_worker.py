"""What each of several training processes does; started by test_distributed.py."""

from __future__ import annotations

from pathlib import Path

import torch

from detkds import Policy, Term
from detkds.config import TrainConfig
from detkds.detectors import Detector, build_detector
from detkds.structures import Batch, Target
from detkds.training.loop import TrainingObserver, train
from detkds.training.processes import Processes
from detkds.training.student import StudentTrainer
from detkds.training.teacher import live

WORLD = 2
STEPS = 2
MEAN = Policy([Term("global", [], "l2", 0.1), Term("instance", [], "l1"), Term("logits", [], "kl", 0.5)])
"""Losses that are means over images and objects, of which every process has as many: averaging gradients is exact."""
MASKED = Policy(
    [Term("global", ["mask", "norm(N)"], "l1"), Term("fgbg", ["satt"], "l2"), Term("localization", ["sigmoid"], "ciou")]
)
LEARNED = Policy(
    [
        Term("global", [], "l2", adapter="generate"),
        Term("non_local", [], "l2", adapter="conv(3)"),
        Term("context", [], "l2"),
        Term("receptive", [], "l2", schedule="warmup(10)"),
    ]
)
"""Adapters and knowledge with weights of their own, on both sides and for some levels alone."""


def detector(seed: int, neck_channels: int) -> Detector:
    """A narrow detector without statistics over the batch, which every process would take over its own part."""
    torch.manual_seed(seed)
    options = {"backbone": "narrow4", "neck_channels": neck_channels, "head_convs": 1, "frozen_norm": True}
    return build_detector("retinanet", ["ant", "bee"], **options)


def batches(step: int, start: int, images: int) -> Batch:
    """Some of the images of a step, with two objects each."""
    pixels, targets = [], []
    for index in range(start, start + images):
        generator = torch.Generator().manual_seed(100 * step + index)
        corners = 30 * torch.rand(2, 2, generator=generator)
        boxes = torch.cat([corners, corners + 10 + 20 * torch.rand(2, 2, generator=generator)], 1)
        targets.append(Target(boxes=boxes, labels=torch.arange(2)))
        pixels.append(torch.rand(3, 64, 64, generator=generator))
    return Batch(torch.stack(pixels), torch.tensor([[64, 64]] * images), tuple(range(images)), targets)


def run(policy: Policy, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Train on this process's part of four images a step; weights, and losses as ``loss STEP NAME``."""
    config = TrainConfig(epochs=1, lr=0.02, warmup_steps=0, batch_size=4 // world)
    trainer = StudentTrainer(
        "one",
        detector(0, 8),
        policy,
        detector(1, 12),
        config,
        STEPS + 1,
        seed=0,
        device=torch.device("cpu"),
        distributed=world > 1,
    )
    kept: dict[str, torch.Tensor] = {}

    class Observer(TrainingObserver):
        def step(self, student: StudentTrainer, losses: dict[str, torch.Tensor]) -> None:
            kept.update({f"loss {student.steps} {name}": value for name, value in losses.items()})

    images = 4 // world
    parts = [batches(step, rank * images, images) for step in range(STEPS)]
    train(
        [trainer],
        lambda _: parts,
        config,
        live(detector(1, 12)),
        processes=Processes(rank, world),
        observer=Observer(),
    )
    return {
        **trainer.model.student.state_dict(),
        **trainer.model.distiller.adapters.state_dict(prefix="adapters."),
        **trainer.model.distiller.learned.state_dict(prefix="learned."),
        **kept,
    }


def main(folder: Path, rank: int) -> None:
    """Join the group, train with every policy and write what came out."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=WORLD)
    try:
        found = {
            name: run(policy, rank, WORLD)
            for name, policy in (("mean", MEAN), ("masked", MASKED), ("learned", LEARNED))
        }
    finally:
        torch.distributed.destroy_process_group()
    torch.save(found, folder / f"{rank}.pt")
