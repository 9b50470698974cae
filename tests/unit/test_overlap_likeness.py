"""Agreement of likenesses against hand-made neighbours, brute force and chance."""

from __future__ import annotations

import numpy as np
import pytest

from offline.overlap_likeness import NOBODY, agreement, alignment, nearest, nearest_by_choice, unit_rows


def test_the_nearest_rows_are_those_of_brute_force_and_never_the_row_itself() -> None:
    unit = unit_rows(np.random.default_rng(0).standard_normal((1500, 8), np.float32))
    expected = []
    for row in range(len(unit)):
        others = np.delete(np.arange(len(unit)), row)
        expected.append(others[np.argsort(-(unit[others] @ unit[row]))[:5]])
    np.testing.assert_array_equal(nearest(unit, 5), expected)


def test_centring_finds_directions_that_a_common_offset_hides() -> None:
    vectors = np.array([[100, 1], [100, -1], [101, 1], [101, -1], [99, 1], [99, -1]], np.float32)
    same_side = np.sign(vectors[nearest(unit_rows(vectors, centred=True), 2), 1]) == np.sign(vectors[:, 1])[:, None]
    assert same_side.all()


def test_a_row_of_zeros_stays_zeros() -> None:
    assert not unit_rows(np.zeros((2, 3), np.float32)).any()


def test_the_nearest_by_choice_shared_most_people_for_their_popularity() -> None:
    # Item 0 is with 1 twice; item 2 is everybody's. Cosines of 0: with 1 2/sqrt(2*2), with 2 2/sqrt(2*4).
    histories = [np.array(h) for h in ([0, 1, 2], [0, 1, 2], [2, 3], [2, 3, 3])]
    assert nearest_by_choice(histories, 5, 2).tolist() == [[1, 2], [0, 2], [0, 1], [2, NOBODY], [NOBODY, NOBODY]]


def test_the_nearest_by_choice_are_those_of_the_matrix_of_people() -> None:
    generator = np.random.default_rng(1)
    chosen = generator.random((40, 30)) < 0.3
    together = chosen.T.astype(float) @ chosen
    cosine = together / np.sqrt(np.outer(chosen.sum(0), chosen.sum(0)))
    np.fill_diagonal(cosine, -1)
    found = nearest_by_choice([np.flatnonzero(row) for row in chosen], 30, 4)
    np.testing.assert_allclose(np.take_along_axis(cosine, found, 1), -np.sort(-cosine, axis=1)[:, :4])


def test_agreement_counts_shared_neighbours_against_chance() -> None:
    near = np.array([[1, 2], [0, 2], [0, 1], [4, 0], [3, 0]])
    related = np.array([[1, 3], [0, 3], [3, 4], [4, NOBODY], [1, 2]])
    found = agreement(near, related)
    assert found is not None
    assert found.share == pytest.approx(3 / 10)
    assert found.chance == pytest.approx((4 * 2 * 2 / 4 + 2 * 1 / 4) / 10)
    assert found.lift.value == pytest.approx(found.share / found.chance)


def test_neighbours_that_another_likeness_knows_are_left_out_of_both_sides() -> None:
    near = np.array([[1, 2], [2, 3], [3, 0], [0, 1]])
    related = np.array([[1, 3], [3, 2], [0, 1], [2, 1]])
    besides = np.array([[1], [0], [0], [3]])  # row 3 is not its own neighbour: stands for one that is not among near
    found = agreement(near, related, besides_NK=besides)
    assert found is not None
    # Row 0 keeps near 2 of related 3; row 1 near 2, 3 of 3, 2; row 2 near 3 of 1; row 3 near 0, 1 of 2, 1.
    assert found.share == pytest.approx((0 + 2 + 0 + 1) / 6)
    assert found.chance == pytest.approx((1 * 1 + 2 * 2 + 1 * 1 + 2 * 2) / 2 / 6)


def test_the_interval_holds_chance_for_unrelated_likenesses_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(100):
        by_picture, by_text = (
            nearest(unit_rows(generator.standard_normal((120, 8), np.float32)), 10) for _ in range(2)
        )
        found = agreement(by_picture, by_text)
        assert found is not None
        held += found.lift.low <= 1 <= found.lift.high
    assert held >= 88  # of 100 with probability .95 each: fewer has a chance of 1 in 700; resampled items held 85


def test_what_texts_know_already_is_not_counted_as_added_by_pictures() -> None:
    generator = np.random.default_rng(3)
    texts = generator.standard_normal((600, 8)).astype(np.float32)
    by_text, by_choice = nearest(unit_rows(texts), 10), nearest(unit_rows(texts), 10)
    pictures = generator.standard_normal((600, 8)).astype(np.float32)
    by_picture = nearest(unit_rows(pictures), 10)
    by_picture[:, :5] = by_text[:, :5]
    alone, beyond = (agreement(by_picture, by_choice, known) for known in (None, by_text))
    assert alone is not None
    assert alone.lift.low > 10
    assert beyond is None  # nothing is chosen together beyond the texts


def test_without_related_items_there_is_no_agreement() -> None:
    assert agreement(np.array([[1], [0]]), np.full((2, 1), NOBODY)) is None


def test_alignment_by_hand() -> None:
    pictures = np.array([[2, 0], [0, 3], [1, 1]], np.float32)
    texts = np.array([[1, 0], [5, 0], [0, 1]], np.float32)
    found = alignment(pictures, texts)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(found.own_N, [1, 0, half], rtol=1e-6)
    np.testing.assert_allclose(found.other_N, [0.5, 0.5, half], rtol=1e-6)
    assert found.gap.value == pytest.approx(0.0, abs=1e-6)
    # Picture 0: a tie and a win; picture 1: a tie and a loss; picture 2: two ties.
    assert found.wins == pytest.approx((1.5 + 0.5 + 1) / 6)


def test_pictures_that_match_their_texts_win_always_and_random_ones_half_of_the_time() -> None:
    generator = np.random.default_rng(6)
    texts, others = (generator.standard_normal((300, 16)).astype(np.float32) for _ in range(2))
    matching, random = alignment(texts * 3, texts), alignment(others, texts)
    assert (matching.wins, matching.gap.low > 0.9) == (1.0, True)
    assert random.wins == pytest.approx(0.5, abs=0.05)
    assert random.gap.low < 0 < random.gap.high
