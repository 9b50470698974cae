"""The model alone: what a state may depend on, what padding may change, what a score means."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import CFConfig
from model.errors import ArtifactError, InvalidInputError
from model.sasrec import SCORE_BATCH, Block, SASRec, load_sasrec, save_sasrec

NUM_ITEMS = 12
ROWS = np.array([0, 1, 2, 3, 5, 6, 7, 8, 10, 11])  # 4 and 9 are too young
YOUNG = [4, 9]
PADDING = len(ROWS)


def fresh_model(seed: int = 0, **overrides: float) -> SASRec:
    """Random weights, position embeddings large enough for a mistake in positions to show."""
    config = CFConfig.model_validate({"width": 8, "num_heads": 2, "max_history": 6, "dropout": 0.5, **overrides})
    model = SASRec(config, ROWS, NUM_ITEMS)
    model.initialise(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.positions.weight.mul_(50)
        model.items.weight.mul_(50)
    return model.eval()


def states(model: SASRec, *tokens: list[int]) -> Tensor:
    with torch.no_grad():
        state_BLW: Tensor = model(torch.tensor(tokens))
    return state_BLW


def test_a_later_item_does_not_change_an_earlier_state() -> None:
    before, after = states(fresh_model(), [3, 1, 4, 2], [3, 1, 4, 7])
    assert torch.equal(before[:3], after[:3])
    assert not torch.allclose(before[3], after[3])


def test_an_earlier_item_changes_every_later_state() -> None:
    before, after = states(fresh_model(), [3, 1, 4, 2], [5, 1, 4, 2])
    assert all(not torch.allclose(b, a) for b, a in zip(before, after, strict=True))


def test_padding_in_front_changes_nothing() -> None:
    model = fresh_model()
    packed, padded = states(model, [3, 1, 4])[0], states(model, [PADDING] * 3 + [3, 1, 4])[0]
    torch.testing.assert_close(padded[3:], packed, rtol=0, atol=1e-6)


def test_what_stands_in_the_padding_row_is_never_attended() -> None:
    model = fresh_model()
    before = states(model, [PADDING, PADDING, 3, 1])[0, 2:]
    with torch.no_grad():
        model.items.weight[PADDING] = 1e3
    assert torch.equal(states(model, [PADDING, PADDING, 3, 1])[0, 2:], before)


def test_a_padded_position_is_finite() -> None:
    assert states(fresh_model(), [PADDING] * 4).isfinite().all()


def test_attention_equals_the_formula_written_out() -> None:
    model = fresh_model(num_heads=1)
    block, x = model.blocks[0], torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1))
    assert isinstance(block, Block)
    with torch.no_grad():
        query, key, value = block.query_key_value(block.attention_norm(x))[0].chunk(3, dim=-1)
        weights = (query @ key.T / 8**0.5).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf).softmax(-1)
        attended = x[0] + block.attention_out(weights @ value)
        expected = attended + block.network(block.network_norm(attended))
        actual = block(x, torch.ones(4, 4).tril().bool()[None, None])[0]
    torch.testing.assert_close(actual, expected)


def test_a_score_is_the_state_times_the_item_vector() -> None:
    model = fresh_model()
    state = states(model, [3, 5])[0, -1].numpy()  # tokens 3 and 5 are rows 3 and 6
    scores = model.score([np.array([3, 6])])[0]
    np.testing.assert_allclose(scores[ROWS], model.item_vectors()[ROWS] @ state, rtol=1e-5)


def test_histories_scored_together_score_as_one_by_one() -> None:
    model = fresh_model()
    histories = [np.array([1]), np.array([2, 3, 5, 7]), np.array([0, 11]), np.arange(12)]
    together = model.score(histories)
    alone = np.concatenate([model.score([history]) for history in histories])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


def test_more_histories_than_one_batch_keep_their_order() -> None:
    model = fresh_model()
    histories = [np.array([row]) for row in ROWS] * (1 + SCORE_BATCH // len(ROWS))
    assert len(histories) > SCORE_BATCH
    expected = np.tile(model.score(histories[: len(ROWS)]), (len(histories) // len(ROWS), 1))
    np.testing.assert_allclose(model.score(histories), expected, atol=1e-5)


def test_only_the_newest_items_of_a_long_history_count() -> None:
    model = fresh_model()
    long = np.array([0, 1, 2, 3, 5, 6, 7, 8, 10])
    assert np.array_equal(model.score([long]), model.score([long[-6:]]))


def test_young_items_score_minus_infinity_and_have_zero_vectors() -> None:
    model = fresh_model()
    scores = model.score([np.array([0, 1])])[0]
    assert np.isneginf(scores[YOUNG]).all()
    assert np.isfinite(scores[ROWS]).all()
    assert not model.item_vectors()[YOUNG].any()
    assert np.flatnonzero(~model.known()).tolist() == YOUNG


def test_young_items_in_a_history_are_passed_over() -> None:
    model = fresh_model()
    assert np.array_equal(model.score([np.array([0, 4, 1, 9])]), model.score([np.array([0, 1])]))


@pytest.mark.parametrize("history", [[], YOUNG])
def test_a_history_without_known_items_prefers_nothing(history: list[int]) -> None:
    scores = fresh_model().score([np.array(history, np.int32), np.array([1])])
    assert not scores[0, ROWS].any()
    assert scores[1, ROWS].any()


def test_scoring_uses_no_dropout_and_leaves_the_mode_as_it_was() -> None:
    model = fresh_model().train()
    assert np.array_equal(model.score([np.array([1, 2])]), model.score([np.array([1, 2])]))
    assert model.training


def test_a_saved_model_scores_the_same_when_loaded(tmp_path: Path) -> None:
    model = fresh_model()
    save_sasrec(model, tmp_path)
    loaded = load_sasrec(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    assert np.array_equal(loaded.score([np.array([1, 2])]), model.score([np.array([1, 2])]))


def test_a_missing_or_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"sasrec\.safetensors is missing"):
        load_sasrec(tmp_path)
    (tmp_path / "sasrec.safetensors").write_bytes(b"\x80\x04 not weights")
    with pytest.raises(ArtifactError, match=r"sasrec\.safetensors is not a SASRec"):
        load_sasrec(tmp_path)


def test_equal_seeds_draw_equal_weights_and_others_do_not() -> None:
    assert np.array_equal(fresh_model(1).item_vectors(), fresh_model(1).item_vectors())
    assert not np.array_equal(fresh_model(1).item_vectors(), fresh_model(2).item_vectors())


def test_a_width_that_the_heads_do_not_divide_is_refused_by_field() -> None:
    with pytest.raises(InvalidInputError, match=r"cf\.width 8"):
        fresh_model(num_heads=3)
