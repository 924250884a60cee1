"""One student in training: what moves, what does not, and when it gives up."""

from __future__ import annotations

import copy

import pytest
import torch

from detkds import Policy, Term
from detkds.config import TrainConfig
from detkds.errors import ConfigError
from detkds.structures import Batch
from detkds.training.student import DivergenceError, StudentTrainer, autocast, seeded
from detkds.training.teacher import teacher_forward


@pytest.mark.parametrize("name", ["retinanet", "fcos", "faster_rcnn"])
def test_a_step_moves_student_and_adapters_alone(name, trainer, teacher, batch, five):
    one, frozen = trainer(five, detector=name), teacher(name)
    before, untouched = copy.deepcopy(one.model.state_dict()), copy.deepcopy(frozen.state_dict())
    losses = one.train_step(batch(0), teacher_forward(frozen, batch(0)))
    assert set(losses) > {"global/l1", "fgbg/l2", "instance/smooth_l1", "logits/kl", "localization/ciou"}
    assert any(label.startswith("task/") for label in losses)
    assert all(loss.isfinite() and not loss.requires_grad for loss in losses.values())
    moved = {key for key, value in one.model.named_parameters() if not torch.equal(value, before[key])}
    assert moved == {key for key, value in one.model.named_parameters() if value.requires_grad}
    assert any(key.startswith("distiller.adapters.") for key in moved)
    assert all(torch.equal(value, untouched[key]) for key, value in frozen.state_dict().items())
    assert one.steps == 1 and all(p.grad is None for p in one.model.parameters())


def test_the_exported_student_is_a_plain_one(trainer, detector, five, batch, teacher):
    one = trainer(five)
    one.train_step(batch(0), teacher_forward(teacher(), batch(0)))
    assert one.model.distiller.adapters and one.student.state_dict().keys() == detector("retinanet").state_dict().keys()
    detector("retinanet").load_state_dict(one.student.state_dict(), strict=True)


def test_the_teacher_is_in_no_state(trainer, five):
    state = trainer(five).state_dict()
    names = [name for name in state["model"] if not name.startswith(("student.", "distiller."))]
    assert not names and {name for name in state["model"] if name.startswith("distiller.")} == {
        "distiller._extra_state",
        *(f"distiller.adapters.p{level}.{kind}" for level in range(3, 8) for kind in ("weight", "bias")),
    }


def test_a_plain_student_has_no_distiller_parameters(trainer, batch):
    one = trainer(Policy())
    assert not one.distils and not list(one.model.distiller.parameters())
    assert all(label.startswith("task/") for label in one.train_step(batch(0), None))


def test_the_learning_rate_follows_the_schedule(trainer, batch):
    config = TrainConfig(lr=0.2, warmup_steps=2, schedule="step", milestones=(0.5,))
    one = trainer(Policy(), config=config)
    rates = []
    for step in range(5):
        one.train_step(batch(step), None)
        rates.append(one.optimizer.param_groups[1]["lr"])
    assert rates == pytest.approx([0.1, 0.2, 0.2, 0.02, 0.02])


def test_steps_draw_from_the_seed_and_leave_the_global_generator(trainer, batch):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    losses = []
    for _ in range(2):
        losses.append(trainer(Policy(), detector="faster_rcnn").train_step(batch(0), None))
        torch.rand(5)
    torch.manual_seed(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(losses[0][label], losses[1][label]) for label in losses[0])
    with seeded(1, torch.device("cpu")):
        torch.rand(1)
    assert torch.equal(torch.random.get_rng_state(), before)


# ------------------------------------------------------------------------------------------------------ divergence


def broken(batch: Batch, value: float) -> Batch:
    images = batch.images.clone()
    images[0, 0, 0, 0] = value
    return Batch(images, batch.image_sizes, batch.image_ids, batch.targets)


def test_a_loss_that_is_not_finite_is_named_and_moves_nothing(trainer, batch):
    one = trainer(Policy())
    before = {key: value.clone() for key, value in one.model.named_parameters()}
    with pytest.raises(DivergenceError, match=r"not finite at step 0: task/classification = nan"):
        one.train_step(broken(batch(0), float("nan")), None)
    assert all(torch.equal(value, before[key]) for key, value in one.model.named_parameters())


def test_a_gradient_that_is_not_finite_is_refused_though_the_loss_is_finite(trainer, batch):
    one = trainer(Policy())
    one.model.student.model.head.classification_head.cls_logits.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(DivergenceError, match=r"not finite at step 0: gradient norm = (nan|inf)"):
        one.train_step(batch(0), None)


# ----------------------------------------------------------------------------------------------- clipping, averages


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_the_gradient_is_clipped_over_all_parameters(trainer, batch, clip):
    config = TrainConfig(
        lr=1.0, momentum=0.0, weight_decay=0.0, warmup_steps=0, clip_norm=clip, schedule="step", milestones=()
    )
    one = trainer(Policy(), config=config)
    before = [p.detach().clone() for p in one.model.parameters()]
    one.train_step(batch(0), None)
    moved = (
        torch.stack([(p - q).detach().norm() for p, q in zip(one.model.parameters(), before, strict=True)])
        .norm()
        .item()
    )
    assert moved == pytest.approx(1e-3, rel=1e-3) if clip else moved > 1e-2


def test_the_moving_average_is_what_is_evaluated(trainer, batch):
    config = TrainConfig(ema=0.75, warmup_steps=0, lr=0.05)
    one = trainer(Policy(), config=config)
    name = "model.head.classification_head.cls_logits.weight"
    seen = []
    for step in range(3):
        one.train_step(batch(step), None)
        seen.append(one.model.student.state_dict()[name].clone())
    expected = 0.75 * (0.75 * seen[0] + 0.25 * seen[1]) + 0.25 * seen[2]
    torch.testing.assert_close(one.student.state_dict()[name], expected)
    assert one.student is not one.model.student
    assert one.student.state_dict().keys() == one.model.student.state_dict().keys()


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_a_self_taught_student_asks_its_own_average(detector, batch, name):
    """Its losses are those of a distiller that is given the output of a copy of the average; the average learns not."""
    policy = Policy([Term("global", (), "l2", 2.0), Term("logits", (), "l2", 1.0)])
    config = TrainConfig(ema=0.5, warmup_steps=0, lr=0.05)
    student = detector(name)
    one = StudentTrainer("own", student, policy, None, config, 6, seed=0, device=torch.device("cpu"), self_taught=True)
    one.train_step(batch(0), None)
    before, average = copy.deepcopy(one.model), copy.deepcopy(one.student)
    found = one.train_step(batch(1), None)
    with seeded(0 * 1_000_003 + 1, torch.device("cpu")):
        expected = before.train()(batch(1), teacher_forward(average, batch(1)))
    assert found.keys() == expected.keys() and found["global/l2"] > 0
    assert all(torch.equal(found[key], expected[key].detach()) for key in found)
    assert all(parameter.grad is None for parameter in one.student.parameters())


def test_a_self_taught_student_needs_an_average(detector):
    with pytest.raises(ValueError, match="moving average"):
        StudentTrainer(
            "own",
            detector("fcos"),
            Policy(),
            None,
            TrainConfig(),
            6,
            seed=0,
            device=torch.device("cpu"),
            self_taught=True,
        )


# ----------------------------------------------------------------------------------------------------- precision


def test_bfloat16_trains_with_losses_in_full_precision(trainer, teacher, batch, five):
    wide = batch(0, side=128)
    bfloat16 = trainer(five, config=TrainConfig(amp="bf16", warmup_steps=0))
    with autocast(torch.device("cpu"), "bf16"):
        answer = teacher_forward(teacher(), wide)
    assert answer.features["p3"].dtype == torch.bfloat16
    losses = bfloat16.train_step(wide, answer)
    distilled = [loss for label, loss in losses.items() if not label.startswith("task/")]
    assert len(distilled) == 5 and all(loss.dtype == torch.float32 and loss.isfinite() for loss in distilled)
    assert not bfloat16.scaler.is_enabled()
    assert all(p.dtype == torch.float32 for p in bfloat16.model.parameters())
    plain = trainer(five, config=TrainConfig(warmup_steps=0)).train_step(wide, teacher_forward(teacher(), wide))
    for label, loss in plain.items():
        assert losses[label].item() == pytest.approx(loss.item(), rel=0.15, abs=0.05), label


def test_bfloat16_on_the_cpu_refuses_a_strided_convolution_of_one_cell(trainer, teacher, batch, five):
    bfloat16 = trainer(five, config=TrainConfig(amp="bf16"))
    small = batch(0, side=64)  # its coarsest level is made from a map of 1 x 1
    with pytest.raises(ConfigError, match=r"larger data\.size or leave train\.amp out"):
        bfloat16.train_step(small, teacher_forward(teacher(), small))


def test_the_loss_scale_serves_fp16_alone(trainer):
    assert trainer(Policy(), config=TrainConfig(amp="fp16")).scaler.is_enabled()
    for amp in (None, "bf16"):
        assert not trainer(Policy(), config=TrainConfig(amp=amp)).scaler.is_enabled()


def test_fp16_trains_on_the_cpu_too(trainer, teacher, batch, five):
    one = trainer(five, config=TrainConfig(amp="fp16", warmup_steps=0, schedule="step", milestones=()))
    before = {key: value.clone() for key, value in one.model.named_parameters()}
    with autocast(torch.device("cpu"), "fp16"):
        answer = teacher_forward(teacher(), batch(0))
    for _ in range(20):  # the first scales overflow: those steps are left out
        one.train_step(batch(0), answer)
    weights = dict(one.model.named_parameters())
    assert all(value.isfinite().all() for value in weights.values())
    assert any(not torch.equal(value, before[key]) for key, value in weights.items())
