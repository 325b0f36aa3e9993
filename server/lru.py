"""LRU caches that are bounded by the size of their entries, not by how many there are."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_DOCUMENT_CHARACTERS = 50_000
"Of all documents in one cache. A syntax tree takes up to 300 bytes for each character, so this is up to 15 MB."

_ENTRY_CHARACTERS = 100
"The cost of an entry besides its texts."


class LRU(Generic[K, V]):
    """The entries used most recently, as many as fit: the sum of their costs is at most `limit`.

    The caller chooses the unit of the costs, such as bytes or characters.
    """

    def __init__(self, limit: int) -> None:
        self.cost = 0
        self._limit = limit
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, cost: int) -> None:
        """Does not store an entry that costs more than the limit, because it would evict all the others."""
        _, replaced = self._entries.pop(key, (None, 0))
        self.cost -= replaced
        if cost > self._limit:
            return
        self._entries[key] = value, cost
        self.cost += cost
        while self.cost > self._limit:
            _, (_, evicted) = self._entries.popitem(last=False)
            self.cost -= evicted

    def __len__(self) -> int:
        return len(self._entries)


class DocumentCache(Generic[V]):
    """Memoises a function of a document and other hashable arguments. Exceptions are not cached.

    Each text among the arguments counts towards the entry's cost.
    """

    def __init__(self, compute: Callable[..., V], limit: int = MAX_DOCUMENT_CHARACTERS) -> None:
        self.misses = 0
        self._compute = compute
        self._cache: LRU[tuple[object, ...], tuple[V]] = LRU(limit)  # in a tuple, because the value may be `None`

    def __call__(self, *key: object) -> V:
        found = self._cache.get(key)
        if found is None:
            self.misses += 1
            found = (self._compute(*key),)
            self._cache.put(key, found, _ENTRY_CHARACTERS + sum(len(part) for part in key if isinstance(part, str)))
        return found[0]

    def __len__(self) -> int:
        return len(self._cache)
