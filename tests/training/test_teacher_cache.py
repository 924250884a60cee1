"""A kept output is the rounded live one of the very same draw; how it is got changes nothing but the time."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detkds import Policy, Term
from detkds.config import TrainConfig
from detkds.data.coco import CocoDataset, load_coco
from detkds.data.digits import make_digits
from detkds.structures import DetectorOutput
from detkds.training import batch_files, teacher_cache
from detkds.training.batch_files import BatchFiles
from detkds.training.digests import fingerprint
from detkds.training.population import StudentSpec, TrainResult, train_population
from detkds.training.setup import TrainingSetup
from detkds.training.student import autocast
from detkds.training.teacher import teacher_forward
from detkds.training.teacher_cache import Decision, TeacherCache, compact

CPU = torch.device("cpu")
FITNETS = Policy([Term("global", [], "l2", 0.1)])
VIEWS = {"flip": 0.5, "scale": (0.7, 1.5), "crop": True, "brightness": 0.3}
CACHED = Decision("cached", "", 0.0, 0.0, 0.0, 6, 6, 0, 9)
SHARED = replace(CACHED, way="shared", kept=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[CocoDataset, CocoDataset]:
    parts = make_digits(tmp_path_factory.mktemp("digits") / "set", train=6, val=3, size=64, num_classes=2)
    return load_coco(*parts[0]), load_coco(*parts[1])


@pytest.fixture
def setup(data, detector, teacher) -> Callable[..., TrainingSetup]:
    """Two epochs of three batches with every kind of augmentation."""

    def build(name: str = "retinanet", **changes: Any) -> TrainingSetup:
        config = {"epochs": 2, "batch_size": 2, "lr": 0.01, "warmup_steps": 0, "augmentation": VIEWS, **changes}
        return TrainingSetup(
            teacher=teacher(name),
            build_student=lambda seed, inherit: detector(name, seed=seed),
            train_data=data[0],
            test_data=data[1],
            config=TrainConfig(**config),
            size=64,
            device=CPU,
        )

    return build


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, notes: list[str]) -> Callable[..., TeacherCache]:
    """``cache(setup, limit=..., decision=...)`` on a folder that all caches of a test share."""

    def build(one: TrainingSetup, limit: int = 10**8, seed: int = 0, **options: Any) -> TeacherCache:
        files = BatchFiles(tmp_path / "teacher", fingerprint(one, seed), limit, notes.append)
        return TeacherCache(one.teacher, files, batches=6, populations=9, **{"decision": CACHED, **options})  # type: ignore[arg-type]

    return build


def count_passes(one: TrainingSetup) -> list[int]:
    calls: list[int] = []
    assert one.teacher is not None
    one.teacher.register_forward_hook(lambda *_: calls.append(1))
    return calls


def train(one: TrainingSetup, answers: Any, policy: Policy) -> TrainResult:
    [trained] = train_population(one, [StudentSpec("one", policy)], seed=0, teacher=answers)
    assert trained.failure is None
    return trained


def equal(first: DetectorOutput, second: DetectorOutput) -> bool:
    fields = ("features", "logits", "regression", "boxes")
    pairs = [(getattr(first, field), getattr(second, field)) for field in fields]
    return all(list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


@pytest.mark.parametrize("name", ["retinanet", "fcos", "faster_rcnn", "gfl"])
def test_what_is_kept_is_the_live_output_of_that_draw_in_half_precision(name, setup, cache):
    one = setup(name)
    for answers in (cache(one), cache(one)):  # computed, then read
        calls, seen = count_passes(one), set()
        for epoch in range(2):
            for index, batch in enumerate(one.batches(0)(epoch)):
                live, given = teacher_forward(one.teacher, batch), answers(epoch, index, batch, True)
                for field in ("features", "logits", "regression", "box_distribution"):
                    expected = {k: v.half().float() for k, v in getattr(live, field).items()}
                    found = getattr(given, field)
                    assert list(found) == list(expected) and all(torch.equal(found[k], expected[k]) for k in found)
                for level, boxes in live.boxes.items():
                    torch.testing.assert_close(given.boxes[level], boxes, rtol=0.002, atol=0.1)
                if live.respond_at is not None and given.respond_at is not None:
                    regions = [target["boxes"] for target in batch.targets or []]
                    ours, theirs = given.respond_at(regions), live.respond_at(regions)
                    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0.005, atol=0.005)
                    torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=0.005, atol=0.2)
                assert given.layout == live.layout and torch.equal(given.image_sizes, live.image_sizes)
                seen.add(next(iter(given.features.values())).sum().item())
        assert len(seen) == 6  # no two draws are alike
    assert len(calls) == 6  # the live ones: the second time nothing was computed


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_reading_computing_and_running_out_of_room_train_the_same_student(name, setup, cache, five, same, notes):
    expected = None
    for options, passes in (
        ({}, 6),  # computed and written
        ({}, 0),  # read
        ({"decision": SHARED}, 6),
        ({"limit": 1}, 0),  # what is there is read, whatever may be written
    ):
        one = setup(name)
        calls = count_passes(one)
        trained = train(one, cache(one, **options), five)
        assert len(calls) == passes
        expected = expected or trained
        assert same(trained.student.state_dict(), expected.student.state_dict())
        assert trained.metrics == expected.metrics

    def rounded(epoch, index, batch, responses):
        output = DetectorOutput({}, batch.image_sizes, one.teacher.info.layout)
        for label, tensor in compact(teacher_forward(one.teacher, batch)).items():
            field, level = label.split("/")
            getattr(output, field)[level] = tensor.float()
        return one.teacher.restore(output)

    assert same(train(one, rounded, five).student.state_dict(), expected.student.state_dict())
    assert not notes


def test_responses_are_added_when_a_later_population_reads_them(setup, cache, five, same):
    one = setup()
    calls, heads = count_passes(one), []
    one.teacher.model.head.register_forward_hook(lambda *_: heads.append(1))
    sizes = []
    for policy in (FITNETS, five, FITNETS, five):
        answers = cache(one)
        trained = train(one, answers, policy)
        sizes.append(answers.files.used)
    assert len(calls) == 12 and len(heads) == 6
    assert sizes[0] < sizes[1] == sizes[2] == sizes[3]
    fresh = setup()
    assert same(trained.student.state_dict(), train(fresh, cache(fresh, decision=SHARED), five).student.state_dict())


def test_a_damaged_file_is_computed_anew_and_reported(setup, cache, same, notes):
    one = setup()
    answers = cache(one)
    expected = train(one, answers, FITNETS)
    path = answers.files.path(1, 2)
    path.write_bytes(path.read_bytes()[:-9])
    calls = count_passes(one)
    assert same(train(one, cache(one), FITNETS).student.state_dict(), expected.student.state_dict())
    assert len(calls) == 1 and len(notes) == 1 and "0001-000002.safetensors cannot be read" in notes[0]
    assert same(train(one, cache(one), FITNETS).student.state_dict(), expected.student.state_dict())
    assert len(calls) == 1


def test_a_cache_of_another_seed_is_not_believed(setup, cache, notes):
    one = setup()
    train(one, cache(one), FITNETS)
    calls = count_passes(one)
    answers = cache(one)
    train_population(one, [StudentSpec("one", FITNETS)], seed=1, teacher=answers)
    assert len(calls) == 6 and all("computed anew" in note for note in notes)


def test_a_disk_that_fills_up_costs_nothing_but_time(setup, cache, same, notes, monkeypatch):
    one = setup()
    expected = train(one, cache(one, decision=SHARED), FITNETS)
    written, real = [], batch_files.write_whole

    def fills_up(path: Path, write: Any, **options: Any) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        real(path, write, **options)

    monkeypatch.setattr(batch_files, "write_whole", fills_up)
    assert same(train(one, cache(one), FITNETS).student.state_dict(), expected.student.state_dict())
    assert len(notes) == 1 and "No space left" in notes[0]
    calls = count_passes(one)
    assert same(train(one, cache(one), FITNETS).student.state_dict(), expected.student.state_dict())
    assert len(calls) == 4


def test_as_many_batches_are_kept_as_have_room(setup, cache):
    one = setup()
    whole = cache(one)
    train(one, whole, FITNETS)
    for file in whole.files.folder.iterdir():
        file.unlink()
    half = cache(one, limit=whole.files.used // 2)
    train(one, half, FITNETS)
    assert 0 < half.files.used <= whole.files.used // 2
    kept = len(list(half.files.folder.iterdir()))
    calls = count_passes(one)
    train(one, cache(one, limit=whole.files.used // 2), FITNETS)
    assert 1 <= kept <= 3 and len(calls) == 6 - kept


def test_numbers_that_half_precision_cannot_hold_stay_in_full(setup):
    live = DetectorOutput(
        {"p3": torch.tensor([[1e6, 0.1]]), "p4": torch.tensor([[65504.0, 0.1]]), "p5": torch.tensor([[float("nan")]])},
        torch.tensor([[8, 8]]),
        logits={"p3": torch.empty(0, 3), "p4": torch.tensor([0.1], dtype=torch.bfloat16)},
    )
    found = compact(live)
    assert [found[f"features/{level}"].dtype for level in ("p3", "p4", "p5")] == [
        torch.float32,
        torch.float16,
        torch.float32,
    ]
    assert torch.equal(found["features/p3"], live.features["p3"])
    assert found["logits/p3"].dtype == torch.float32 and found["logits/p4"].dtype == torch.bfloat16


def test_what_autocast_gives_comes_back_as_it_was(setup, cache):
    one = setup(amp="bf16")
    batch = next(iter(one.batches(0)(0)))
    with autocast(CPU, "bf16"):
        live = teacher_forward(one.teacher, batch)
        first, second = cache(one)(0, 0, batch, True), cache(one)(0, 0, batch, True)
    assert any(feature.dtype == torch.bfloat16 for feature in live.features.values())
    assert all(torch.equal(second.features[level], live.features[level].float()) for level in live.features)
    assert equal(first, second)


def test_a_teacher_that_cannot_restore_its_outputs_stays_live_and_exact(setup, cache, monkeypatch):
    one, decisions = setup(), []
    monkeypatch.setattr(type(one.teacher), "restore", lambda self, output: None)
    answers = cache(one, decision=None, on_decision=decisions.append)
    batch = next(iter(one.batches(0)(0)))
    assert equal(answers(0, 0, batch, True), teacher_forward(one.teacher, batch))
    [decision] = decisions
    assert decision.way == "shared" and "cannot be restored" in str(decision)
    assert not list(answers.files.folder.iterdir()) and answers.files.used == 0


# ------------------------------------------------------------------------------------------------------- decision


@pytest.mark.parametrize(
    ("seconds", "populations", "mode", "way"),
    [
        ((1.0, 0.5, 0.1), 2, "auto", "cached"),  # 1.6 < 2
        ((1.0, 0.95, 0.1), 2, "auto", "shared"),  # 2.05 > 2
        ((1.0, 0.95, 0.1), 3, "auto", "cached"),  # 2.15 < 3
        ((1.0, 0.1, 1.1), 99, "auto", "shared"),
        ((1.0, 0.0, 0.0), 1, "auto", "shared"),  # 1 = 1
        ((1.0, 9.0, 9.0), 1, "cached", "cached"),
    ],
)
def test_outputs_are_kept_where_that_costs_less(seconds, populations, mode, way, setup, cache, monkeypatch):
    one, decisions, times = setup(), [], iter(seconds)
    monkeypatch.setattr(teacher_cache, "_timed", lambda call, device: (call(), next(times)))
    answers = cache(one, decision=None, mode=mode, on_decision=decisions.append)
    answers.populations = populations
    calls = count_passes(one)
    for index, batch in enumerate(one.batches(0)(0)):
        answers(0, index, batch, True)
    [decision] = decisions
    assert decision.way == way and answers.decision == decision
    assert (decision.forward, decision.write, decision.read) == seconds
    assert len(calls) == (3 if way == "cached" else 4)  # the first batch was timed
    files = list(answers.files.folder.iterdir())
    assert len(files) == (3 if way == "cached" else 0)
    assert decision.kept == (6 if way == "cached" else 0)
    if files:
        assert 0 <= files[0].stat().st_size - decision.batch_bytes < 4096


def test_a_decision_says_what_it_was_made_from():
    decision = Decision("cached", "", 0.034, 0.0052, 0.003, 63, 40, 1_200_000, 24)
    text = "teacher: cached (forward 34 ms, write 5.2 ms, read 3 ms per batch; 40 of 63 batches, 48 MB; 24 populations)"
    assert str(decision) == text
    assert Decision(**decision.to_dict()) == decision
    assert str(replace(decision, way="live", kept=0, reason="no room")).endswith(
        "63 batches, 75.6 MB; 24 populations): no room"
    )


def test_a_decision_tells_the_mean_cost_of_a_batch():
    kept = Decision("cached", "", 1.0, 0.5, 0.1, 63, 63, 1, 4)
    assert kept.mean == pytest.approx((1 + 0.5 + 3 * 0.1) / 4)
    assert replace(kept, kept=21).mean == pytest.approx(kept.mean / 3 + 2 / 3)
    assert replace(kept, kept=0, way="shared").mean == 1.0


def test_without_room_for_one_batch_nothing_is_kept(setup, cache):
    one = setup()
    answers = cache(one, limit=1000, decision=None)
    answers(0, 0, next(iter(one.batches(0)(0))), True)
    assert answers.decision is not None and answers.decision.way == "shared"
    assert "no room for one batch in 0.001 MB" in answers.decision.reason


def test_students_alone_have_nothing_to_share(setup, cache):
    one = setup()
    answers = cache(one, limit=1, decision=None, shared=False)
    answers(0, 0, next(iter(one.batches(0)(0))), True)
    assert answers.decision is not None and answers.decision.way == "live"


# ---------------------------------------------------------------------------------------------------- fingerprint


def changed_weights(one: TrainingSetup) -> TrainingSetup:
    with torch.no_grad():
        next(iter(one.teacher.parameters())).flatten()[0] += 1e-6  # type: ignore[union-attr]
    return one


def changed_input(one: TrainingSetup) -> TrainingSetup:
    one.teacher.mean += 0.01  # type: ignore[union-attr]
    return one


def changed_annotations(one: TrainingSetup) -> TrainingSetup:
    table = one.train_data.table
    bbox = table.bbox.copy()
    bbox[0, 2] += 1
    return replace(one, train_data=replace(one.train_data, table=replace(table, bbox=bbox)))


CHANGES: dict[str, Callable[[TrainingSetup], TrainingSetup]] = {
    "weights": changed_weights,
    "input": changed_input,
    "annotations": changed_annotations,
    "images": lambda one: replace(one, train_data=one.train_data.subset(one.train_data.image_ids[1:])),
    "size": lambda one: replace(one, size=96),
    **{
        name: lambda one, change=change: replace(one, config=one.config.model_copy(update=change))
        for name, change in {
            "augmentation": {"augmentation": TrainConfig(augmentation={**VIEWS, "flip": 0.4}).augmentation},
            "draws": {"draws": 4},
            "batch size": {"batch_size": 3},
            "precision": {"amp": "bf16"},
        }.items()
    },
}


@pytest.mark.parametrize("change", CHANGES)
def test_all_that_changes_an_output_changes_the_fingerprint(change, setup):
    assert fingerprint(CHANGES[change](setup()), 0) != fingerprint(setup(), 0)


def test_the_fingerprint_is_the_same_for_the_same_and_differs_by_seed_and_version(setup, monkeypatch):
    first = fingerprint(setup(), 0)
    assert first == fingerprint(setup(), 0) == fingerprint(setup(epochs=5, lr=0.5), 0)
    assert first != fingerprint(setup(), 1)
    monkeypatch.setattr("detkds.training.digests.FORMAT", 2)
    assert first != fingerprint(setup(), 0)
