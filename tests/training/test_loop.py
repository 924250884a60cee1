"""Populations: one forward pass each, nobody disturbs anybody, a killed training goes on as if it had not been."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch

from detkds import Policy, Term
from detkds.errors import WeightsError
from detkds.training import checkpoint
from detkds.training.checkpoint import StateFiles
from detkds.training.loop import train
from detkds.training.processes import Processes
from detkds.training.teacher import live, teacher_forward

DETECTORS = ["retinanet", "fcos", "faster_rcnn"]
FITNETS = Policy([Term("global", [], "l2", 0.1)])


@pytest.mark.parametrize("name", DETECTORS)
def test_one_student_pass_and_at_most_one_teacher_pass_a_step(name, trainer, teacher, batches, config, five, observer):
    calls: Counter[str] = Counter()
    students, frozen = (
        [trainer(five, "one", name), trainer(Policy(), "plain", name), trainer(FITNETS, "two", name)],
        teacher(name),
    )

    def count(module: torch.nn.Module, label: str) -> None:
        module.register_forward_hook(lambda *_: calls.update([label]))

    for one in students:
        count(one.model.student, one.key)
        count(one.model.student.model.backbone, f"{one.key} backbone")
    count(frozen, "teacher")
    count(frozen.model.backbone, "teacher backbone")
    watching = observer()
    train(students, batches, config, live(frozen), observer=watching)
    assert [one.failure for one in students] == [None] * 3
    assert watching.clock.steps == 6 and set(calls.values()) == {6} and len(calls) == 8


@pytest.mark.parametrize("name", DETECTORS)
def test_a_plain_population_never_asks_the_teacher(name, trainer, teacher, batches, config):
    frozen = teacher(name)
    frozen.register_forward_hook(lambda *_: pytest.fail("the teacher was asked"))
    train([trainer(Policy(), "plain", name)], batches, config, live(frozen))
    train([trainer(Policy(), "alone", name)], batches, config)


def test_the_teachers_head_runs_only_where_a_member_reads_it(trainer, teacher, batches, config, five):
    for policies, runs in (([FITNETS, Policy()], 0), ([FITNETS, five], 6)):
        frozen, calls = teacher(), []
        frozen.model.head.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        train([trainer(p, str(i)) for i, p in enumerate(policies)], batches, config, live(frozen))
        assert len(calls) == runs and frozen.responses


def test_asking_for_features_alone_gives_the_same_features(teacher, batch):
    frozen = teacher()
    whole, part = teacher_forward(frozen, batch(0)), teacher_forward(frozen, batch(0), responses=False)
    assert whole.logits and not part.logits
    assert all(torch.equal(whole.features[level], part.features[level]) for level in whole.features)


@pytest.mark.parametrize("name", DETECTORS)
def test_the_teacher_is_untouched_though_someone_puts_it_in_training_mode(
    name, trainer, teacher, batches, config, five, observer
):
    frozen = teacher(name)
    before = copy.deepcopy(frozen.state_dict())
    modes = []
    frozen.register_forward_pre_hook(lambda module, _: modes.extend(part.training for part in module.modules()))
    train(
        [trainer(five, "one", name)],
        lambda epoch: [*batches(epoch), *batches(epoch + 7)],
        config.model_copy(update={"epochs": 2}),
        live(frozen),
        observer=observer(on_step=lambda *_: frozen.train()),
    )
    assert len(before) and all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
    assert modes and not any(modes)
    assert not any(p.requires_grad or p.grad is not None for p in frozen.parameters())


@pytest.mark.parametrize("name", DETECTORS)
def test_company_changes_nothing(name, trainer, teacher, batches, config, five, same):
    alone = trainer(five, "x", name)
    train([alone], batches, config, live(teacher(name)))
    crowd = [trainer(FITNETS, "a", name), trainer(five, "x", name), trainer(Policy(), "b", name)]
    train(crowd, batches, config, live(teacher(name)))
    assert same(alone.model.student.state_dict(), crowd[1].model.student.state_dict())
    assert same(alone.model.distiller.adapters.state_dict(), crowd[1].model.distiller.adapters.state_dict())


def test_members_of_one_seed_start_alike_and_differ_by_their_policy(trainer, teacher, batches, config, five, same):
    students = [trainer(five, "a"), trainer(Policy(), "b"), trainer(five, "c")]
    start = [copy.deepcopy(one.model.student.state_dict()) for one in students]
    assert same(start[0], start[1])
    train(students, batches, config, live(teacher()))
    first, second, third = (one.model.student.state_dict() for one in students)
    assert not same(first, second) and same(first, third)


def test_a_student_that_fails_leaves_the_others_bit_identical(trainer, teacher, batches, config, five, same, observer):
    exploding = Policy([Term("global", ["scale(2)"], "l2", 1e38)])
    expected = trainer(five, "good")
    train([expected], batches, config, live(teacher()))
    students = [trainer(exploding, "bad"), trainer(five, "good"), trainer(FITNETS, "raises")]

    def refuse(*_: object) -> None:
        raise RuntimeError("no such luck")

    students[2].model.distiller.register_forward_pre_hook(refuse)
    losses = []
    watching = observer(on_step=lambda student, own: losses.append((student.key, own)))
    train(students, batches, config, live(teacher()), observer=watching)
    bad, good, raises = students
    assert bad.failure is not None and bad.failure.startswith("DivergenceError: ") and "global/l2 = inf" in bad.failure
    assert raises.failure == "RuntimeError: no such luck" and raises.steps == 0
    assert good.failure is None and same(good.model.student.state_dict(), expected.model.student.state_dict())
    assert [key for key, _ in losses].count("good") == 6 and good.steps == 6


def test_running_out_of_memory_is_not_a_members_failure(trainer, teacher, batches, config, five):
    one = trainer(five)

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    one.model.register_forward_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError):
        train([one], batches, config, live(teacher()))


def test_among_several_processes_a_failure_ends_the_training(trainer, teacher, batches, config):
    bad = Policy([Term("global", [], "l2", 1e38), Term("global", ["scale(2)"], "l2", 1e38)])
    with pytest.raises(RuntimeError, match="not finite"):
        train([trainer(bad)], batches, config, live(teacher()), processes=Processes(0, 2))


# --------------------------------------------------------------------------------------------------------- resume


class KilledError(BaseException):
    """What a process is killed by."""


@pytest.fixture
def states(tmp_path: Path) -> StateFiles:
    """Kept after every pass."""
    return StateFiles(tmp_path / "states", every=0)


@pytest.mark.parametrize(("name", "ema"), [("retinanet", None), ("fcos", 0.9), ("faster_rcnn", None)])
def test_a_killed_training_goes_on_bit_for_bit(
    name, ema, trainer, teacher, batches, config, five, same, observer, states
):
    config = config.model_copy(update={"ema": ema, "epochs": 3})
    policies = {"five": five, "plain": Policy()}

    def population() -> list:
        return [trainer(policy, label, name, config=config) for label, policy in policies.items()]

    straight = population()
    train(straight, batches, config, live(teacher(name)))

    def kill(student, _) -> None:
        if student.steps == 4:
            raise KilledError

    with pytest.raises(KilledError):
        train(population(), batches, config, live(teacher(name)), states=states, observer=observer(on_step=kill))
    assert sorted(path.name for path in states.folder.iterdir()) == ["five.1.state", "plain.1.state"]

    epochs = []
    resumed = population()
    train(resumed, batches, config, live(teacher(name)), states=states, observer=observer(on_epoch=epochs.append))
    assert epochs == [2, 3]
    for one, other in zip(straight, resumed, strict=True):
        assert one.steps == other.steps == 9 and one.curve == other.curve
        assert same(one.model.student.state_dict(), other.model.student.state_dict())
        assert same(one.student.state_dict(), other.student.state_dict())

    done = population()
    train(done, lambda epoch: pytest.fail("nothing is left to train"), config, states=states)
    assert same(done[0].student.state_dict(), straight[0].student.state_dict())
    assert sorted(path.name for path in states.folder.iterdir()) == ["five.3.state", "plain.3.state"]


def test_a_failure_is_remembered_over_a_resume(trainer, teacher, batches, config, states):
    bad = Policy([Term("global", ["scale(2)"], "l2", 1e38)])
    once = config.model_copy(update={"epochs": 1})
    train([trainer(bad, "bad"), trainer(Policy(), "plain")], batches, once, live(teacher()), states=states)
    students = [trainer(bad, "bad"), trainer(Policy(), "plain")]
    train(students, batches, config, live(teacher()), states=states)
    assert students[0].failure is not None and students[0].steps == 0
    assert students[1].failure is None and students[1].steps == 6


def test_a_student_is_taken_up_in_other_company(trainer, teacher, batches, config, five, same, states):
    straight = trainer(five, "a")
    train([straight], batches, config, live(teacher()))
    once = config.model_copy(update={"epochs": 1})
    train([trainer(five, "a"), trainer(FITNETS, "b")], batches, once, live(teacher()), states=states)
    alone = trainer(five, "a")
    train([alone], batches, config, live(teacher()), states=states)
    assert alone.steps == 6 and same(alone.student.state_dict(), straight.student.state_dict())
    assert (states.epochs("a"), states.epochs("b"), states.epochs("c")) == (2, 1, 0)


def test_states_are_written_no_more_often_than_asked_for_but_always_at_the_end(
    trainer, batches, config, tmp_path, monkeypatch, observer
):
    now, saved = [0.0], []
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint, "write_whole", lambda path, write: (saved.append(path.name), path.touch()))

    def tick(done: int) -> None:
        now[0] += 2.0

    longer = config.model_copy(update={"epochs": 6})
    train([trainer(Policy(), "a")], batches, longer, states=StateFiles(tmp_path, 5.0), observer=observer(on_epoch=tick))
    assert saved == ["a.3.state", "a.6.state"] and [path.name for path in tmp_path.iterdir()] == ["a.6.state"]
    StateFiles(tmp_path).remove("a")
    assert not list(tmp_path.iterdir())


def test_other_processes_than_the_first_write_no_state(trainer, batches, config, states):
    train([trainer(Policy(), "a")], batches, config, states=states, processes=Processes(1, 2))
    assert not states.folder.exists()


# ---------------------------------------------------------------------------------------------------- bad states


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive at all",
        {"steps": 3},
        {"model": {}, "steps": "many"},
        [1, 2],
        {"model": 3},
        {"model": Path("/")},  # a state runs no code
    ],
)
def test_a_file_that_is_no_state_is_refused(content, trainer, config, batches, states):
    path = states.folder / "one.1.state"
    path.parent.mkdir()
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(WeightsError, match=r"one\.1\.state: not a state of this training: .*delete it to start over"):
        train([trainer(Policy())], batches, config, states=states)


def test_a_torn_file_is_refused(trainer, config, batches, states):
    train([trainer(Policy())], batches, config.model_copy(update={"epochs": 1}), states=states)
    path = states.folder / "one.1.state"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError, match="not a state of this training"):
        train([trainer(Policy())], batches, config, states=states)


def test_states_of_others_are_refused(trainer, teacher, config, batches, five, states):
    once = config.model_copy(update={"epochs": 1})
    train([trainer(five, "a"), trainer(Policy(), "b")], batches, once, live(teacher()), states=states)
    with pytest.raises(WeightsError, match=r"a\.1\.state: not a state of this training"):
        train([trainer(Policy(), "a"), trainer(Policy(), "b")], batches, config, live(teacher()), states=states)
    with pytest.raises(WeightsError, match=r"students that have done equally many passes, got \[0, 1\]"):
        train([trainer(five, "a"), trainer(Policy(), "new")], batches, config, live(teacher()), states=states)
