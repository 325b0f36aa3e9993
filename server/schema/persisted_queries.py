"""Automatic persisted queries, as Apollo and urql send them: a hash stands for a document that was sent before."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from server.lru import LRU
from shared.errors import BadUserInput, PersistedQueryNotFound

MAX_CHARACTERS = 1_000_000
"Of all documents that are remembered."


class PersistedQueries:
    """One for a process. Another process, or this one after a restart, asks the client to send the document again."""

    def __init__(self, limit: int = MAX_CHARACTERS) -> None:
        self._documents: LRU[str, str] = LRU(limit)

    def resolve(self, query: str | None, extensions: Mapping[str, Any] | None) -> str | None:
        """The document that is asked for; `query` itself if there is no hash.

        Raises `PersistedQueryNotFound` for an unknown hash without a document, and `BadUserInput` for a hash that is
        not the document's.
        """
        persisted = (extensions or {}).get("persistedQuery")
        if persisted is None:
            return query
        digest = persisted.get("sha256Hash") if isinstance(persisted, dict) else None
        if not isinstance(digest, str) or persisted.get("version") != 1 or isinstance(persisted["version"], bool):
            raise BadUserInput("extensions.persistedQuery is accepted as {version: 1, sha256Hash: …}.")
        digest = digest.lower()
        if not query:
            found = self._documents.get(digest)
            if found is None:
                raise PersistedQueryNotFound("PersistedQueryNotFound")  # clients compare this text
            return found
        if sha256(query.encode(errors="surrogatepass")).hexdigest() != digest:
            raise BadUserInput("extensions.persistedQuery.sha256Hash is not the SHA-256 of `query`.")
        self._documents.put(digest, query, len(query))
        return query
