"""The distiller: a policy's losses by hand, what gets a gradient and what does not, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkds import Distiller, Policy, Term, list_policies, load_policy
from detkds.distiller import check_pair, term_loss
from detkds.errors import PairError, PolicyError
from detkds.knowledge.global_ import Global
from detkds.structures import (
    DetectorInfo,
    DetectorOutput,
    FeatureSpec,
    Layout,
    Pair,
    RegionResponse,
    Target,
)

DENSE = Layout("dense", "sigmoid", num_classes=3, anchors=2, regression="deltas", anchor_key="a")
REGION = Layout("region", "softmax", num_classes=3, anchors=1, regression="deltas")
STRIDES = {"p3": 8, "p4": 16}


def info(channels: int = 4, layout: Layout = DENSE, **strides: int) -> DetectorInfo:
    return DetectorInfo({level: FeatureSpec(channels, s) for level, s in (strides or STRIDES).items()}, layout)


def toy(seed: int, channels: int = 4, *, side: int = 64, dtype: torch.dtype = torch.float32, **strides: int):
    """A seeded dense output for two images, the second with padding at the right and below."""
    generator = torch.Generator().manual_seed(seed)
    levels = strides or STRIDES

    def draw(*leading: int) -> dict[str, Tensor]:
        return {
            k: torch.randn(2, *leading, side // s, side // s, generator=generator).to(dtype).requires_grad_()
            for k, s in levels.items()
        }

    boxes = {k: torch.randn(2, 4, 2, side // s, side // s, generator=generator) for k, s in levels.items()}
    return DetectorOutput(
        draw(channels), torch.tensor([[side, side], [side - 24, side - 8]]), DENSE, draw(3, 2), draw(4, 2), boxes
    )


def objects() -> list[Target]:
    return [
        Target(boxes=torch.tensor([[4.0, 6.0, 38.0, 30.0], [30.0, 30.0, 61.0, 63.0]]), labels=torch.tensor([0, 2])),
        Target(boxes=torch.tensor([[8.0, 8.0, 14.0, 40.0]]), labels=torch.tensor([1])),
    ]


def nothing() -> list[Target]:
    return [Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))] * 2


def absolute(name: str) -> Policy:
    policy = load_policy(name)
    return replace(policy, terms=[replace(term, weighting="absolute") for term in policy])


def run(
    policy: Policy, student: DetectorOutput, teacher: DetectorOutput, targets: Any = None, step: int = 0
) -> dict[str, Tensor]:
    channels = (next(iter(side.features.values())).shape[1] for side in (student, teacher))
    ours, theirs = (info(count) for count in channels)
    distiller = Distiller(policy, student=ours, teacher=theirs)
    distiller.step = step
    return distiller(student, teacher, targets or objects())


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


# ------------------------------------------------------------------------------------------------- values and names


def test_losses_are_named_weighted_and_summed_over_levels():
    policy = Policy([Term("global", ["norm(C)"], "l1", 3), Term("logits", [], "kl", 0.5), Term("global", [], "l1", 2)])
    student, teacher = toy(0), toy(1)
    losses = run(policy, student, teacher)
    assert list(losses) == ["global/l1", "logits/kl", "global/l1#2"]
    first = sum(
        (_standardised(student.features[level]) - _standardised(teacher.features[level])).abs().mean()
        for level in STRIDES
    )
    third = sum((student.features[level] - teacher.features[level]).abs().mean() for level in STRIDES)
    torch.testing.assert_close(losses["global/l1"], 3 * first)
    torch.testing.assert_close(losses["global/l1#2"], 2 * third)
    valid = {"p3": (8, 8, 5, 7), "p4": (4, 4, 3, 4)}
    expected = 0.0
    for level, (h0, w0, h1, w1) in valid.items():
        rows_s = _rows(student.logits[level], (h0, w0), (h1, w1))
        rows_t = _rows(teacher.logits[level], (h0, w0), (h1, w1))
        p, q = rows_t.softmax(1), rows_s.softmax(1)
        expected += (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(losses["logits/kl"], 0.5 * expected)
    assert all(loss.shape == () and loss.dtype == torch.float32 for loss in losses.values())


def _standardised(maps: Tensor) -> Tensor:
    return (maps - maps.mean(1, keepdim=True)) / (maps.std(1, correction=0, keepdim=True) + 1e-6)


def _rows(logits: Tensor, *valid: tuple[int, int]) -> Tensor:
    return torch.cat([one[..., :h, :w].flatten(1).t() for one, (h, w) in zip(logits, valid, strict=True)])


def fitnets(student: Tensor, teacher: Tensor) -> float:
    return sum((a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)) / (
        student.numel()
    )


def pkd(student: Tensor, teacher: Tensor) -> float:
    """10 (1 - Pearson correlation of each channel over batch and positions), averaged; over n - 1 of n numbers."""
    channels = [
        torch.corrcoef(torch.stack([student[:, c].flatten(), teacher[:, c].flatten()]))[0, 1].item()
        for c in range(student.shape[1])
    ]
    count = student[:, 0].numel()
    return 10 * (count - 1) / count * (1 - sum(channels) / len(channels))


def cwd(student: Tensor, teacher: Tensor) -> float:
    """5 KL of the softmax over the positions of every channel, averaged over images and channels."""
    divergences = []
    for image in range(student.shape[0]):
        for channel in range(student.shape[1]):
            s, t = (side[image, channel].flatten().tolist() for side in (student, teacher))
            mass_s, mass_t = (sum(math.exp(v) for v in values) for values in (s, t))
            p = [math.exp(v) / mass_t for v in t]
            q = [math.exp(v) / mass_s for v in s]
            divergences.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return 5 * sum(divergences) / len(divergences)


def detkds_global(student: Tensor, teacher: Tensor) -> float:
    """Channel attention of power 1/2, 2 x 2 maxima, length 1 over the two images, 10 times l1."""

    def transformed(maps: Tensor) -> Tensor:
        maps, (n, c, h, w) = maps.clone(), maps.shape
        for image in range(n):
            strength = [maps[image, k].abs().mean().item() / 0.5 for k in range(c)]
            mass = sum(math.exp(v) for v in strength)
            for k in range(c):
                maps[image, k] *= math.sqrt(c * math.exp(strength[k]) / mass)
        pooled = torch.zeros(n, c, h // 2, w // 2)
        for i in range(h // 2):
            for j in range(w // 2):
                pooled[:, :, i, j] = maps[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].amax((2, 3))
        return pooled / pooled.square().sum(0, keepdim=True).sqrt()

    return 10 * (transformed(student) - transformed(teacher)).abs().mean().item()


@pytest.mark.parametrize(
    ("name", "reference"),
    [("fitnets", fitnets), ("pkd", pkd), ("cwd", cwd), ("detkds/released-global", detkds_global)],
)
def test_shipped_policies_against_obvious_loops(name: str, reference: Callable[[Tensor, Tensor], float]):
    student, teacher = toy(0), toy(1)
    [loss] = run(load_policy(name), student, teacher).values()
    with torch.no_grad():
        expected = sum(reference(student.features[level], teacher.features[level]) for level in STRIDES)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


UNLIKE = {"diffkd", "fkd", "maskd", "srd", "detkds/released-anchor-free"}
"""Policies that tell even equal outputs apart: by learned parts at first, by a logarithm, by a mask for each side."""
PINNED = {
    "cwd": [9.69946],
    "detkds/anchor-free": [0.195277, 0.22993, 0.462064, 0.750458, 0.317183],
    "detkds/global": [0.976387],
    "detkds/one-stage": [0.195277, 0.935679, 0.269977, 0.371741, 0.239992],
    "detkds/released-anchor-free": [3.21993, 1.57134],
    "detkds/released-global": [6.43987],
    "detkds/released-one-stage": [3.86392, 2.69237],
    "detkds/two-stage": [0.195277, 0.424776, 0.136796, 0.367466, 0.239992],
    "fitnets": [4.1871],
    "fitnets-gradient": [4.1871],
    "fkd": [0.00288178, 0.00403714, 0.0393611, 0.00270669],
    "pkd": [20.3685],
    "skd": [4.02471],
}


def on_features(name: str) -> bool:
    """Whether a policy of features serves the outputs of this file; others are tested in ``tests/policies``."""
    try:
        check_pair(absolute(name), info(), info())
    except PairError:
        return False
    return any(term.knowledge.yields == "feature" for term in load_policy(name))


ON_FEATURES = [name for name in list_policies() if on_features(name)]


@pytest.mark.parametrize("name", PINNED)
def test_shipped_policies_keep_their_values(name: str):
    losses = run(absolute(name), toy(0), toy(1))
    assert [loss.item() for loss in losses.values()] == pytest.approx(PINNED[name], rel=1e-4), name


@pytest.mark.parametrize("name", sorted(set(ON_FEATURES) - UNLIKE))
def test_equal_outputs_lose_nothing(name: str):
    output = toy(3)
    if any(str(term.to_dict().get("adapter", "auto")) != "auto" for term in load_policy(name)):
        pytest.skip("an adapter makes the student's maps others at first")
    for label, loss in run(absolute(name), output, output).items():
        assert loss.item() == pytest.approx(0, abs=2e-5), label


@pytest.mark.parametrize("name", ON_FEATURES)
def test_batches_without_objects_stay_finite(name: str):
    student = toy(0)
    policy = absolute(name)
    losses = run(policy, student, toy(1), nothing())
    for term, (label, loss) in zip(policy, losses.items(), strict=True):
        assert torch.isfinite(loss) and (loss == 0 or term.to_dict()["knowledge"] != "instance"), label
    total(losses).backward()
    assert all(maps.grad is not None and maps.grad.isfinite().all() for maps in student.features.values())


def test_background_counts_half():
    student, teacher = toy(0), toy(1)
    whole, without = (
        run(Policy([Term(f"fgbg(background={factor})", [], "l2")]), student, teacher)["fgbg/l2"] for factor in (0.5, 0)
    )
    only = run(Policy([Term("fgbg", [], "l2")]), student, teacher, nothing())["fgbg/l2"]
    expected = 0.0
    for level, cells in {"p3": (5, 7), "p4": (3, 4)}.items():
        error = (student.features[level] - teacher.features[level]).square()
        inside = torch.cat([error[0].flatten(1), error[1, :, : cells[0], : cells[1]].flatten(1)], 1)
        expected += 0.5 * inside.mean()
    torch.testing.assert_close(only, expected)  # without objects all is background
    assert whole > without > 0


def test_term_loss_without_pairs_is_zero():
    assert term_loss(Term("global"), []) == 0
    pair = Pair(torch.ones(1, 2, 3, 3), torch.zeros(1, 2, 3, 3), factor=0.5)
    assert term_loss(Term("global", weight=3), [pair, pair]) == 3.0


# ---------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", ON_FEATURES)
def test_the_teacher_gets_no_gradient(name: str):
    student, teacher = toy(0), toy(1)
    total(run(absolute(name), student, teacher, step=1000)).backward()
    for group in (teacher.features, teacher.logits, teacher.regression):
        assert all(tensor.grad is None for tensor in group.values())
    gradients = [maps.grad for maps in student.features.values()]
    assert all(gradient is not None for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients)  # small objects are on the finest level alone


def test_gradient_in_double_precision():
    policy = Policy(
        [
            Term("global", ["catt", "norm(C)"], "l2", 0.7),
            Term("fgbg", ["satt"], "cosine", 2),
            Term("instance(size=2)", ["norm_batch"], "l2"),
            Term("logits", [], "pearson"),
            Term("localization", ["sigmoid"], "giou"),
        ]
    )
    student, teacher = (toy(seed, side=32, dtype=torch.float64) for seed in (0, 1))
    targets = [Target(boxes=one["boxes"] / 2, labels=one["labels"]) for one in objects()]
    distiller = Distiller(policy, student=info(), teacher=info()).double()

    def loss(p3: Tensor, p4: Tensor, logits: Tensor, regression: Tensor) -> Tensor:
        changed = replace(
            student,
            features={"p3": p3, "p4": p4},
            logits={**student.logits, "p4": logits},
            regression={**student.regression, "p4": regression},
        )
        return total(distiller(changed, teacher, targets))

    inputs = (*student.features.values(), student.logits["p4"], student.regression["p4"])
    assert loss(*inputs).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, tuple(tensor.detach().requires_grad_() for tensor in inputs))


def test_half_precision_is_widened_before_anything_is_summed():
    student, teacher = toy(0), toy(1)

    def halved(output: DetectorOutput) -> DetectorOutput:
        names = ("features", "logits", "regression", "boxes")
        return replace(output, **{n: {k: v.detach().bfloat16() for k, v in getattr(output, n).items()} for n in names})

    def widened(output: DetectorOutput) -> DetectorOutput:
        names = ("features", "logits", "regression", "boxes")
        return replace(output, **{n: {k: v.float() for k, v in getattr(output, n).items()} for n in names})

    policy = absolute("detkds/one-stage")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run(policy, halved(student), halved(teacher))
    outside = run(policy, widened(halved(student)), widened(halved(teacher)))
    for label, loss in inside.items():
        assert loss.dtype == torch.float32 and torch.equal(loss, outside[label]), label


def test_adapters_run_in_full_precision_under_autocast():
    distiller = Distiller(load_policy("fitnets"), student=info(3), teacher=info(5))
    student, teacher = toy(0, 3), toy(1, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = distiller(student, teacher)["global/l2"]
    assert torch.equal(inside, distiller(student, teacher)["global/l2"])


# ------------------------------------------------------------------------------------------- adapters and levels


def test_adapters_exist_only_where_channels_differ_and_a_term_looks():
    narrow = DetectorInfo({"p3": FeatureSpec(3, 8), "p4": FeatureSpec(5, 16), "p5": FeatureSpec(3, 32)}, DENSE)
    wide = info(5, p3=8, p4=16, p5=32)
    assert list(Distiller(load_policy("fitnets"), student=narrow, teacher=wide).adapters) == ["p3", "p5"]
    levels = Policy([Term("global", [], "l2", levels=("p4", "p5"))])
    assert list(Distiller(levels, student=narrow, teacher=wide).adapters) == ["p5"]
    for policy in (Policy(), Policy([Term("logits")])):
        assert not list(Distiller(policy, student=narrow, teacher=wide).parameters())


def test_adapters_are_made_from_the_seed_and_trained():
    make = lambda seed: Distiller(load_policy("pkd"), student=info(3), teacher=info(5), seed=seed)  # noqa: E731
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = make(0), make(0), make(1)
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [one.adapters["p3"].weight for one in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    total(first(toy(0, 3), toy(1, 5))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in first.named_parameters() if "weight" in n)


def test_an_adapter_maps_the_student_alone():
    distiller = Distiller(load_policy("fitnets"), student=info(3), teacher=info(5))
    student, teacher = toy(0, 3), toy(1, 5)
    expected = sum(
        (
            torch.einsum("oc,nchw->nohw", distiller.adapters[k].weight[:, :, 0, 0], student.features[k])
            - teacher.features[k]
        )
        .square()
        .mean()
        for k in STRIDES
    )
    torch.testing.assert_close(distiller(student, teacher)["global/l2"], expected)


def test_adapters_get_a_gradient_in_every_batch():
    """So that data-parallel training never waits for a parameter that nobody used."""
    policy = Policy([Term("instance(assign=fpn)", ["norm(C)"], "l1"), Term("fgbg", [], "kl")])
    for targets in (objects(), nothing()):
        distiller = Distiller(policy, student=info(3), teacher=info(5))
        total(distiller(toy(0, 3), toy(1, 5), targets)).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.parameters())


def test_terms_share_an_adapter_exactly_where_they_name_the_same():
    terms = [Term("global", [], "l2", adapter="conv(3)"), Term("global", [], "l1", adapter="conv(3)"),
             Term("global", [], "l1"), Term("global", [], "l1", levels=("p4",), adapter="conv(1)")]  # fmt: skip
    distiller = Distiller(Policy(terms), student=info(5), teacher=info(5))
    assert sorted(distiller.adapters) == ["p3 conv(3)", "p4 conv(1)", "p4 conv(3)"]
    student, teacher = toy(0, 5), toy(1, 5)
    losses = distiller(student, teacher)
    adapted = {k: distiller.adapters[f"{k} conv(3)"](student.features[k]) for k in STRIDES}
    for label, power in (("global/l2", 2), ("global/l1", 1)):
        expected = sum((adapted[k] - teacher.features[k]).abs().pow(power).mean() for k in STRIDES)
        torch.testing.assert_close(losses[label], expected)
    plain = sum((student.features[k] - teacher.features[k]).abs().mean() for k in STRIDES)
    torch.testing.assert_close(losses["global/l1#2"], plain)


def test_a_drawing_adapter_draws_alike_beside_other_terms():
    term = Term("global", [], "l2", adapter="generate(ratio=0.5)")
    beside = Policy([Term("global", ["mask"], "l1"), term])
    losses = [Distiller(one, student=info(5), teacher=info(5), seed=3).eval()(toy(0, 5), toy(1, 5))["global/l2"]
              for one in (Policy([term]), beside)]  # fmt: skip
    assert torch.equal(*losses)


def test_an_adapter_on_responses_is_refused():
    with pytest.raises(PolicyError, match="adapter: expected knowledge of features, got 'logits'"):
        Term("logits", [], "l2", adapter="conv(3)")


def test_a_schedule_scales_the_loss_by_the_steps_taken():
    policy = Policy([Term("global", [], "l2", schedule="warmup(2)"), Term("global", [], "l1", schedule="stop(0.5)")])
    with pytest.raises(PairError, match=r"stop.*give the distiller total_steps"):
        Distiller(policy, student=info(), teacher=info())
    distiller = Distiller(policy, student=info(), teacher=info(), total_steps=4)
    student, teacher = toy(0), toy(1)
    whole = [loss.item() for loss in Distiller(Policy([Term("global"), Term("global", [], "l1")]),
             student=info(), teacher=info())(student, teacher).values()]  # fmt: skip
    seen = [[loss.item() for loss in distiller(student, teacher).values()] for _ in range(4)]
    shares = [(0, 1), (0.5, 1), (1, 0), (1, 0)]
    assert seen == [pytest.approx([share * loss for share, loss in zip(row, whole, strict=True)]) for row in shares]


class Learned(nn.Module):
    """A knowledge's learned part, for the test below: both sides are scaled by numbers that are learned."""

    def __init__(self, channels: dict[str, int]) -> None:
        super().__init__()
        self.channels = channels
        self.scales = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, inputs):
        for _, _, student, teacher in inputs.features():
            yield Pair(student * self.scales[0], teacher * self.scales[1], teacher_learns=True)


def test_learned_parts_of_knowledge_are_built_once_and_trained_on_both_sides():
    knowledge = type("Toy", (Global,), {"learned": lambda self, channels, generator: Learned(dict(channels))})()
    policy = Policy([Term(knowledge, [], "l2"), Term(knowledge, [], "l1")])
    distiller = Distiller(policy, student=info(3), teacher=info(5))
    (part,) = distiller.learned.values()
    assert part.channels == {"p3": 5, "p4": 5}
    other = Distiller(Policy([*policy, Term(knowledge, [], "l2", adapter="conv(3)")]), student=info(3), teacher=info(5))
    assert len(other.learned) == 2  # what another adapter made of the student's maps is another thing to learn from
    student, teacher = toy(0, 3), toy(1, 5)
    total(distiller(student, teacher)).backward()
    assert (part.scales.grad != 0).all()
    assert all(feature.grad is None for feature in teacher.features.values())


def test_levels_are_matched_by_stride_not_by_name():
    strides = {f"p{k}": 2**k for k in range(2, 8)}
    student = info(4, **{f"c{k}": strides[f"p{k}"] for k in range(2, 7)})
    teacher = info(4, **{f"p{k}": strides[f"p{k}"] for k in range(3, 8)})
    distiller = Distiller(load_policy("fitnets"), student=student, teacher=teacher)
    assert {ours: match.teacher for ours, match in distiller.levels.items()} == {
        "c3": "p3", "c4": "p4", "c5": "p5", "c6": "p6",
    }  # fmt: skip
    assert distiller.strides == {"c3": 8, "c4": 16, "c5": 32, "c6": 64}
    ours = toy(0, side=128, **{f"c{k}": strides[f"p{k}"] for k in range(2, 7)})
    theirs = toy(1, side=128, **{f"p{k}": strides[f"p{k}"] for k in range(3, 8)})
    expected = sum((ours.features[f"c{k}"] - theirs.features[f"p{k}"]).square().mean() for k in range(3, 7))
    torch.testing.assert_close(distiller(ours, theirs)["global/l2"], expected)


def test_of_several_levels_of_one_stride_the_namesake_is_taken():
    teacher = DetectorInfo({k: FeatureSpec(4, 8) for k in ("body.2", "p3", "z")})
    for level, expected in (("p3", "p3"), ("neck.0", "body.2")):
        student = DetectorInfo({level: FeatureSpec(3, 8)})
        distiller = Distiller(load_policy("fitnets"), student=student, teacher=teacher)
        assert distiller.levels[level].teacher == expected
        outputs = (replace(toy(0, 3), features={level: torch.randn(2, 3, 8, 8)}), toy(1))
        outputs[1].features[expected] = torch.randn(2, 4, 8, 8)
        assert distiller(*outputs)["global/l2"] > 0


def test_maps_of_another_size_are_resized():
    student, teacher = toy(0), toy(1)
    small = replace(student, features={k: v[:, :, :3, :3] for k, v in student.features.items()})
    assert run(load_policy("fitnets"), small, teacher)["global/l2"] > 0


def test_no_terms_no_losses():
    assert run(Policy(), toy(0), toy(1)) == {}


# -------------------------------------------------------------------------------------------------- random draws


MASKED = Policy([Term("global", ["mask"], "l2"), Term("fgbg", ["mask"], "l1")])


def test_random_draws_depend_on_seed_and_step_alone():
    student, teacher = toy(0), toy(1)
    make = lambda seed: Distiller(MASKED, student=info(), teacher=info(), seed=seed)  # noqa: E731

    def steps(distiller: Distiller, count: int = 3) -> list[float]:
        return [total(distiller(student, teacher, objects())).item() for _ in range(count)]

    first = steps(make(0))
    torch.manual_seed(99)
    assert steps(make(0)) == first and len(set(first)) == 3
    assert steps(make(1)) != first


def test_random_draws_go_on_after_a_resume():
    student, teacher = toy(0), toy(1)
    straight = Distiller(MASKED, student=info(), teacher=info())
    values = [total(straight(student, teacher, objects())).item() for _ in range(4)]
    stopped = Distiller(MASKED, student=info(), teacher=info())
    for _ in range(2):
        stopped(student, teacher, objects())
    resumed = Distiller(MASKED, student=info(), teacher=info())
    resumed.load_state_dict(stopped.state_dict())
    assert [total(resumed(student, teacher, objects())).item() for _ in range(2)] == values[2:]


def test_evaluation_does_not_count_as_a_step():
    distiller = Distiller(MASKED, student=info(), teacher=info()).eval()
    values = {total(distiller(toy(0), toy(1), objects())).item() for _ in range(3)}
    assert len(values) == 1 and distiller.step == 0


def test_a_terms_draws_do_not_depend_on_its_company():
    student, teacher = toy(0), toy(1)
    together = run(MASKED, student, teacher)
    swapped = run(Policy(reversed(MASKED.terms)), student, teacher)
    alone = run(Policy(MASKED.terms[1:]), student, teacher)
    assert together["fgbg/l1"] == swapped["fgbg/l1"] == alone["fgbg/l1"]
    twice = run(Policy([MASKED.terms[0]] * 2), student, teacher)
    assert twice["global/l2"] == twice["global/l2#2"]


# ---------------------------------------------------------------------------------------------------- regions


class RegionToy:
    """A region head that says what its proposals are, counted times it was asked."""

    def __init__(self, seed: int) -> None:
        self.head = nn.Linear(4, 4 + 16)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, generator=generator)
        self.asked: list[list[Tensor]] = []

    def __call__(self, proposals: list[Tensor]) -> RegionResponse:
        self.asked.append(proposals)
        rows = self.head(torch.cat(proposals) / 64)
        regression = rows[:, 4:].view(-1, 4, 4)
        return RegionResponse(rows[:, :4], regression, regression * 8)


def region_pair() -> tuple[DetectorOutput, DetectorOutput, RegionToy]:
    proposals = [torch.tensor([[0.0, 0.0, 30.0, 30.0], [5.0, 9.0, 60.0, 62.0]]), torch.tensor([[1.0, 1.0, 9.0, 30.0]])]
    ours, theirs = RegionToy(0), RegionToy(1)
    response = ours(proposals)
    student = replace(
        toy(0),
        layout=REGION,
        logits={"roi": response.logits},
        regression={"roi": response.regression},
        boxes={"roi": response.boxes},
        proposals=[one.requires_grad_() for one in proposals],
        respond_at=ours,
    )
    teacher = DetectorOutput(toy(1).features, student.image_sizes, REGION, respond_at=theirs)
    return student, teacher, theirs


def test_a_region_teacher_is_asked_once_about_the_students_proposals():
    student, teacher, asked = region_pair()
    policy = Policy(
        [Term("logits", [], "kl", 2), Term("localization", ["decode"], "iou"), Term("logits", [], "pearson")]
    )
    losses = Distiller(policy, student=info(layout=REGION), teacher=info(layout=REGION))(student, teacher)
    assert len(asked.asked) == 1
    for given, own in zip(asked.asked[0], student.proposals or [], strict=True):
        assert torch.equal(given, own) and not given.requires_grad
    answer = asked(asked.asked[0]).logits.detach()
    p, q = answer.softmax(1), student.logits["roi"].softmax(1)
    torch.testing.assert_close(losses["logits/kl"], 2 * (p * (p.log() - q.log())).sum(1).mean())
    total(losses).backward()
    assert asked.head.weight.grad is None


def test_a_region_teacher_is_not_asked_for_features_alone():
    student, teacher, asked = region_pair()
    Distiller(load_policy("pkd"), student=info(layout=REGION), teacher=info(layout=REGION))(student, teacher)
    assert not asked.asked


def test_a_region_student_in_evaluation_mode_is_refused():
    student, teacher, _ = region_pair()
    distiller = Distiller(Policy([Term("logits")]), student=info(layout=REGION), teacher=info(layout=REGION))
    with pytest.raises(ValueError, match="need the student's proposals"):
        distiller(replace(student, proposals=None), teacher)


# ---------------------------------------------------------------------------------------------------- refusals


def test_every_term_that_the_pair_cannot_serve_is_named():
    policy = Policy(
        [
            Term("global", [], "l2", 1, "gradient"),
            Term("logits", [], "kl"),
            Term("localization", ["sigmoid"], "ciou"),
            Term("global", [], "l1", levels=("p3", "p9")),
        ],
        name="mine",
    )
    other = replace(DENSE, num_classes=7)
    with pytest.raises(PairError) as caught:
        Distiller(policy, student=info(), teacher=info(layout=other))
    assert caught.value.faults == (
        "policy 'mine': term 'global: - | l2 x 1 of the task's gradient': its weight is relative to the task's "
        "gradient; calibrate the policy first",
        "policy 'mine': term 'logits: - | kl x 1' cannot be distilled between these detectors: "
        "num classes differs: student 3, teacher 7",
        "policy 'mine': term 'localization: sigmoid | ciou x 1' cannot be distilled between these detectors: "
        "num classes differs: student 3, teacher 7",
        "policy 'mine': term 'global: - | l1 x 1 @ p3 p9': no common level p9; common: p3, p4",
    )


def test_detectors_without_a_common_stride_are_refused():
    with pytest.raises(PairError, match=r"no levels of equal or similar stride; student \[2\], teacher \[8, 16\]"):
        check_pair(load_policy("pkd"), {"p1": FeatureSpec(8, 2)}, info())
    check_pair(Policy(), {"p1": FeatureSpec(8, 2)}, info())


def test_outputs_that_do_not_belong_together_are_refused():
    student, teacher = toy(0), toy(1)
    with pytest.raises(ValueError, match="the teacher's output has no features at level 'p4'; it has p3"):
        run(load_policy("pkd"), student, replace(teacher, features={"p3": teacher.features["p3"]}))
    other = replace(teacher, logits={k: v[..., :1, :1] for k, v in teacher.logits.items()})
    with pytest.raises(ValueError, match=r"expected tensors of one shape, got student \(2, 3, 2, 8, 8\), teacher"):
        run(Policy([Term("logits")]), student, other)
    with pytest.raises(ValueError, match="needs the targets of the batch"):
        Distiller(Policy([Term("fgbg")]), student=info(), teacher=info())(student, teacher)


def test_the_distiller_holds_no_detector():
    class Described(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.info = info()

    distiller = Distiller(load_policy("pkd"), student=Described(), teacher=Described())
    assert not list(distiller.parameters()) and list(distiller.state_dict()) == ["_extra_state"]
