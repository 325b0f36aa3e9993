"""What is kept of the documents that came last: their trees, what is wrong with them, their plans."""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

KEPT_CHARACTERS = 100_000
"Of all documents together: a tree takes up to 300 bytes for a character, so 256 of the longest were half a gigabyte."

_ENTRY_CHARACTERS = 100
"What an entry takes besides."


class Kept(Generic[T]):
    """A function of a document, its latest values kept; one that raises keeps nothing. The first argument, and any
    other that is a text, is part of what an entry takes.
    """

    def __init__(self, compute: Callable[..., T], characters: int = KEPT_CHARACTERS) -> None:
        self._compute = compute
        self._most = characters
        self._kept: dict[tuple[object, ...], T] = {}
        self._characters = 0
        self.computed = 0
        "How often it was not kept."

    def __call__(self, *key: object) -> T:
        try:
            return self._kept[key]
        except KeyError:
            pass
        self.computed += 1
        value = self._kept[key] = self._compute(*key)
        self._characters += _cost(key)
        while self._characters > self._most:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            self._characters -= _cost(oldest)
        return value

    def __len__(self) -> int:
        return len(self._kept)


def _cost(key: tuple[object, ...]) -> int:
    return sum(len(part) for part in key if isinstance(part, str)) + _ENTRY_CHARACTERS
