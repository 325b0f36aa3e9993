"""What is kept of documents is bounded by their length, all together."""

import pytest

from server.lru import KEPT_CHARACTERS, Kept


def test_each_is_computed_once_until_later_ones_need_its_place() -> None:
    computed: list[tuple[str, int]] = []

    def compute(query: str, number: int) -> str | None:
        computed.append((query, number))
        return None if number else query.upper()

    kept = Kept(compute, characters=1000)
    assert [kept("a" * 300, 0), kept("a" * 300, 0), kept("a" * 300, 1), kept("a" * 300, 1)] == (
        ["A" * 300, "A" * 300, None, None]
    )
    assert (len(kept), len(computed)) == (2, 2)
    kept("b" * 300, 0)
    assert len(kept) == 2
    kept("a" * 300, 1)
    assert len(computed) == 3
    kept("a" * 300, 0)
    assert computed[3:] == [("a" * 300, 0)]


def test_what_is_longer_than_all_of_them_is_not_kept() -> None:
    kept = Kept(str.upper, characters=1000)
    assert [kept("a"), kept("b" * 2000), len(kept)] == ["A", "B" * 2000, 0]


def test_what_raises_is_not_kept() -> None:
    kept = Kept(int)
    for _ in range(2):
        with pytest.raises(ValueError, match="no number"):
            kept("no number")
    assert len(kept) == 0


def test_ordinary_documents_are_kept_by_the_hundred_and_the_longest_by_the_handful() -> None:
    ordinary, longest = Kept(len), Kept(len)
    for number in range(1000):
        ordinary(f"{number:0300}")
        longest(f"{number:020000}")
    assert (len(ordinary), len(longest)) == (KEPT_CHARACTERS // 400, KEPT_CHARACTERS // 20_100)
