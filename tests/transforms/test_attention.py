from __future__ import annotations

import math

import pytest
import torch

from detkds.structures import Pair
from detkds.transforms.attention import AttentionMap, ChannelAttention, FocalAttention, SpatialAttention


def one_side(transform: SpatialAttention | ChannelAttention, feature: torch.Tensor) -> torch.Tensor:
    return transform(Pair(feature, feature)).student


def test_spatial_by_hand() -> None:
    """|F| averages over the channels to (1, 0); softmax of (2, 0) times 2 cells, then its root."""
    feature = torch.tensor([[[[1.0, 0.0]], [[-1.0, 0.0]]]])
    share = math.exp(2) / (math.exp(2) + 1)
    assert one_side(SpatialAttention(), feature)[0, :, 0, 0].tolist() == pytest.approx(
        [math.sqrt(2 * share), -math.sqrt(2 * share)]
    )
    assert one_side(SpatialAttention(power=1), feature)[0, 0, 0, 0].item() == pytest.approx(2 * share)


def test_channel_by_hand() -> None:
    """|F| averages over the cells to (2, 1); softmax of (4, 2) times 2 channels, then its root."""
    feature = torch.tensor([[[[1.0, -3.0]], [[1.0, 1.0]]]])
    shares = [math.exp(4) / (math.exp(4) + math.exp(2)), math.exp(2) / (math.exp(4) + math.exp(2))]
    result = one_side(ChannelAttention(), feature)
    assert result[0, 0, 0].tolist() == pytest.approx([math.sqrt(2 * shares[0]), -3 * math.sqrt(2 * shares[0])])
    assert result[0, 1, 0].tolist() == pytest.approx([math.sqrt(2 * shares[1])] * 2)


@pytest.mark.parametrize(("cls", "dims"), [(SpatialAttention, (2, 3)), (ChannelAttention, (1,))])
class TestBoth:
    def attention(self, transform: SpatialAttention | ChannelAttention, feature: torch.Tensor) -> torch.Tensor:
        return one_side(transform, feature) / feature

    def test_mean_is_one(self, cls: type, dims: tuple[int, ...], generator: torch.Generator) -> None:
        feature = torch.randn(3, 5, 6, 7, generator=generator)
        mean = self.attention(cls(power=1), feature).mean(dims)
        torch.testing.assert_close(mean, torch.ones_like(mean), atol=1e-5, rtol=0)

    def test_factor_acts_through_tau_only(self, cls: type, dims: tuple[int, ...], generator: torch.Generator) -> None:
        feature = torch.randn(3, 5, 6, 7, generator=generator)
        torch.testing.assert_close(
            self.attention(cls(tau=1.5), 3 * feature), self.attention(cls(tau=0.5), feature), rtol=1e-5, atol=1e-5
        )
        assert not torch.allclose(self.attention(cls(), 3 * feature), self.attention(cls(), feature))

    def test_even_map_is_left_alone(self, cls: type, dims: tuple[int, ...]) -> None:
        feature = torch.full((2, 3, 4, 5), -0.7)
        torch.testing.assert_close(one_side(cls(), feature), feature)

    def test_each_side_has_its_own(self, cls: type, dims: tuple[int, ...], generator: torch.Generator) -> None:
        student, teacher = torch.randn(2, 2, 5, 6, 7, generator=generator)
        pair = cls()(Pair(student, teacher))
        torch.testing.assert_close(pair.student, one_side(cls(), student))
        torch.testing.assert_close(pair.teacher, one_side(cls(), teacher))

    def test_share_of_zero_has_a_finite_gradient(self, cls: type, dims: tuple[int, ...]) -> None:
        """A softmax that underflows to exactly 0 would make the root's gradient infinite."""
        feature = torch.ones(1, 2, 1, 2)
        feature[0, 1, 0, 1] = 1e4
        feature.requires_grad_()
        one_side(cls(), feature).sum().backward()
        assert feature.grad is not None and feature.grad.isfinite().all()

    def test_power_is_applied_to_the_attention(self, cls: type, dims: tuple[int, ...]) -> None:
        feature = torch.linspace(0.1, 2, 24).view(1, 2, 3, 4)
        whole = self.attention(cls(power=1), feature)
        torch.testing.assert_close(self.attention(cls(), feature).square(), whole)

    def test_the_teachers_counts_for_both(self, cls: type, dims: tuple[int, ...], generator: torch.Generator) -> None:
        student, teacher = torch.randn(2, 2, 5, 6, 7, generator=generator)
        teacher.requires_grad_()
        pair = cls(source="teacher")(Pair(student, teacher))
        weight = self.attention(cls(), teacher.detach())
        torch.testing.assert_close(pair.student, student * weight)
        torch.testing.assert_close(pair.teacher, teacher * weight)
        assert not pair.student.requires_grad


def test_focal_takes_both_attentions_from_the_map_as_it_comes(generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, 2, 5, 6, 7, generator=generator)
    pair = FocalAttention(tau=0.8)(Pair(student, teacher))
    weight = one_side(SpatialAttention(tau=0.8), teacher) * one_side(ChannelAttention(tau=0.8), teacher) / teacher**2
    torch.testing.assert_close(pair.student, student * weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pair.teacher, teacher * weight, rtol=1e-4, atol=1e-5)
    chained = ChannelAttention(source="teacher")(SpatialAttention(source="teacher")(Pair(student, teacher)))
    assert not torch.allclose(chained.student, FocalAttention()(Pair(student, teacher)).student, rtol=1e-3)


def test_maps_by_hand() -> None:
    """Mean |F| of the cells (2, 1) and of the channels (1, 2); mean F^2 of the cells (4.5, 1)."""
    feature = torch.tensor([[[[1.0, -1.0]], [[-3.0, 1.0]]]], requires_grad=True)
    weight = torch.tensor([[[[1.0, 0.0]]]])
    spatial = AttentionMap("spatial")(Pair(feature, feature.detach(), weight=weight))
    high = math.exp(4) / (math.exp(4) + math.exp(2))
    assert spatial.student.flatten().tolist() == pytest.approx([2 * high, 2 - 2 * high])
    assert spatial.weight is weight or torch.equal(spatial.weight, weight)  # type: ignore[arg-type]
    channel = AttentionMap("channel", tau=1)(Pair(feature, feature.detach(), weight=weight))
    high = math.exp(2) / (math.exp(1) + math.exp(2))
    assert channel.student.flatten().tolist() == pytest.approx([2 - 2 * high, 2 * high])
    assert channel.student.shape == (1, 2, 1, 1) and channel.weight is None
    raw = AttentionMap("spatial", exponent=2, softmax=False)(Pair(feature, feature.detach()))
    assert raw.student.flatten().tolist() == pytest.approx([5.0, 1.0])
    assert raw.student.requires_grad and not raw.teacher.requires_grad
