"""The optimizer and the learning-rate schedule of one training."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from detkds.config import TrainConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over everything that is trained; vectors (norms, biases) carry no weight decay."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # One kernel for all tensors: on small networks the update is a tenth of the step otherwise. It does not know how to
    # leave out a step whose gradient overflowed.
    fused = config.amp != "fp16" and all(p.device.type in ("cpu", "cuda") for p in trained)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=fused)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)


def lr_factor(step: int, total_steps: int, config: TrainConfig) -> float:
    """The learning rate at ``step`` as a fraction of ``config.lr``: linear warm-up, then cosine to 0 or steps.

    >>> lr_factor(0, 100, TrainConfig(warmup_steps=10)), lr_factor(10, 100, TrainConfig(warmup_steps=10))
    (0.1, 1.0)
    """
    warmup = min(config.warmup_steps, total_steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.step_factor ** sum(step / total_steps >= milestone for milestone in config.milestones)
