"""The one module that turns a policy into losses, for any pair of detectors and in anybody's training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from detkds.alignment import RESPONSES, align_responses, match_levels
from detkds.errors import Faults, PairError
from detkds.policy import Policy, Term
from detkds.structures import DetectorInfo, DetectorOutput, FeatureSpec, Pair, Target

Described = DetectorInfo | Mapping[str, FeatureSpec] | Any


class Distiller(nn.Module):
    """Computes the distillation losses of a policy from one output of the student and one of the teacher.

    It holds no detector. What answers to what is decided in :mod:`detkds.alignment`: levels by stride, classes by name,
    object queries by what they predict. Where channels differ at a level, a 1x1 convolution adapts the student; these
    adapters are the module's only parameters, are trained with the student and never exported.

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
        check_pair(policy, ours, theirs)
        self.layouts = ours.layout, theirs.layout
        self.levels = match_levels(ours, theirs)
        self.strides = {level: match.strides[1] for level, match in self.levels.items()}
        self.adapters = nn.ModuleDict()
        generator = torch.Generator().manual_seed(seed)
        for level in self._feature_levels():
            if self.levels[level].adapted:
                self.adapters[_module_name(level)] = _adapter(*self.levels[level].channels, generator)

    @property
    def reads_responses(self) -> bool:
        """Whether some term reads the head's responses, not the features alone."""
        return any(term.knowledge.yields != "feature" for term in self.policy)  # type: ignore[union-attr]

    def forward(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor]:
        """The weighted losses of one step, scalars in float32, named ``knowledge/distance``.

        Args:
            student, teacher: outputs for the same padded batch.
            targets: the objects of each image, ``boxes (R, 4)``; needed by ``fgbg`` and ``instance``.
        """
        if not len(self.policy):
            return {}
        generator = torch.Generator()
        draw = (self.seed * 1_000_003 + self.step) % 2**63
        self.step += self.training
        losses: dict[str, Tensor] = {}
        with torch.autocast(next(iter(student.features.values())).device.type, enabled=False):
            student, teacher = self._align(student, teacher)
            pairs: dict[Any, list[Pair]] = {}
            for term in self.policy:
                levels = {k: s for k, s in self.strides.items() if not term.levels or k in term.levels}
                source = (term.knowledge, tuple(levels))
                if source not in pairs:
                    pairs[source] = list(term.knowledge(student, teacher, targets, levels))  # type: ignore[operator]
                    _check_shapes(term, pairs[source])
                # Every term starts from the same draw, so that its loss does not depend on the terms before it.
                losses[_unused(term.label, losses)] = term_loss(term, pairs[source], generator.manual_seed(draw))
        return losses

    def _align(self, student: DetectorOutput, teacher: DetectorOutput) -> tuple[DetectorOutput, DetectorOutput]:
        """Both outputs in full precision, under the student's level names, the teacher's without gradient."""
        ours, theirs = self._features(student, teacher)
        student = replace(student, features=ours, layout=self.layouts[0])
        teacher = replace(teacher, features=theirs, layout=self.layouts[1])
        if not self.reads_responses:
            return student, teacher
        levels = {name: match.teacher for name, match in self.levels.items() if not match.resized}
        return align_responses(_widened(student), _widened(teacher), levels)

    def _features(
        self, student: DetectorOutput, teacher: DetectorOutput
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The maps of every level that some term reads; the student's resized and adapted to the teacher's."""
        ours, theirs = {}, {}
        for level in self._feature_levels():
            theirs[level] = _full(_at(teacher.features, self.levels[level].teacher, "teacher")).detach()
            feature, size = _full(_at(student.features, level, "student")), theirs[level].shape[-2:]
            if feature.shape[-2:] != size:
                feature = functional.interpolate(feature, size, mode="bilinear", align_corners=False)
            name = _module_name(level)
            ours[level] = self.adapters[name](feature) if name in self.adapters else feature
        return ours, theirs

    def _feature_levels(self) -> list[str]:
        """The levels whose feature maps some term reads."""
        reading = [term for term in self.policy if term.knowledge.yields == "feature"]  # type: ignore[union-attr]
        return [k for k in self.levels if any(not t.levels or k in t.levels for t in reading)]

    def get_extra_state(self) -> dict[str, int]:
        """The step, so that random transforms go on where they stopped."""
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore the step."""
        self.step = state["step"]


def term_loss(term: Term, pairs: Sequence[Pair], generator: torch.Generator | None = None) -> Tensor:
    """The weighted loss of one term: weight times the sum over its pairs of factor x distance(transforms(pair))."""
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
    common = match_levels(ours, theirs)
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


def _no_common_level(student: DetectorInfo, teacher: DetectorInfo) -> str:
    strides = (sorted(spec.stride for spec in info.features.values()) for info in (student, teacher))
    return "no levels of equal or similar stride; student {}, teacher {}".format(*strides)


def _describe(source: Described) -> DetectorInfo:
    if isinstance(source, DetectorInfo):
        return source
    if isinstance(source, Mapping):
        return DetectorInfo(features=source)
    return source.info


def _adapter(student_channels: int, teacher_channels: int, generator: torch.Generator) -> nn.Conv2d:
    # Without its own initial values, which would be drawn from the global generator.
    adapter = cast(nn.Conv2d, skip_init(nn.Conv2d, student_channels, teacher_channels, kernel_size=1))
    nn.init.kaiming_uniform_(adapter.weight, a=5**0.5, generator=generator)
    assert adapter.bias is not None
    nn.init.zeros_(adapter.bias)
    return adapter


def _module_name(level: str) -> str:
    """A level's name as that of a submodule, which must not hold a dot."""
    return level.replace(".", "-")


def _at(features: Mapping[str, Tensor], level: str, side: str) -> Tensor:
    if level not in features:
        raise ValueError(
            f"the {side}'s output has no features at level {level!r}; it has {', '.join(features) or 'none'}"
        )
    return features[level]


def _check_shapes(term: Term, pairs: Sequence[Pair]) -> None:
    for pair in pairs:
        if pair.student.shape != pair.teacher.shape:
            shapes = f"student {tuple(pair.student.shape)}, teacher {tuple(pair.teacher.shape)}"
            raise ValueError(f"term '{term}': expected tensors of one shape, got {shapes}; give both the same batch")


def _widened(output: DetectorOutput) -> DetectorOutput:
    """The output with its responses in full precision."""
    return replace(
        output, **{name: {k: _full(value) for k, value in getattr(output, name).items()} for name in RESPONSES}
    )


def _full(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _unused(label: str, taken: Mapping[str, Any]) -> str:
    count = sum(name.partition("#")[0] == label for name in taken)
    return f"{label}#{count + 1}" if count else label
