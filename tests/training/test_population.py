"""What students share, how many steps they take, and how processes share the batches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from detkds import Policy, Term
from detkds.data.loader import batch_count
from detkds.errors import DataError
from detkds.evaluation.coco_ap import Metrics
from detkds.training.population import StudentSpec, train_population
from detkds.training.processes import Processes
from detkds.training.setup import TrainingSetup

FITNETS = Policy([Term("global", [], "l2", 0.1)])


@pytest.mark.parametrize(
    ("draws", "batch_size", "world", "expected"),
    [
        (8, 2, 1, 4),
        (7, 2, 1, 3),  # a last batch of one image is left out
        (7, 3, 1, 2),
        (8, 3, 1, 3),
        (7, 1, 1, 7),  # unless all are that small
        (1, 4, 1, 1),
        (8, 2, 3, 1),  # the uneven tail is left out
        (8, 2, 2, 2),
        (14, 2, 3, 2),
    ],
)
def test_counts_agree_with_the_batches(setup, draws, batch_size, world, expected):
    assert batch_count(draws, batch_size, world) == expected
    one = setup(draws=draws, batch_size=batch_size)
    assert one.steps(epochs=3, world=world) == 3 * expected
    for rank in range(world):
        assert len(list(one.batches(0, Processes(rank, world))(0))) == expected
    if world == 1:
        assert one.steps_per_epoch == expected


def test_processes_share_the_batches_of_one(setup):
    one = setup(draws=14, batch_size=2)
    alone = [batch.image_ids for batch in one.batches(5)(1)]
    shares = [[batch.image_ids for batch in one.batches(5, Processes(rank, 3))(1)] for rank in range(3)]
    assert [shares[index % 3][index // 3] for index in range(6)] == alone[:6]


def test_a_process_reads_no_image_of_another(setup):
    one = setup(draws=6, batch_size=2)
    seen = {image for batch in one.batches(0, Processes(1, 3))(0) for image in batch.image_ids}
    assert set(one.store._images) == seen and len(seen) == 2


def test_more_processes_than_batches_are_refused(setup):
    one = setup(draws=4, batch_size=2)
    with pytest.raises(DataError, match="at least one batch for each of 3 processes, got 4 images in 2 batches"):
        one.steps(epochs=1, world=3)
    with pytest.raises(ValueError, match="rank: expected a whole number from 0 to 1, got 2"):
        one.batches(0, Processes(2, 2))(0)


def test_batches_depend_on_the_seed_and_the_epoch(setup):
    one = setup()
    first, again, other, later = (
        next(iter(one.batches(seed)(epoch))) for seed, epoch in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(first.images, again.images) and first.image_ids == again.image_ids
    assert not torch.equal(first.images, other.images) and not torch.equal(first.images, later.images)


def test_students_are_trained_and_measured_in_order(setup):
    trained = train_population(
        setup(),
        [StudentSpec("plain", Policy()), StudentSpec("other", FITNETS), StudentSpec("fresh", Policy(), False)],
        seed=0,
    )
    assert [result.key for result in trained] == ["plain", "other", "fresh"]
    assert all(one.failure is None and one.metrics is not None and 0 <= one.metrics.ap <= 1 for one in trained)
    assert all(one.seconds > 0 for one in trained)
    weights = [one.student.state_dict()["model.backbone.fpn.inner_blocks.0.0.weight"] for one in trained]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_population_gives_what_each_gives_alone(setup, same):
    specs = [StudentSpec("a", FITNETS), StudentSpec("b", Policy()), StudentSpec("c", FITNETS)]
    together = train_population(setup(), specs, seed=3)
    assert [result.key for result in together] == ["a", "b", "c"]
    [alone] = train_population(setup(), specs[:1], seed=3)
    assert same(alone.student.state_dict(), together[0].student.state_dict())
    assert same(alone.student.state_dict(), together[2].student.state_dict())
    assert alone.curve == together[0].curve and alone.metrics == together[0].metrics


def test_a_curve_has_the_mean_losses_of_every_pass(setup, observer):
    steps = []
    watching = observer(lambda student, losses: steps.append({name: loss.item() for name, loss in losses.items()}))
    [result] = train_population(setup(epochs=2), [StudentSpec("a", FITNETS)], seed=0, observer=watching)
    assert len(result.curve) == 2 and len(steps) == 6
    for number, record in enumerate(result.curve):
        own = steps[3 * number : 3 * number + 3]
        assert record == pytest.approx({name: sum(step[name] for step in own) / 3 for name in own[0]})


def test_validation_ap_is_measured_every_so_many_passes_and_at_the_end(setup, few_digits, monkeypatch, same):
    plain = setup(epochs=5)
    watched = replace(
        setup(epochs=5, validate_every=2), validation_data=few_digits[1].subset(few_digits[1].image_ids[:1])
    )
    measured = []
    real = TrainingSetup.measure

    def measure(setup, detector, data=None):
        measured.append(len(setup.test_data if data is None else data))
        return real(setup, detector, data)

    monkeypatch.setattr(TrainingSetup, "measure", measure)
    [expected] = train_population(plain, [StudentSpec("a", Policy())], seed=0)
    measured.clear()
    [result] = train_population(watched, [StudentSpec("a", Policy())], seed=0)
    assert measured == [1, 1, 1, 3]
    assert ["validation_ap" in record for record in result.curve] == [False, True, False, True, True]
    assert same(result.student.state_dict(), expected.student.state_dict())


def test_the_best_weights_are_kept_where_that_is_asked_for(setup, few_digits, monkeypatch, same):
    """AP on the validation images: 0.2, 0.9, 0.9, no number; the first of the best is kept, the test has no say."""
    aps = iter([0.2, 0.9, 0.9, math.nan])
    seen = []

    def measure(setup, detector, data=None):
        seen.append({name: tensor.clone() for name, tensor in detector.state_dict().items()})
        return Metrics(next(aps) if data is not None else 0.5, *[0.0] * 5, {})

    monkeypatch.setattr(TrainingSetup, "measure", measure)
    best = replace(setup(epochs=4, validate_every=1, keep="best"), validation_data=few_digits[1])
    [result] = train_population(best, [StudentSpec("a", Policy())], seed=0)
    assert len(seen) == 5 and same(result.student.state_dict(), seen[1]) and same(seen[4], seen[1])
    assert not same(seen[1], seen[2]) and result.metrics is not None and result.metrics.ap == 0.5


def test_a_failed_student_is_not_measured(setup):
    bad = Policy([Term("global", ["scale(2)"], "l2", 1e38)])
    failed, plain = train_population(setup(epochs=1), [StudentSpec("bad", bad), StudentSpec("plain", Policy())], seed=0)
    assert failed.metrics is None and (failed.failure or "").startswith("DivergenceError")
    assert plain.metrics is not None and plain.failure is None
