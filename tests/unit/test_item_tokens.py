"""One token of all signals: a mixture that leaves out what is missing, and learns signals in turn."""

from __future__ import annotations

import numpy as np
import torch

from model.config import SIGNALS, HeadsConfig, TrainConfig
from model.heads import Heads, ItemFeatures, gather
from offline.onepass import shown_signals

WIDTHS = {"image": 6, "cf": 3, "text": 4}
ROWS = np.arange(4)


def features() -> ItemFeatures:
    """Item 0 has all signals, item 1 no picture, item 2 text alone, item 3 nothing."""
    generator = np.random.default_rng(0)
    vectors = {s: generator.normal(size=(4, WIDTHS[s])).astype(np.float32) for s in SIGNALS}
    origin = {
        "image": np.array([1, 0, 0, 0], np.uint8),
        "cf": np.array([1, 1, 0, 0], np.uint8),
        "text": np.array([1, 1, 1, 0], np.uint8),
    }
    return ItemFeatures(vectors, origin)


def heads() -> Heads:
    torch.manual_seed(0)
    return Heads(HeadsConfig(shared_width=4, adaptor_width=4), 8, WIDTHS, 1.0)


def test_an_item_with_one_signal_is_that_signal_s_token_and_one_with_none_is_zero() -> None:
    made = heads()
    vectors, missing = gather(features(), ROWS, torch.device("cpu"))
    tokens = made.item_tokens(vectors, missing)
    torch.testing.assert_close(tokens[2], made.text_adaptor(vectors["text"])[2])
    assert not tokens[3].any()


def test_what_a_missing_picture_would_have_said_does_not_matter() -> None:
    known = features()
    other = ItemFeatures({**known.vectors, "image": known.vectors["image"] + 5}, known.origin)
    one, two = (heads().item_tokens(*gather(f, ROWS, torch.device("cpu"))) for f in (known, other))
    assert not torch.equal(one[0], two[0])
    torch.testing.assert_close(one[1:], two[1:])


def test_every_adaptor_and_the_gate_learn_and_no_gradient_is_nan() -> None:
    made = heads()
    torch.autograd.backward(made.item_tokens(*gather(features(), ROWS, torch.device("cpu"))).square().sum())
    for module in (made.adaptor, made.cf_adaptor, made.text_adaptor, made.gate):
        for parameter in module.parameters():
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()
    assert made.gate.weight.grad is not None
    assert made.gate.weight.grad.any()


def test_signals_that_are_not_shown_yet_have_no_part() -> None:
    made = heads()
    made.shown = ("text",)
    vectors, missing = gather(features(), ROWS, torch.device("cpu"))
    torch.testing.assert_close(made.item_tokens(vectors, missing)[0], made.text_adaptor(vectors["text"])[0])


def test_signals_come_in_turn_over_the_steps() -> None:
    config = TrainConfig(steps=9, progressive=True)
    shown = [shown_signals(step, config) for step in range(9)]
    assert shown == [("text",)] * 3 + [("text", "image")] * 3 + [("text", "image", "cf")] * 3
    assert shown_signals(0, TrainConfig(steps=9)) == SIGNALS
