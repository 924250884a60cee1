"""Populations: one forward pass each, nobody disturbs anybody, a killed training goes on as if it had not been."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch

from detkds import Policy, Term
from detkds.errors import WeightsError
from detkds.training.ask import ask
from detkds.training.loop import train

DETECTORS = ["retinanet", "fcos", "faster_rcnn"]
CPU = torch.device("cpu")
FITNETS = Policy([Term("global", [], "l2", 0.1)])


@pytest.mark.parametrize("name", DETECTORS)
def test_one_student_pass_and_at_most_one_teacher_pass_a_step(name, member, teacher, batches, config, five):
    calls: Counter[str] = Counter()
    members, frozen = (
        [member(five, "one", name), member(Policy(), "plain", name), member(FITNETS, "two", name)],
        teacher(name),
    )

    def count(module: torch.nn.Module, label: str) -> None:
        module.register_forward_hook(lambda *_: calls.update([label]))

    for one in members:
        count(one.model.student, one.name)
        count(one.model.student.model.backbone, f"{one.name} backbone")
    count(frozen, "teacher")
    count(frozen.model.backbone, "teacher backbone")
    clock = train(members, frozen, batches, config, device=CPU)
    assert [one.failure for one in members] == [None] * 3
    assert clock.steps == 6 and set(calls.values()) == {6} and len(calls) == 8


@pytest.mark.parametrize("name", DETECTORS)
def test_a_plain_population_never_asks_the_teacher(name, member, teacher, batches, config):
    frozen = teacher(name)
    frozen.register_forward_hook(lambda *_: pytest.fail("the teacher was asked"))
    train([member(Policy(), "plain", name)], frozen, batches, config, device=CPU)
    train([member(Policy(), "alone", name)], None, batches, config, device=CPU)


def test_the_teachers_head_runs_only_where_a_member_reads_it(member, teacher, batches, config, five):
    for policies, runs in (([FITNETS, Policy()], 0), ([FITNETS, five], 6)):
        frozen, calls = teacher(), []
        frozen.model.head.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        train([member(p, str(i)) for i, p in enumerate(policies)], frozen, batches, config, device=CPU)
        assert len(calls) == runs and frozen.responses


def test_asking_for_features_alone_gives_the_same_features(teacher, batch):
    frozen = teacher()
    whole, part = ask(frozen, batch(0)), ask(frozen, batch(0), responses=False)
    assert whole.logits and not part.logits
    assert all(torch.equal(whole.features[level], part.features[level]) for level in whole.features)


@pytest.mark.parametrize("name", DETECTORS)
def test_the_teacher_is_untouched_though_someone_puts_it_in_training_mode(name, member, teacher, batches, config, five):
    frozen = teacher(name)
    before = copy.deepcopy(frozen.state_dict())
    modes = []
    frozen.register_forward_pre_hook(lambda module, _: modes.extend(part.training for part in module.modules()))
    train(
        [member(five, "one", name)],
        frozen,
        lambda epoch: [*batches(epoch), *batches(epoch + 7)],
        config.model_copy(update={"epochs": 2}),
        device=CPU,
        on_step=lambda *_: frozen.train(),
    )
    assert len(before) and all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
    assert modes and not any(modes)
    assert not any(p.requires_grad or p.grad is not None for p in frozen.parameters())


@pytest.mark.parametrize("name", DETECTORS)
def test_company_changes_nothing(name, member, teacher, batches, config, five, same):
    alone = member(five, "x", name)
    train([alone], teacher(name), batches, config, device=CPU)
    crowd = [member(FITNETS, "a", name), member(five, "x", name), member(Policy(), "b", name)]
    train(crowd, teacher(name), batches, config, device=CPU)
    assert same(alone.model.student.state_dict(), crowd[1].model.student.state_dict())
    assert same(alone.model.distiller.adapters.state_dict(), crowd[1].model.distiller.adapters.state_dict())


def test_members_of_one_seed_start_alike_and_differ_by_their_policy(member, teacher, batches, config, five, same):
    members = [member(five, "a"), member(Policy(), "b"), member(five, "c")]
    start = [copy.deepcopy(one.model.student.state_dict()) for one in members]
    assert same(start[0], start[1])
    train(members, teacher(), batches, config, device=CPU)
    first, second, third = (one.model.student.state_dict() for one in members)
    assert not same(first, second) and same(first, third)


def test_a_candidate_that_fails_leaves_the_others_bit_identical(member, teacher, batches, config, five, same):
    exploding = Policy([Term("global", ["scale(2)"], "l2", 1e38)])
    expected = member(five, "good")
    train([expected], teacher(), batches, config, device=CPU)
    members = [member(exploding, "bad"), member(five, "good"), member(FITNETS, "raises")]

    def refuse(*_: object) -> None:
        raise RuntimeError("no such luck")

    members[2].model.distiller.register_forward_pre_hook(refuse)
    losses = []
    train(members, teacher(), batches, config, device=CPU, on_step=lambda one, found: losses.append((one.name, found)))
    bad, good, raises = members
    assert bad.failure is not None and bad.failure.startswith("DivergenceError: ") and "global/l2 = inf" in bad.failure
    assert raises.failure == "RuntimeError: no such luck" and raises.steps == 0
    assert good.failure is None and same(good.model.student.state_dict(), expected.model.student.state_dict())
    assert [name for name, _ in losses].count("good") == 6 and good.steps == 6


def test_running_out_of_memory_is_not_a_members_failure(member, teacher, batches, config, five):
    one = member(five)

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    one.model.register_forward_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError):
        train([one], teacher(), batches, config, device=CPU)


def test_among_several_processes_a_failure_ends_the_training(member, teacher, batches, config):
    bad = Policy([Term("global", [], "l2", 1e38), Term("global", ["scale(2)"], "l2", 1e38)])
    with pytest.raises(RuntimeError, match="not finite"):
        train([member(bad)], teacher(), batches, config, device=CPU, world=2)


# --------------------------------------------------------------------------------------------------------- resume


class KilledError(BaseException):
    """What a process is killed by."""


@pytest.mark.parametrize(("name", "ema"), [("retinanet", None), ("fcos", 0.9), ("faster_rcnn", None)])
def test_a_killed_training_goes_on_bit_for_bit(name, ema, member, teacher, batches, config, five, same, tmp_path: Path):
    config = config.model_copy(update={"ema": ema, "epochs": 3})
    policies = {"five": five, "plain": Policy()}

    def population() -> list:
        return [member(policy, label, name, config=config) for label, policy in policies.items()]

    straight = population()
    train(straight, teacher(name), batches, config, device=CPU)

    path = tmp_path / "states" / "run.state"
    killed = population()

    def kill(one, _) -> None:
        if one.steps == 4:
            raise KilledError

    with pytest.raises(KilledError):
        train(killed, teacher(name), batches, config, device=CPU, checkpoint=path, on_step=kill)
    assert path.exists() and not list(path.parent.glob("*.part"))

    epochs = []
    resumed = population()
    train(resumed, teacher(name), batches, config, device=CPU, checkpoint=path, on_epoch=epochs.append)
    assert epochs == [2, 3]
    for one, other in zip(straight, resumed, strict=True):
        assert one.steps == other.steps == 9
        assert same(one.model.student.state_dict(), other.model.student.state_dict())
        assert same(one.student.state_dict(), other.student.state_dict())

    done = population()
    train(done, None, lambda epoch: pytest.fail("nothing is left to train"), config, device=CPU, checkpoint=path)
    assert same(done[0].student.state_dict(), straight[0].student.state_dict())


def test_a_failure_is_remembered_over_a_resume(member, teacher, batches, config, tmp_path):
    bad = Policy([Term("global", ["scale(2)"], "l2", 1e38)])
    path = tmp_path / "run.state"
    once = config.model_copy(update={"epochs": 1})
    train([member(bad, "bad"), member(Policy(), "plain")], teacher(), batches, once, device=CPU, checkpoint=path)
    members = [member(bad, "bad"), member(Policy(), "plain")]
    train(members, teacher(), batches, config, device=CPU, checkpoint=path)
    assert members[0].failure is not None and members[0].steps == 0
    assert members[1].failure is None and members[1].steps == 6


# ---------------------------------------------------------------------------------------------------- bad states


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive at all",
        {"epochs_done": 1},
        {"members": {}, "epochs_done": "many"},
        [1, 2],
        {"members": 3, "epochs_done": 1},
    ],
)
def test_a_file_that_is_no_state_is_refused(content, member, config, batches, tmp_path):
    path = tmp_path / "run.state"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(WeightsError, match=r"run\.state: not a training state: .*delete it to start over"):
        train([member(Policy())], None, batches, config, device=CPU, checkpoint=path)


def test_a_torn_file_is_refused(member, config, batches, tmp_path):
    path = tmp_path / "run.state"
    train([member(Policy())], None, batches, config.model_copy(update={"epochs": 1}), device=CPU, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError, match="not a training state"):
        train([member(Policy())], None, batches, config, device=CPU, checkpoint=path)


def test_a_state_runs_no_code(member, config, batches, tmp_path):
    path = tmp_path / "run.state"
    torch.save({"members": Path("/"), "epochs_done": 1}, path)
    with pytest.raises(WeightsError, match="not a training state"):
        train([member(Policy())], None, batches, config, device=CPU, checkpoint=path)


def test_a_state_of_others_is_refused(member, teacher, config, batches, five, tmp_path):
    path = tmp_path / "run.state"
    once = config.model_copy(update={"epochs": 1})
    train([member(five, "a"), member(Policy(), "b")], teacher(), batches, once, device=CPU, checkpoint=path)
    with pytest.raises(WeightsError, match="holds members a, b, expected a; delete it to start over"):
        train([member(five, "a")], teacher(), batches, config, device=CPU, checkpoint=path)
    with pytest.raises(WeightsError, match="member 'a' does not fit"):
        train([member(Policy(), "a"), member(Policy(), "b")], teacher(), batches, config, device=CPU, checkpoint=path)
