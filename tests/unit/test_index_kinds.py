"""Approximate kinds of index: what they may lose (items), and what not (scores, order, eligibility, count)."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.artifacts import sha256_file
from model.errors import ArtifactError, InvalidInputError
from model.index import Index, brute_force, build_index, load_index
from model.index_build import choose_kind, draw_users, recall, write_index
from model.index_kinds import INDEX_FILE, KINDS, LISTS_FILE, open_searcher

NUM_ITEMS, WIDTH = 3000, 24
APPROXIMATE = [kind for kind in KINDS if kind != "exact"]
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Built:
    folder: Path
    facts: dict[str, Any]
    vectors: np.ndarray
    index: Index

    def through_searcher(self) -> Index:
        """The same index, which leaves to its searcher what is otherwise few enough to be scored one by one."""
        searcher = open_searcher(self.folder, self.vectors, self.facts)
        return Index(self.vectors, searcher, self.facts["max_norm"], num_scored_directly=5)


def item_vectors(num: int, seed: int = 0) -> np.ndarray:
    """Clusters of unequal size whose items differ in length by a factor of five and share a direction."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(60, WIDTH))
    vectors = centres[(60 * rng.random(num) ** 2).astype(int)] + 0.4 * rng.normal(size=(num, WIDTH)) + 0.7
    return (vectors * rng.lognormal(0, 0.4, (num, 1))).astype(np.float32)


def foreign_users(num: int, seed: int = 1) -> np.ndarray:
    """Distributed like no item: all directions alike, and ten times as long."""
    return (10 * np.random.default_rng(seed).normal(size=(num, WIDTH))).astype(np.float32)


@pytest.fixture(scope="module", params=KINDS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp(request.param)
    np.save(folder / "item_vectors.npy", item_vectors(NUM_ITEMS))
    vectors = np.load(folder / "item_vectors.npy", mmap_mode="r")
    facts = write_index(folder, vectors, request.param, min_recall=0.9, users_UQ=foreign_users(20, seed=2))
    return Built(folder, facts, vectors, load_index(folder, vectors, facts=facts))


def found_by(index: Index, user: np.ndarray, k: int, excluded: Any = None, eligible: Any = None) -> tuple[list, list]:
    scores, rows = index.search(user[None], k, None if excluded is None else [excluded], [eligible])
    return scores[0].tolist(), rows[0].tolist()


def test_the_wanted_recall_is_reached_for_users_unlike_any_item(built: Built) -> None:
    users = foreign_users(200)
    truth = build_index(built.vectors).search(users, 100)[1]
    assert recall(built.index, users, truth, 10) >= 0.9
    assert built.facts["recall"]["recall@10"] >= 0.9


def test_scores_are_exact_and_in_order(built: Built) -> None:
    for user in foreign_users(5):
        scores, rows = found_by(built.index, user, 50)
        exact = (built.vectors[rows].astype(np.float64) * user).sum(axis=1).tolist()
        assert scores == exact
        assert scores == sorted(scores, reverse=True)
        assert len(set(rows)) == 50


def test_a_user_gets_the_same_answer_alone_and_in_any_batch(built: Built) -> None:
    users = foreign_users(40)
    scores, rows = built.index.search(users, 10)
    for number, user in enumerate(users):
        assert found_by(built.index, user, 10) == (scores[number].tolist(), rows[number].tolist())


@pytest.mark.parametrize("length", [1e-3, 1e3])
def test_the_length_of_a_user_vector_changes_nothing(built: Built, length: float) -> None:
    for user in foreign_users(5):
        assert found_by(built.index, user * np.float32(length), 10)[1] == found_by(built.index, user, 10)[1]


@pytest.mark.parametrize("num_eligible", [0, 1, 7, 300, 2500])
@pytest.mark.parametrize("directly", [True, False])
def test_of_eligible_items_as_many_are_found_as_there_are(built: Built, num_eligible: int, directly: bool) -> None:
    """`directly`: whether so many are few enough to be scored one by one."""
    index = built.index if directly else built.through_searcher()
    rng = np.random.default_rng(num_eligible)
    eligible = np.sort(rng.permutation(NUM_ITEMS)[:num_eligible])
    excluded = eligible[::3]
    allowed = np.setdiff1d(eligible, excluded)
    for user in foreign_users(10):
        scores, rows = found_by(index, user, 100, excluded, eligible)
        num_found = min(100, len(allowed))
        assert -1 not in rows[:num_found]
        assert set(rows[num_found:]) <= {-1}
        assert set(scores[num_found:]) <= {-np.inf}
        assert np.isin(rows[:num_found], allowed).all()
        assert scores[:num_found] == sorted(scores[:num_found], reverse=True)
        if directly or built.index.is_exact:
            assert rows[:num_found] == truth_among(built.vectors, user, allowed, 100)


def truth_among(vectors: np.ndarray, user: np.ndarray, allowed: np.ndarray, k: int) -> list[int]:
    return brute_force(vectors, user, k, np.setdiff1d(np.arange(len(vectors)), allowed))[1].tolist()


def test_the_best_of_a_large_part_are_found_as_well_as_the_best_of_all(
    built: Built,
) -> None:
    users, eligible = foreign_users(100), np.arange(0, NUM_ITEMS, 4)
    _, rows = built.through_searcher().search(users, 10, None, [eligible] * len(users))
    truth = [truth_among(built.vectors, user, eligible, 10) for user in users]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), truth, strict=True)]) >= 0.9


@pytest.mark.parametrize("wrong", [-1, NUM_ITEMS])
def test_eligible_rows_that_no_item_has_are_refused(built: Built, wrong: int) -> None:
    with pytest.raises(ValueError, match="eligible rows"):
        found_by(built.index, foreign_users(1)[0], 3, eligible=np.array([5, wrong]))


def test_lists_of_rows_for_more_users_than_there_are_are_refused(built: Built) -> None:
    with pytest.raises(ValueError, match="2 users but 1"):
        built.index.search(foreign_users(2), 3, None, [np.arange(5)])


def test_every_item_can_be_asked_for(built: Built) -> None:
    user = foreign_users(1)[0]
    _, rows = found_by(built.index, user, NUM_ITEMS)
    assert rows == brute_force(built.vectors, user, NUM_ITEMS)[1].tolist()


def test_what_is_excluded_is_made_up_for(built: Built) -> None:
    user = foreign_users(1)[0]
    best = brute_force(built.vectors, user, 1500)[1]
    _, rows = found_by(built.index, user, 10, excluded=best)
    assert len(rows) == 10
    assert not np.isin(rows, best).any()
    assert -1 not in rows


def test_users_of_one_batch_have_their_own_filters(built: Built) -> None:
    users = np.repeat(foreign_users(1), 3, axis=0)
    some = np.arange(100, 200)
    _, rows = built.index.search(users, 5, [np.array([], int), np.array([], int), some[:50]], [None, some, some])
    assert rows[0].tolist() == found_by(built.index, users[0], 5)[1]
    assert rows[1].tolist() == truth_among(built.vectors, users[0], some, 5)
    assert rows[2].tolist() == truth_among(built.vectors, users[0], some[50:], 5)


def test_a_user_vector_of_zeros_gets_the_first_eligible_rows(built: Built) -> None:
    nobody = np.zeros(WIDTH, np.float32)
    assert found_by(built.index, nobody, 3, np.array([0, 2])) == ([0.0] * 3, [1, 3, 4])
    assert found_by(built.index, nobody, 3, np.array([5]), np.array([5, 9, 11]))[1] == [9, 11, -1]


def test_a_loaded_index_answers_as_before_without_reading_the_vectors(built: Built) -> None:
    users = foreign_users(3)
    again = load_index(built.folder, built.vectors, facts=built.facts)
    assert again._max_norm == built.facts["max_norm"]
    for before, after in zip(built.index.search(users, 10), again.search(users, 10), strict=True):
        assert before.tolist() == after.tolist()


def test_the_same_seed_builds_the_same_lists(tmp_path: Path) -> None:
    hashes = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        facts = write_index(tmp_path / name, item_vectors(2000), "ivf-sq8", 0.5)
        files = (tmp_path / name / file for file in (INDEX_FILE, LISTS_FILE))
        hashes.append(([sha256_file(path) for path in files], {**facts, "seconds": 0}))
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_files_that_are_missing_damaged_or_of_others_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    vectors = item_vectors(1200)
    facts = write_index(tmp_path, vectors, kind, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match=r"index\.faiss"):
        load_index(tmp_path, vectors[:1100], facts=facts)
    if kind != "hnsw":
        (tmp_path / LISTS_FILE).rename(tmp_path / "hidden")
        with pytest.raises(ArtifactError, match=r"index_lists\.npy"):
            load_index(tmp_path, vectors, facts=facts)
    (tmp_path / INDEX_FILE).write_bytes(b"not an index")
    with pytest.raises(ArtifactError, match=r"index\.faiss"):
        load_index(tmp_path, vectors, facts=facts)
    (tmp_path / INDEX_FILE).unlink()
    with pytest.raises(ArtifactError, match=r"index\.faiss"):
        load_index(tmp_path, vectors, facts=facts)


def test_an_index_of_another_kind_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    vectors = item_vectors(1200)
    facts = write_index(tmp_path, vectors, "ivf-flat", 0.5)
    with pytest.raises(ArtifactError, match="not hnsw"):
        load_index(tmp_path, vectors, facts={**facts, "kind": "hnsw"})
    with pytest.raises(ArtifactError, match=r"'scann'.*exact, ivf-flat"):
        load_index(tmp_path, vectors, facts={**facts, "kind": "scann"})
    with pytest.raises(ArtifactError, match="radius"):
        load_index(tmp_path, vectors, facts={**facts, "parameters": {"effort": 1, "oversampling": 1}})


def test_a_catalog_whose_manifest_says_nothing_of_an_index_is_searched_exactly(tmp_path: Path) -> None:
    vectors, user = item_vectors(200), foreign_users(1)[0]
    assert found_by(load_index(tmp_path, vectors), user, 10)[1] == brute_force(vectors, user, 10)[1].tolist()


def test_small_catalogs_are_exact_and_large_ones_are_not() -> None:
    assert choose_kind(1_000, 192) == "exact"
    assert choose_kind(100_000, 192) == "exact"
    assert choose_kind(1_000_000, 192) == "ivf-sq8"
    assert choose_kind(100_000, 3 * 512) == "ivf-sq8"


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_too_few_items_for_an_approximate_kind_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="use exact"):
        write_index(tmp_path, item_vectors(100), kind)  # type: ignore[arg-type]


def test_a_vector_that_is_not_finite_is_refused_by_row_when_an_index_is_written(tmp_path: Path) -> None:
    vectors = item_vectors(2000)
    vectors[1234, 5] = np.inf
    with pytest.raises(ArtifactError, match="row 1234"):
        write_index(tmp_path, vectors, "ivf-sq8")


def test_users_are_drawn_like_the_known_ones_where_there_are_enough() -> None:
    vectors, known = item_vectors(500), foreign_users(8)
    assert "like known users" in draw_users(vectors, known, 120, np.random.default_rng(0))
    assert "like known users" not in draw_users(vectors, known[:7], 120, np.random.default_rng(0))
    drawn = draw_users(vectors, known, 120, np.random.default_rng(0))
    assert {name: users.shape for name, users in drawn.items()} == dict.fromkeys(drawn, (30, WIDTH))


def test_two_builds_of_faiss_at_once_are_refused(tmp_path: Path) -> None:
    for name in ("faiss-gpu-cu12", "faiss-cpu"):
        facts = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport model.index_kinds as kinds\nkinds.faiss()"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert "faiss-cpu and faiss-gpu-cu12 are both installed" in result.stderr


def test_a_search_leaves_the_precision_of_matrix_products_as_it_was() -> None:
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        build_index(item_vectors(100)).search(foreign_users(30), 3)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_answers_like_a_processor(kind: str, tmp_path: Path) -> None:
    vectors, users = item_vectors(5000), foreign_users(50)
    facts = write_index(tmp_path, vectors, kind, 0.9)  # type: ignore[arg-type]
    here, there = (load_index(tmp_path, vectors, device, facts) for device in ("cpu", "cuda"))
    eligible = [None, np.arange(0, 5000, 2)] * 25
    for k in (10, 3000):
        scores, rows = here.search(users, k, None, eligible)
        gpu_scores, gpu_rows = there.search(users, k, None, eligible)
        same = np.mean(rows == gpu_rows)
        assert same == 1 if here.is_exact else same >= 0.95  # codes are summed in another order on a GPU
        np.testing.assert_array_equal(scores[rows == gpu_rows], gpu_scores[rows == gpu_rows])
