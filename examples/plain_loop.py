"""Distil in a training loop of your own: the `Distiller` is one more loss, for detectors that this package never saw.

Here torchvision's FCOS on a ResNet-18 learns from one on a ResNet-34, both with random weights, on random images:

    python examples/plain_loop.py
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detkds import Distiller, load_policy
from detkds.structures import DetectorOutput, FeatureSpec

LEVELS = {"0": 8, "1": 16, "2": 32, "p6": 64, "p7": 128}  # torchvision's names, and pixels per cell


def detector(body: nn.Module, channels: int) -> FCOS:
    """FCOS on a ResNet, with a pyramid of so many channels."""
    returned = {"layer2": "0", "layer3": "1", "layer4": "2"}
    neck = BackboneWithFPN(body, returned, [128, 256, 512], channels, LastLevelP6P7(channels, channels))
    return FCOS(neck, num_classes=3, min_size=128, max_size=128)


def levels(channels: int) -> dict[str, FeatureSpec]:
    """What the distiller has to know of a detector before it sees its features."""
    return {level: FeatureSpec(channels, stride) for level, stride in LEVELS.items()}


def main(steps: int = 3) -> None:
    """Train for a few steps and print the losses."""
    torch.manual_seed(0)
    student, teacher = detector(resnet18(), 64).train(), detector(resnet34(), 96).eval()

    # 1. One line: what to imitate, and between which features. Channels differ, so adapters are made and trained.
    distiller = Distiller(load_policy("detkds/released-global"), student=levels(64), teacher=levels(96))
    optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-3)

    # 2. The student runs once; a hook keeps the features of that pass, and the images as its backbone saw them.
    seen: dict[str, Tensor] = {}
    features: OrderedDict[str, Tensor] = OrderedDict()

    def keep(module: nn.Module, inputs: tuple[Tensor], maps: dict[str, Tensor]) -> None:
        seen["images"] = inputs[0]
        features.update(maps)

    student.backbone.register_forward_hook(keep)

    for step in range(steps):
        images = [torch.rand(3, 128, 128) for _ in range(4)]
        targets = [{"boxes": torch.tensor([[20.0, 30.0, 90.0, 100.0]]), "labels": torch.tensor([1])} for _ in images]
        losses: dict[str, Tensor] = student(images, targets)

        # 3. The teacher sees the same images; its losses are added to the student's own.
        with torch.no_grad():
            answer = teacher.backbone(seen["images"])
        sizes = torch.tensor([image.shape[-2:] for image in images])
        losses |= distiller(DetectorOutput(dict(features), sizes), DetectorOutput(answer, sizes), targets)

        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: " + ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()))


if __name__ == "__main__":
    main()
