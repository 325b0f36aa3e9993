"""The caches keep what was used last, and stay within their limit."""

import pytest

from server.lru import LRU, MAX_DOCUMENT_CHARACTERS, DocumentCache


def test_the_entry_used_longest_ago_is_evicted_first() -> None:
    cache: LRU[str, int] = LRU(10)
    for key, value in (("a", 1), ("b", 2)):
        cache.put(key, value, cost=5)
    assert cache.get("a") == 1
    cache.put("c", 3, cost=5)
    assert [cache.get("a"), cache.get("b"), cache.get("c"), len(cache), cache.cost] == [1, None, 3, 2, 10]


def test_a_large_entry_evicts_as_many_as_it_needs() -> None:
    cache: LRU[int, int] = LRU(10)
    for number in range(5):
        cache.put(number, number, cost=2)
    cache.put(5, 5, cost=7)
    assert [number for number in range(6) if cache.get(number) is not None] == [4, 5]
    assert cache.cost == 9


def test_an_entry_over_the_limit_is_not_stored_and_evicts_nothing() -> None:
    cache: LRU[str, int] = LRU(10)
    cache.put("a", 1, cost=5)
    cache.put("b", 2, cost=11)
    assert [cache.get("a"), cache.get("b"), cache.cost] == [1, None, 5]


def test_a_key_that_is_put_again_has_the_new_value_and_cost() -> None:
    cache: LRU[str, int] = LRU(10)
    cache.put("a", 1, cost=5)
    cache.put("a", 2, cost=3)
    assert [cache.get("a"), len(cache), cache.cost] == [2, 1, 3]
    cache.put("a", 3, cost=11)
    assert [cache.get("a"), len(cache), cache.cost] == [None, 0, 0]


def test_a_document_is_computed_once_for_each_set_of_arguments_also_when_the_result_is_none() -> None:
    computed: list[tuple[str, int]] = []

    def compute(query: str, number: int) -> str | None:
        computed.append((query, number))
        return None if number else query.upper()

    cache = DocumentCache(compute)
    assert [cache("a", 0), cache("a", 0), cache("a", 1), cache("a", 1)] == ["A", "A", None, None]
    assert (computed, cache.misses, len(cache)) == ([("a", 0), ("a", 1)], 2, 2)


def test_a_hot_document_stays_cached_while_hundreds_of_others_pass() -> None:
    cache = DocumentCache(len)
    hot = "hot".rjust(300)
    for number in range(1000):
        cache(hot)
        cache(f"{number:0300}")
    assert cache.misses == 1001


def test_exceptions_are_not_cached() -> None:
    cache = DocumentCache(int)
    for _ in range(2):
        with pytest.raises(ValueError, match="no number"):
            cache("no number")
    assert (cache.misses, len(cache)) == (2, 0)


def test_ordinary_documents_are_kept_by_the_hundred_and_the_longest_by_the_handful() -> None:
    ordinary, longest = DocumentCache(len), DocumentCache(len)
    for number in range(1000):
        ordinary(f"{number:0300}")
        longest(f"{number:020000}")
    assert (len(ordinary), len(longest)) == (MAX_DOCUMENT_CHARACTERS // 400, MAX_DOCUMENT_CHARACTERS // 20_100)
