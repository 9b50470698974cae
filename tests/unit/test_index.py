"""Search against a plain sort: exactness, ties, exclusion, and files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ArtifactError
from model.index import Index, brute_force, build_index
from model.index_kinds import NUM_PRODUCT_USERS

P = 16
ROOT = Path(__file__).resolve().parents[2]


def random_vectors(num_rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_rows, 3 * P)).astype(np.float32)


def search_one(index: Index, user: np.ndarray, k: int, excluded: list[int] | None = None) -> tuple[list, list]:
    scores, rows = index.search(user[None], k, [np.array(excluded or [], np.int64)])
    return scores[0].tolist(), rows[0].tolist()


def test_a_user_for_whom_everything_is_excluded_has_no_results_and_no_addends() -> None:
    index, (user,) = build_index(random_vectors(5)), random_vectors(1, seed=1)
    _, rows = index.search(user[None], 3, [np.arange(5)])
    found = rows[rows >= 0]
    assert index.addends(user, found, (P, P, P)).shape == (0, 3)


def test_sum_of_three_products_equals_index_score_equals_brute_force() -> None:
    items, users = random_vectors(500), random_vectors(7, seed=1)
    index = build_index(items)
    scores_BK, rows_BK = index.search(users, 20)
    for user, scores, rows in zip(users, scores_BK, rows_BK, strict=True):
        expected_scores, expected_rows = brute_force(items, user, 20)
        assert rows.tolist() == expected_rows.tolist()
        assert scores.tolist() == expected_scores.tolist()
        widths = (P, P - 1, P + 1)
        parts = (slice(0, P), slice(P, 2 * P - 1), slice(2 * P - 1, 3 * P))
        three = [items[rows][:, part] @ user[part] for part in parts]
        np.testing.assert_allclose(sum(three), scores, atol=1e-5)  # single precision at |score| near 30
        np.testing.assert_allclose(index.addends(user, rows, widths), np.stack(three, axis=1), atol=1e-5)
        np.testing.assert_allclose(index.addends(user, rows, widths).sum(axis=1), scores, atol=1e-5)


def test_a_user_gets_the_same_answer_alone_and_in_any_batch() -> None:
    index = build_index(random_vectors(300))
    users = random_vectors(40, seed=1)  # FAISS changes its algorithm at 20 queries
    together_scores, together_rows = index.search(users, 10)
    for number, user in enumerate(users):
        scores, rows = search_one(index, user, 10)
        assert rows == together_rows[number].tolist()
        assert scores == together_scores[number].tolist()


def test_equal_scores_come_in_row_order_across_the_cut() -> None:
    items = np.zeros((200, 3 * P), np.float32)
    items[50:190] = 1.0  # 140 equal items, far more than FAISS is asked for at k = 5
    items[120] = 2.0
    user = np.ones(3 * P, np.float32)
    assert search_one(build_index(items), user, 5)[1] == [120, 50, 51, 52, 53]
    assert search_one(build_index(items), user, 5, excluded=[51, 120])[1] == [50, 52, 53, 54, 55]


def test_a_user_vector_of_zeros_gets_the_first_eligible_rows() -> None:
    index = build_index(random_vectors(50))
    assert search_one(index, np.zeros(3 * P, np.float32), 3, excluded=[0, 2]) == ([0.0] * 3, [1, 3, 4])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_search_equals_a_sort_on_any_small_catalog(data: st.DataObject) -> None:
    """Small integers make many exact ties; exclusions reach from none to all."""
    num_items = data.draw(st.integers(1, 120))
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    items = rng.integers(-1, 2, size=(num_items, 6)).astype(np.float32)
    user = rng.integers(-1, 2, size=6).astype(np.float32)
    k = data.draw(st.integers(1, 130))
    excluded = rng.permutation(num_items)[: data.draw(st.integers(0, num_items))]
    expected_scores, expected_rows = brute_force(items, user, k, excluded)
    scores, rows = search_one(build_index(items), user, k, excluded.tolist())
    num_padded = min(k, num_items) - len(expected_rows)
    assert rows == expected_rows.tolist() + [-1] * num_padded
    assert scores == expected_scores.tolist() + [-np.inf] * num_padded


def test_k_items_are_found_though_the_best_thousand_are_excluded() -> None:
    items, user = random_vectors(3000), random_vectors(1, seed=1)[0]
    _, best_first = brute_force(items, user, 3000)
    _, rows = search_one(build_index(items), user, 10, excluded=best_first[:1000].tolist())
    assert rows == best_first[1000:1010].tolist()


def test_users_of_one_batch_have_their_own_exclusions() -> None:
    items, user = random_vectors(100), random_vectors(1, seed=1)[0]
    _, best = brute_force(items, user, 4)
    _, rows = build_index(items).search(np.stack([user, user]), 2, [best[:2], np.array([], np.int64)])
    assert rows.tolist() == [best[2:4].tolist(), best[:2].tolist()]


def test_items_that_differ_by_less_than_single_precision_can_tell_are_ranked_truly() -> None:
    """A large common part hides differences from FAISS's sums; the exact scores still order them."""
    rng = np.random.default_rng(0)
    items = (100 + 1e-4 * rng.normal(size=(500, 3 * P))).astype(np.float32)
    user = rng.normal(size=3 * P).astype(np.float32)
    assert search_one(build_index(items), user, 20)[1] == brute_force(items, user, 20)[1].tolist()


def test_a_vector_that_is_not_finite_is_refused_by_row() -> None:
    items = random_vectors(20)
    items[13, 4] = np.nan
    with pytest.raises(ArtifactError, match="row 13"):
        build_index(items)


def test_a_user_vector_that_is_not_finite_is_refused() -> None:
    user = random_vectors(1, seed=1)
    user[0, 0] = np.inf
    with pytest.raises(ArtifactError, match="not finite"):
        build_index(random_vectors(5)).search(user, 1)


@pytest.mark.parametrize(("width", "k"), [(3 * P - 1, 1), (3 * P, 0)])
def test_a_question_that_does_not_fit_is_refused(width: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"user vectors|k is"):
        build_index(random_vectors(5)).search(np.ones((1, width), np.float32), k)


def test_a_large_batch_is_answered_as_each_of_it_alone() -> None:
    """From NUM_PRODUCT_USERS on, users are scored by matrix products instead of by FAISS."""
    index, users = build_index(random_vectors(2000)), random_vectors(2 * NUM_PRODUCT_USERS, seed=1)
    excluded = [np.arange(user) for user in range(len(users))]
    together = index.search(users, 10, excluded)
    alone = [index.search(user[None], 10, [rows]) for user, rows in zip(users, excluded, strict=True)]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert whole.tolist() == np.concatenate(parts).tolist()


def test_without_faiss_the_error_names_both_extras() -> None:
    hidden = "import sys; sys.modules['faiss'] = None\n"
    script = hidden + "import numpy, model.index as m\nm.build_index(numpy.ones((1, 3), 'float32'))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert "`cpu`" in result.stderr
    assert "`gpu`" in result.stderr


def test_a_search_leaves_the_number_of_threads_as_it_was():
    import faiss

    before = faiss.omp_get_max_threads()
    build_index(np.eye(4, 6, dtype=np.float32)).search(np.ones((1, 6), np.float32), 2)
    assert faiss.omp_get_max_threads() == before
