"""What candidates share, how many steps they take, and how processes share the batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detkds import Policy, Term
from detkds.data.loader import batch_count
from detkds.errors import DataError
from detkds.training import population
from detkds.training.population import Candidate, train_candidates, train_in_populations

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
def test_counts_agree_with_the_batches(setting, draws, batch_size, world, expected):
    assert batch_count(draws, batch_size, world) == expected
    one = setting(draws=draws, batch_size=batch_size)
    assert one.steps(epochs=3, world=world) == 3 * expected
    for rank in range(world):
        assert len(list(one.batches(0, rank=rank, world=world)(0))) == expected
    if world == 1:
        assert one.steps_per_epoch == expected


def test_processes_share_the_batches_of_one(setting):
    one = setting(draws=14, batch_size=2)
    alone = [batch.image_ids for batch in one.batches(5)(1)]
    shares = [[batch.image_ids for batch in one.batches(5, rank=rank, world=3)(1)] for rank in range(3)]
    assert [shares[index % 3][index // 3] for index in range(6)] == alone[:6]


def test_a_process_reads_no_image_of_another(setting):
    one = setting(draws=6, batch_size=2)
    seen = {image for batch in one.batches(0, rank=1, world=3)(0) for image in batch.image_ids}
    assert set(one.store._images) == seen and len(seen) == 2


def test_more_processes_than_batches_are_refused(setting):
    one = setting(draws=4, batch_size=2)
    with pytest.raises(DataError, match="at least one batch for each of 3 processes, got 4 images in 2 batches"):
        one.steps(epochs=1, world=3)
    with pytest.raises(ValueError, match="rank: expected a whole number from 0 to 1, got 2"):
        one.batches(0, rank=2, world=2)(0)


def test_batches_depend_on_the_seed_and_the_epoch(setting):
    one = setting()
    first, again, other, later = (
        next(iter(one.batches(seed)(epoch))) for seed, epoch in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(first.images, again.images) and first.image_ids == again.image_ids
    assert not torch.equal(first.images, other.images) and not torch.equal(first.images, later.images)


def test_candidates_are_trained_and_measured_in_order(setting):
    trained = train_candidates(
        setting(),
        [Candidate("plain", Policy()), Candidate("other", FITNETS), Candidate("fresh", Policy(), False)],
        seed=0,
    )
    assert [one.candidate.name for one in trained] == ["plain", "other", "fresh"]
    assert all(one.failure is None and one.metrics is not None and 0 <= one.metrics.ap <= 1 for one in trained)
    assert all(one.seconds > 0 for one in trained)
    weights = [one.student.state_dict()["model.backbone.fpn.inner_blocks.0.0.weight"] for one in trained]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_population_gives_what_each_gives_alone(setting, same):
    candidates = [Candidate("a", FITNETS), Candidate("b", Policy()), Candidate("c", FITNETS)]
    chunks = list(train_in_populations(setting(), candidates, seed=3, population=2))
    assert [[one.candidate.name for one in chunk] for chunk in chunks] == [["a", "b"], ["c"]]
    [alone] = train_candidates(setting(), candidates[:1], seed=3)
    assert same(alone.student.state_dict(), chunks[0][0].student.state_dict())
    assert same(alone.student.state_dict(), chunks[1][0].student.state_dict())


def test_states_are_kept_while_training_and_removed_afterwards(setting, tmp_path: Path):
    candidates, found = [Candidate("a", FITNETS)], []
    one = setting()
    for _ in train_in_populations(
        one,
        candidates,
        seed=0,
        population=4,
        checkpoints=tmp_path,
        on_epoch=lambda _: found.append(list(tmp_path.iterdir())),
    ):
        assert len(list(tmp_path.iterdir())) == 1
    assert [len(files) for files in found] == [1, 1] and not list(tmp_path.iterdir())


def test_a_population_that_does_not_fit_is_halved(setting, monkeypatch):
    real, sizes = population.train_candidates, []

    def small_memory(one, chunk, **options):
        sizes.append(len(chunk))
        if len(chunk) > 1 or chunk[0].name == "large":
            raise torch.OutOfMemoryError("full")
        return real(one, chunk, **options)

    monkeypatch.setattr(population, "train_candidates", small_memory)
    candidates = [Candidate("a", Policy()), Candidate("large", Policy()), Candidate("b", Policy())]
    trained = [
        one for chunk in train_in_populations(setting(epochs=1), candidates, seed=0, population=4) for one in chunk
    ]
    assert sizes == [3, 1, 1, 1] and [one.candidate.name for one in trained] == ["a", "large", "b"]
    assert trained[1].failure == "out of memory when trained alone: full" and trained[1].metrics is None
    assert trained[0].failure is None and trained[2].metrics is not None


def test_a_failed_candidate_is_not_measured(setting):
    bad = Policy([Term("global", ["scale(2)"], "l2", 1e38)])
    failed, plain = train_candidates(setting(epochs=1), [Candidate("bad", bad), Candidate("plain", Policy())], seed=0)
    assert failed.metrics is None and (failed.failure or "").startswith("DivergenceError")
    assert plain.metrics is not None and plain.failure is None
