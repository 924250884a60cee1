"""What a term is worth before training: its size, its gradient beside the task's, and why it is no use."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from detkds import Distiller, Policy, Term
from detkds.detectors import Detector
from detkds.registry import DISTANCES
from detkds.structures import Batch, Kind, Pair
from detkds.training.calibrate import TermProbe, calibrate, probe_terms, unit
from detkds.training.teacher import teacher_forward


@pytest.fixture
def pair(detector, teacher) -> tuple[Detector, Detector]:
    return detector("retinanet"), teacher("retinanet")


def gradients(student: Detector, teacher: Detector, term: Term, batches: list[Batch]) -> tuple[float, float]:
    """Root mean squares of the two gradients' lengths on the features, measured apart from the code under test."""
    student.train()
    distiller = Distiller(Policy([term]), student=student, teacher=teacher, seed=3)
    squares = [0.0, 0.0]
    for batch in batches:
        output = student(batch)
        for maps in output.features.values():
            maps.retain_grad()
        [loss] = distiller(output, teacher_forward(teacher, batch), batch.targets).values()
        for index, value in enumerate((loss, sum(output.losses.values()))):
            for maps in output.features.values():
                maps.grad = None
            value.backward(retain_graph=True)
            squares[index] += sum(
                float((maps.grad**2).sum()) for maps in output.features.values() if maps.grad is not None
            )
    first, second = (math.sqrt(square / len(batches)) for square in squares)
    return first, second


@pytest.mark.parametrize(
    "term",
    [
        Term("global", ["norm(C)"], "l2", 0.5, "gradient"),
        Term("fgbg", [], "l1", 2, "gradient"),
        Term("logits", [], "kl", 0.25, "gradient"),
        Term("localization", ["decode"], "giou", 3, "gradient", levels=("p3", "p4")),
    ],
    ids=lambda term: term.label,
)
def test_a_ratio_becomes_the_weight_that_gives_this_ratio_of_gradients(term, pair, batches):
    student, teacher = pair
    probes = probe_terms([term], copy.deepcopy(student), teacher, batches(0), seed=3)
    [absolute] = calibrate(Policy([term]), probes).terms
    assert absolute.weighting == "absolute" and (absolute.knowledge, absolute.levels) == (term.knowledge, term.levels)
    distilled, task = gradients(student, teacher, absolute, list(batches(0)))
    assert distilled / task == pytest.approx(term.weight, rel=1e-3)


def test_measures_are_of_the_unit_term(pair, batches):
    student, teacher = pair
    terms = [Term("global", ["norm(C)"], "l2", weight) for weight in (0.1, 7)]
    probes = probe_terms(terms, copy.deepcopy(student), teacher, batches(0), seed=3)
    assert list(probes) == [unit(terms[0])] == [unit(terms[1])]
    [probe] = probes.values()
    distilled, task = gradients(copy.deepcopy(student), teacher, unit(terms[0]), list(batches(0)))
    assert (probe.gradient, probe.task_gradient) == (pytest.approx(distilled, rel=1e-4), pytest.approx(task, rel=1e-4))
    distiller = Distiller(Policy([unit(terms[0])]), student=student, teacher=teacher, seed=3)
    student.train()
    losses = [distiller(student(b), teacher_forward(teacher, b), b.targets)["global/l2"].item() for b in batches(0)]
    assert probe.loss == pytest.approx(max(losses), rel=1e-4)


def test_absolute_terms_pass_through(pair, batches, five):
    assert calibrate(five, {}) == five
    mixed = Policy([five.terms[0], Term("logits", [], "kl", 1, "gradient")], name="mixed")
    probes = probe_terms(mixed, copy.deepcopy(pair[0]), pair[1], batches(0), seed=0)
    after = calibrate(mixed, probes)
    assert after.terms[0] == five.terms[0] and after.terms[1].weighting == "absolute" and after.name == "mixed"


def test_probing_is_reproducible_and_needs_batches(pair, batches, five):
    first, second = (probe_terms(five, copy.deepcopy(pair[0]), pair[1], batches(0), seed=0) for _ in range(2))
    assert first == second and len(first) == 5
    with pytest.raises(ValueError, match="at least one calibration batch"):
        probe_terms(five, pair[0], pair[1], [], seed=0)


@pytest.mark.parametrize("name", ["fcos", "faster_rcnn"])
def test_every_kind_of_knowledge_has_a_gradient_on_every_detector(name, detector, teacher, batches, five):
    probes = probe_terms(five, detector(name), teacher(name), batches(0)[:1], seed=0)
    for term in five:
        probe = probes[unit(term)]
        assert 0 < probe.gradient < math.inf and 0 < probe.loss < math.inf and not probe.failure, str(term)


# -------------------------------------------------------------------------------------------------------- refusals


TERM = Term("global", [], "l2", 2)


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        (TermProbe(1.0, 1.0, 1.0), None),
        (TermProbe(50.0, 1.0, 1.0), None),
        (TermProbe(50.1, 1.0, 1.0), "its loss reaches 100.2 on the calibration batches, over 100"),
        (TermProbe(math.nan, 1.0, 1.0), "is not finite on the calibration batches"),
        (TermProbe(math.inf, 1.0, 1.0), "is not finite on the calibration batches"),
        (TermProbe(1.0, math.nan, 1.0), "is not finite on the calibration batches"),
        (TermProbe(1.0, 0.0, 1.0), "its loss has no gradient on the student's features"),
        (TermProbe(0.0, 0.0, 1.0, failure="ValueError: why"), "ValueError: why"),
    ],
)
def test_refusals(probe: TermProbe, expected: str | None):
    reason = probe.refusal(TERM)
    assert reason is None if expected is None else reason is not None and expected in reason
    assert expected is None or reason.startswith("term 'global: - | l2 x 2': ")


def test_the_limit_is_of_the_loss_as_it_will_be_weighted():
    relative = Term("global", [], "l2", 0.5, "gradient")
    assert TermProbe(1000.0, 100.0, 1.0).refusal(relative) is None  # 0.5 * 1 / 100 * 1000 = 5
    assert "reaches 500" in (TermProbe(10.0, 1.0, 100.0).refusal(relative) or "")
    assert TermProbe(1000.0, 0.0, 1.0).refusal(Term("global", [], "l2", 0)) is None


@dataclass(frozen=True)
class Odd:
    """A distance that misbehaves in one way."""

    how: str = "nan"

    name: ClassVar[str] = "l2"
    kinds: ClassVar[frozenset[Kind]] = frozenset(("feature",))

    def __call__(self, pair: Pair) -> torch.Tensor:
        if self.how == "raise":
            raise ValueError("cannot be compared")
        if self.how == "memory":
            raise torch.OutOfMemoryError("tried to allocate 80 GiB")
        if self.how == "flat":
            return pair.student.detach().sum()
        return pair.student.sum() * {"nan": math.nan, "huge": 1e9}[self.how]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("nan", "not finite"),
        ("huge", "over 100"),
        ("flat", "no gradient"),
        ("raise", "ValueError: cannot be compared"),
        ("memory", "OutOfMemoryError: tried to allocate 80 GiB"),
    ],
)
def test_a_useless_term_is_refused_and_leaves_the_others_measured(how, expected, pair, batches):
    odd, good = Term("global", [], Odd(how)), Term("global", [], DISTANCES.build("l1"))
    probes = probe_terms([odd, good], copy.deepcopy(pair[0]), pair[1], batches(0), seed=0)
    assert expected in (probes[unit(odd)].refusal(odd) or "")
    alone = probe_terms([good], copy.deepcopy(pair[0]), pair[1], batches(0), seed=0)
    assert probes[unit(good)] == alone[unit(good)] and probes[unit(good)].refusal(good) is None


def test_a_term_the_pair_cannot_serve_is_refused(detector, teacher, batches):
    terms = [Term("logits"), Term("global")]
    probes = probe_terms(terms, detector("retinanet"), teacher("fcos"), batches(0), seed=0)
    assert "PairError" in (probes[unit(terms[0])].refusal(terms[0]) or "")
    assert probes[unit(terms[1])].refusal(terms[1]) is None
