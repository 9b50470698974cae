"""The bound holds, and what was used least lately leaves first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from model.bounded_cache import BoundedCache


def test_what_was_put_is_found_until_room_is_needed_and_the_least_recently_used_leaves_first() -> None:
    cache = BoundedCache[str](max_bytes=30)
    for name in "abc":
        cache.put(name, name.upper(), 10)
    assert cache.get("a") == "A"
    cache.put("d", "D", 10)
    assert [cache.get(name) for name in "abcd"] == ["A", None, "C", "D"]


def test_a_value_larger_than_the_cache_is_not_kept_and_drives_nothing_out() -> None:
    cache = BoundedCache[str](max_bytes=30)
    cache.put("a", "A", 20)
    cache.put("b", "B", 31)
    assert "a" in cache
    assert "b" not in cache


def test_a_cache_of_no_bytes_keeps_nothing() -> None:
    cache = BoundedCache[str](max_bytes=0)
    cache.put("a", "A", 1)
    assert cache.get("a") is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40))))
def test_the_sum_of_sizes_never_exceeds_the_bound(puts: list[tuple[int, int]]) -> None:
    cache = BoundedCache[int](max_bytes=50)
    for key, size in puts:
        cache.put(key, size, size)
        assert cache.num_bytes == sum(cache.get(k) or 0 for k in range(6)) <= 50
