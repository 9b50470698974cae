"""What an item without CF gets when its CF feature is predicted from picture and text."""

from __future__ import annotations

import numpy as np
import torch

from model.config import SIGNALS, CFConfig, HeadsConfig
from model.heads import CFPredictor, Heads, ItemFeatures, gather
from model.joined import Joined, equal_weights
from model.sasrec import SASRec

WIDTHS = {"image": 6, "cf": 3, "text": 4}
NUM_ITEMS, NUM_YOUNG = 400, 5
YOUNG = np.arange(NUM_YOUNG)


def linear_features() -> ItemFeatures:
    """CF is a linear map of picture and text, and the first items lack it."""
    generator = np.random.default_rng(0)
    image, text = generator.normal(2, 3, (NUM_ITEMS, 6)), generator.normal(-1, 0.5, (NUM_ITEMS, 4))
    cf = image @ generator.normal(size=(6, 3)) + text @ generator.normal(size=(4, 3)) + 7
    vectors = {"image": image, "cf": cf, "text": text}
    origin = {signal: np.ones(NUM_ITEMS, np.uint8) for signal in SIGNALS}
    origin["cf"][YOUNG] = 0
    return ItemFeatures({s: vectors[s].astype(np.float32) for s in SIGNALS}, origin)


def heads_of(missing_cf: str) -> Heads:
    torch.manual_seed(0)
    config = HeadsConfig(shared_width=4, adaptor_width=4, missing_cf=missing_cf, normalize_features=True)
    heads = Heads(config, 8, WIDTHS, 1.0)
    heads.measure_features(linear_features())
    return heads.eval()


def test_a_linear_relation_is_found_and_young_items_get_it() -> None:
    features = linear_features()
    predicted = heads_of("predicted").cf_features(*gather(features, np.arange(NUM_ITEMS), torch.device("cpu"))).numpy()
    spread = features.vectors["cf"].std()
    assert np.abs(predicted[YOUNG] - features.vectors["cf"][YOUNG]).max() < 0.3 * spread
    np.testing.assert_array_equal(predicted[NUM_YOUNG:], features.vectors["cf"][NUM_YOUNG:])


def test_noise_predicts_no_better_than_the_mean_and_is_shrunk_to_it() -> None:
    generator = torch.Generator().manual_seed(0)
    content, cf = torch.randn(600, 40, generator=generator), torch.randn(600, 3, generator=generator)
    predictor = CFPredictor(40, 3)
    predictor.fit(content, cf)
    assert float((predictor(content) - cf.mean(0)).abs().mean()) < 0.1


def test_vectors_of_young_items_are_those_of_the_predicted_feature_in_every_part() -> None:
    features, heads = linear_features(), heads_of("predicted")
    vectors, missing = gather(features, YOUNG, torch.device("cpu"))
    complete = {**vectors, "cf": heads.cf_features(vectors, missing)}
    present = {signal: torch.zeros(NUM_YOUNG, dtype=torch.bool) for signal in SIGNALS}
    with torch.inference_mode():
        expected = heads.project_items(complete, present)
        torch.testing.assert_close(heads.project_items(vectors, missing), expected)


def test_the_other_parts_of_a_young_item_count_more_where_sasrec_is_silent() -> None:
    sasrec = SASRec(CFConfig(width=3, num_heads=1), np.arange(NUM_YOUNG, NUM_ITEMS), NUM_ITEMS)
    heads, rows = heads_of("rescale"), np.array([0, NUM_YOUNG])
    alone = Joined(heads, None, sasrec, equal_weights(["language_model"])).item_blocks(linear_features(), rows)
    beside = Joined(heads, None, sasrec, equal_weights(["language_model", "sasrec"])).item_blocks(
        linear_features(), rows
    )
    scale = heads.config.missing_sasrec_scale
    for key, block in alone.items():
        np.testing.assert_allclose(beside[key], block * np.array([[scale], [1.0]]), rtol=1e-6)


def test_without_prediction_sasrec_s_block_of_a_young_item_is_zero() -> None:
    sasrec = SASRec(CFConfig(width=3, num_heads=1), np.arange(NUM_YOUNG, NUM_ITEMS), NUM_ITEMS)
    for missing_cf, is_zero in (("zero", True), ("predicted", False)):
        joined = Joined(heads_of(missing_cf), None, sasrec, equal_weights(["sasrec"]))
        block = joined.item_blocks(linear_features(), YOUNG)["sasrec", "cf"]
        assert (not block.any()) == is_zero
