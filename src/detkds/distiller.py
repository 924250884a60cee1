"""The one module that turns a policy into losses, for any pair of detectors and in anybody's training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from detkds.errors import Faults, PairError
from detkds.policy import Policy, Term
from detkds.structures import DetectorInfo, DetectorOutput, FeatureSpec, Pair, Target

Described = DetectorInfo | Mapping[str, FeatureSpec] | Any


class Distiller(nn.Module):
    """Computes the distillation losses of a policy from one output of the student and one of the teacher.

    It holds no detector. Levels are matched by stride. Where channels differ at a level, a 1x1 convolution adapts the
    student; these adapters are the module's only parameters, are trained with the student and never exported.

    Args:
        policy: absolute weights only; see :func:`detkds.training.calibrate.calibrate` for relative ones.
        student, teacher: detectors with an ``info``, a ``DetectorInfo``, or a mapping of level to ``FeatureSpec``.
        seed: of the adapters' initial weights and of random transforms.

    Raises:
        PairError: naming every term that this pair cannot serve, and why.
    """

    def __init__(self, policy: Policy, *, student: Described, teacher: Described, seed: int = 0) -> None:
        super().__init__()
        self.policy = policy
        self.seed = seed
        self.step = 0
        ours, theirs = _describe(student), _describe(teacher)
        self.teacher_level = _match_levels(ours, theirs)
        self.strides = {level: ours.features[level].stride for level in self.teacher_level}
        check_pair(policy, ours, theirs)
        self.adapters = nn.ModuleDict()
        generator = torch.Generator().manual_seed(seed)
        for level in self._feature_levels():
            channels = ours.features[level].channels, theirs.features[self.teacher_level[level]].channels
            if channels[0] != channels[1]:
                self.adapters[level] = _adapter(*channels, generator)

    def forward(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor]:
        """The weighted losses of one step, scalars in float32, named ``knowledge/distance``.

        Args:
            student, teacher: outputs for the same padded batch.
            targets: the objects of each image, ``boxes (R, 4)``; needed by ``fgbg`` and ``instance``.
        """
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.step) % 2**63)
        self.step += self.training
        losses: dict[str, Tensor] = {}
        with torch.autocast(student.image_sizes.device.type, enabled=False):
            student, teacher = self._align(student, teacher)
            pairs: dict[Any, list[Pair]] = {}
            for term in self.policy:
                levels = {k: s for k, s in self.strides.items() if not term.levels or k in term.levels}
                source = (term.knowledge, tuple(levels))
                if source not in pairs:
                    pairs[source] = list(term.knowledge(student, teacher, targets, levels))  # type: ignore[operator]
                losses[_unused(term.label, losses)] = term_loss(term, pairs[source], generator)
        return losses

    def _align(self, student: DetectorOutput, teacher: DetectorOutput) -> tuple[DetectorOutput, DetectorOutput]:
        """Both outputs in full precision, under the student's level names, maps of equal size, teacher detached."""
        ours, theirs = {}, {}
        for level in self._feature_levels():
            theirs[level] = _full(teacher.features[self.teacher_level[level]]).detach()
            feature = _full(student.features[level])
            if feature.shape[-2:] != theirs[level].shape[-2:]:
                feature = functional.interpolate(feature, theirs[level].shape[-2:], mode="bilinear", align_corners=False)
            ours[level] = self.adapters[level](feature) if level in self.adapters else feature
        if not any(term.knowledge.yields != "feature" for term in self.policy):  # type: ignore[union-attr]
            return replace(student, features=ours), replace(teacher, features=theirs)
        if student.layout.kind == "region":
            assert student.proposals is not None and teacher.respond_at is not None
            with torch.no_grad():
                response = teacher.respond_at([p.detach() for p in student.proposals])
            rows = {"logits": response.logits, "regression": response.regression, "boxes": response.boxes}
            answers = {name: {"roi": _full(tensor).detach()} for name, tensor in rows.items()}
        else:
            answers = {
                name: {
                    level: _full(getattr(teacher, name)[self.teacher_level[level]]).detach()
                    for level in self.strides
                    if self.teacher_level[level] in getattr(teacher, name)
                }
                for name in ("logits", "regression", "boxes")
            }
        own = {
            name: {k: _full(v) for k, v in getattr(student, name).items()} for name in ("logits", "regression", "boxes")
        }
        return replace(student, features=ours, **own), replace(teacher, features=theirs, **answers)

    def _feature_levels(self) -> list[str]:
        """The levels whose feature maps some term reads."""
        reading = [term for term in self.policy if term.knowledge.yields == "feature"]  # type: ignore[union-attr]
        return [k for k in self.teacher_level if any(not t.levels or k in t.levels for t in reading)]

    def get_extra_state(self) -> dict[str, int]:
        """The step, so that random transforms go on where they stopped."""
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore the step."""
        self.step = state["step"]


def term_loss(term: Term, pairs: Sequence[Pair], generator: torch.Generator | None = None) -> Tensor:
    """The weighted loss of one term: the sum over its pairs of weight x factor x distance(transforms(pair))."""
    total = torch.zeros((), device=pairs[0].student.device if pairs else None)
    for pair in pairs:
        pair = replace(pair, generator=generator)
        for transform in term.transforms:
            pair = replace(transform(pair), kind=transform.kinds[pair.kind])  # type: ignore[operator,union-attr]
        total = total + pair.factor * term.distance(pair)  # type: ignore[operator]
    return term.weight * total


def check_pair(policy: Policy, student: Described, teacher: Described) -> None:
    """Raise a ``PairError`` that names every term the pair cannot serve and why; return quietly where it serves all."""
    ours, theirs = _describe(student), _describe(teacher)
    faults = Faults(f"policy {policy.name!r}" if policy.name else "policy")
    common = _match_levels(ours, theirs)
    for term in policy:
        refusal = None if common else _no_common_level(ours, theirs)
        refusal = refusal or term.knowledge.refusal(ours, theirs)  # type: ignore[union-attr]
        if refusal:
            faults.add(f"term '{term}' cannot be distilled between these detectors: {refusal}")
        if term.weighting != "absolute":
            faults.add(f"term '{term}': its weight is relative to the task's gradient; calibrate the policy first")
        if unknown := [level for level in term.levels if level not in common]:
            faults.add(f"term '{term}': no common level {', '.join(unknown)}; common: {', '.join(common) or 'none'}")
    faults.raise_as(PairError)


def _match_levels(student: DetectorInfo, teacher: DetectorInfo) -> dict[str, str]:
    """The student's level names mapped to the teacher's level of the same stride."""
    by_stride = {spec.stride: level for level, spec in teacher.features.items()}
    return {k: by_stride[spec.stride] for k, spec in student.features.items() if spec.stride in by_stride}


def _no_common_level(student: DetectorInfo, teacher: DetectorInfo) -> str:
    strides = (sorted(spec.stride for spec in info.features.values()) for info in (student, teacher))
    return "no level of equal stride; student {}, teacher {}".format(*strides)


def _describe(source: Described) -> DetectorInfo:
    if isinstance(source, DetectorInfo):
        return source
    if isinstance(source, Mapping):
        return DetectorInfo(features=source)
    return source.info


def _adapter(student_channels: int, teacher_channels: int, generator: torch.Generator) -> nn.Conv2d:
    adapter = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
    nn.init.kaiming_uniform_(adapter.weight, a=5**0.5, generator=generator)
    assert adapter.bias is not None
    nn.init.zeros_(adapter.bias)
    return adapter


def _full(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _unused(label: str, taken: Mapping[str, Any]) -> str:
    count = sum(name.partition("#")[0] == label for name in taken)
    return f"{label}#{count + 1}" if count else label
