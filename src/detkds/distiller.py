"""The one module that turns a policy into losses, for any pair of detectors and in anybody's training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from detkds.alignment import RESPONSES, align_responses, match_levels
from detkds.errors import Faults, PairError
from detkds.policy import Policy, Term
from detkds.registry import expression
from detkds.structures import DetectorInfo, DetectorOutput, FeatureSpec, KnowledgeInput, Pair, Target

Described = DetectorInfo | Mapping[str, FeatureSpec] | Any


class Distiller(nn.Module):
    """Computes the distillation losses of a policy from one output of the student and one of the teacher.

    It holds no detector. What answers to what is decided in :mod:`detkds.alignment`: levels by stride, classes by name,
    object queries by what they predict. What is learned for the comparison alone, the adapters of the student's maps
    (where a term names none: a 1x1 convolution where channels differ) and the learned parts of some knowledge, are the
    module's only parameters, are trained with the student and never exported.

    Args:
        policy: absolute weights only; see :func:`detkds.training.calibrate.calibrate` for relative ones.
        student, teacher: detectors with an ``info``, a ``DetectorInfo``, or a mapping of level to ``FeatureSpec``.
        seed: of the learned parts' initial weights and of random transforms.
        total_steps: of the training, for schedules that need to know its end.

    Raises:
        PairError: naming every term that this pair cannot serve, and why.
    """

    def __init__(
        self, policy: Policy, *, student: Described, teacher: Described, seed: int = 0, total_steps: int | None = None
    ) -> None:
        super().__init__()
        self.policy = policy
        self.seed = seed
        self.total_steps = total_steps
        self.step = 0
        student, teacher = _describe(student), _describe(teacher)
        check_pair(policy, student, teacher)
        _check_schedules(policy, total_steps)
        self.layouts = student.layout, teacher.layout
        self.levels = match_levels(student, teacher)
        self.strides = {level: match.strides[1] for level, match in self.levels.items()}
        self.adapters, self.learned = nn.ModuleDict(), nn.ModuleDict()
        self._build_learned(torch.Generator().manual_seed(seed))

    @property
    def reads_responses(self) -> bool:
        """Whether some term reads the head's responses, not the features alone."""
        return any(term.knowledge.reads_responses for term in self.policy)

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
        step = self.step
        self.step += self.training
        losses: dict[str, Tensor] = {}
        with torch.autocast(next(iter(student.features.values())).device.type, enabled=False):
            student, teacher = self._align(student, teacher)
            adapted: dict[str, DetectorOutput] = {}
            pairs: dict[Any, list[Pair]] = {}
            for term in self.policy:
                # Every term starts from the same draw, so that its loss does not depend on the terms before it.
                generator.manual_seed(draw)
                adapter, levels = expression(term.adapter), self._levels_of(term)
                if adapter not in adapted:
                    adapted[adapter] = replace(student, features=self._adapt(student.features, term, generator))
                source = (term.knowledge, tuple(levels), adapter)
                if source not in pairs:
                    learned = dict(self.learned.items())
                    knowledge = learned.get(_learned_name(term, levels), term.knowledge)
                    generator.manual_seed(draw)
                    inputs = KnowledgeInput(adapted[adapter], teacher, targets, levels, generator)
                    pairs[source] = list(knowledge(inputs))
                    _check_shapes(term, pairs[source])
                share = term.schedule(step, self.total_steps)
                loss = term_loss(term, pairs[source], generator.manual_seed(draw))
                losses[_unused(term.label, losses)] = loss if share == 1 else share * loss
        return losses

    def _align(self, student: DetectorOutput, teacher: DetectorOutput) -> tuple[DetectorOutput, DetectorOutput]:
        """Both outputs in full precision, under the student's level names, the teacher's without gradient."""
        student_features, teacher_features = {}, {}
        for level in self._feature_levels():
            wanted = _full(_at(teacher.features, self.levels[level].teacher, "teacher")).detach()
            feature, size = _full(_at(student.features, level, "student")), wanted.shape[-2:]
            if feature.shape[-2:] != size:
                feature = functional.interpolate(feature, size, mode="bilinear", align_corners=False)
            student_features[level], teacher_features[level] = feature, wanted
        student = replace(student, features=student_features, layout=self.layouts[0])
        teacher = replace(teacher, features=teacher_features, layout=self.layouts[1])
        if not self.reads_responses:
            return student, teacher
        levels = {name: match.teacher for name, match in self.levels.items() if not match.resized}
        return align_responses(_widened(student), _widened(teacher), levels)

    def _adapt(self, features: Mapping[str, Tensor], term: Term, generator: torch.Generator) -> dict[str, Tensor]:
        """The student's maps after a term's adapter."""
        adapted = dict(features)
        given = (generator,) if term.adapter.draws else ()
        for level, feature in features.items():
            name = _adapter_name(level, expression(term.adapter))
            if name in self.adapters:
                adapted[level] = self.adapters[name](feature, *given)
        return adapted

    def _build_learned(self, generator: torch.Generator) -> None:
        """The adapters and the learned parts of every term; what two terms have in common is learned once."""
        reading = [term for term in self.policy if _reads_features(term)]
        adapters = {expression(term.adapter) for term in reading}
        for adapter in sorted(adapters, key=lambda adapter: (adapter != "auto", adapter)):
            terms = [term for term in reading if expression(term.adapter) == adapter]
            for level, match in self.levels.items():
                if any(level in self._levels_of(term) for term in terms):
                    module = terms[0].adapter.build(*match.channels, generator)
                    if module is not None:
                        self.adapters[_adapter_name(level, adapter)] = module
        for term in self.policy:
            levels = self._levels_of(term)
            channels = {level: self.levels[level].channels[1] for level in levels}
            if (name := _learned_name(term, levels)) not in self.learned:
                module = term.knowledge.learned(channels, generator)
                if module is not None:
                    self.learned[name] = module

    def _levels_of(self, term: Term) -> dict[str, float]:
        """The levels that a term compares, with the pixels per cell of the compared maps."""
        return {level: stride for level, stride in self.strides.items() if not term.levels or level in term.levels}

    def _feature_levels(self) -> list[str]:
        """The levels whose feature maps some term reads."""
        return [k for k in self.levels if any(_reads_features(t) and k in self._levels_of(t) for t in self.policy)]

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
            pair = replace(transform(pair), kind=transform.kinds[pair.kind])
        total = total + pair.factor * term.distance(pair)
    return term.weight * total


def check_pair(policy: Policy, student: Described, teacher: Described) -> None:
    """Raise a ``PairError`` that names every term the pair cannot serve and why; return quietly where it serves all."""
    student, teacher = _describe(student), _describe(teacher)
    faults = Faults(f"policy {policy.name!r}" if policy.name else "policy")
    common = match_levels(student, teacher)
    for term in policy:
        refusal = None if common else _no_common_level(student, teacher)
        if refusal := refusal or _refusal(term, student, teacher):
            faults.add(f"term '{term}' cannot be distilled between these detectors: {refusal}")
        if term.weighting != "absolute":
            faults.add(f"term '{term}': its weight is relative to the task's gradient; calibrate the policy first")
        if unknown := [level for level in term.levels if level not in common]:
            faults.add(f"term '{term}': no common level {', '.join(unknown)}; common: {', '.join(common) or 'none'}")
    faults.raise_as(PairError)


def _refusal(term: Term, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
    """The first piece's reason why it cannot serve this pair; None where all can."""
    pieces = (term.knowledge, *term.transforms)
    reasons = (piece.refusal(student, teacher) for piece in pieces)
    return next((reason for reason in reasons if reason), None)


def _no_common_level(student: DetectorInfo, teacher: DetectorInfo) -> str:
    strides = (sorted(spec.stride for spec in info.features.values()) for info in (student, teacher))
    return "no levels of equal or similar stride; student {}, teacher {}".format(*strides)


def _describe(source: Described) -> DetectorInfo:
    if isinstance(source, DetectorInfo):
        return source
    if isinstance(source, Mapping):
        return DetectorInfo(features=source)
    return source.info


def _check_schedules(policy: Policy, total_steps: int | None) -> None:
    faults = Faults(f"policy {policy.name!r}" if policy.name else "policy")
    for term in policy:
        if term.schedule.needs_total and total_steps is None:
            faults.add(f"term '{term}': its schedule counts from the end; give the distiller total_steps")
    faults.raise_as(PairError)


def _reads_features(term: Term) -> bool:
    return term.knowledge.yields == "feature"


def _learned_name(term: Term, levels: Mapping[str, float]) -> str:
    adapter = expression(term.adapter)
    return _module_name(" ".join((expression(term.knowledge), *levels, *(() if adapter == "auto" else (adapter,)))))


def _adapter_name(level: str, adapter: str) -> str:
    return _module_name(level if adapter == "auto" else f"{level} {adapter}")


def _module_name(text: str) -> str:
    """A text as the name of a submodule, which must not hold a dot."""
    return text.replace(".", "-")


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
