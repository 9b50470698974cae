"""Dropout by bytes: the rate, the scale, the seed, and no effect outside training."""

from __future__ import annotations

import pytest
import torch

from model.heads import ByteDropout


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_it_drops_at_its_rate_and_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    dropped = ByteDropout(rate)(torch.ones(1000, 1003))
    assert float((dropped == 0).float().mean()) == pytest.approx(rate, abs=1 / 512 + 0.002)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.01 / (1 - rate))


def test_decisions_that_share_a_random_number_are_independent() -> None:
    torch.manual_seed(0)
    kept = (ByteDropout(0.5)(torch.ones(100_000, 8)) != 0).float()
    correlation = torch.corrcoef(kept.T).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 0.015  # 1 / sqrt(100,000) = .003


def test_equal_seeds_drop_the_same() -> None:
    layer, ones = ByteDropout(0.5), torch.ones(7, 5)
    torch.manual_seed(1)
    first = layer(ones)
    torch.manual_seed(1)
    assert torch.equal(layer(ones), first)
    assert not torch.equal(layer(ones), first)


def test_nothing_is_dropped_outside_training_or_at_rate_zero() -> None:
    x = torch.randn(3, 4)
    assert torch.equal(ByteDropout(0.5).eval()(x), x)
    assert torch.equal(ByteDropout(0.0)(x), x)


def test_gradients_flow_through_what_is_kept() -> None:
    x = torch.ones(4, 8, requires_grad=True)
    y = ByteDropout(0.5)(x)
    torch.autograd.backward(y.sum())
    assert x.grad is not None
    assert torch.equal(x.grad, (y.detach() != 0) * 2.0)
