"""What a request asks for; and automatic persisted queries, as Apollo and urql send them.

A persisted query is a hash in place of a document that was sent before.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from server.lru import LRU
from server.schema.documents import MAX_LENGTH, GraphQLRequest
from shared.errors import BadUserInput, PersistedQueryNotFound

MAX_CHARACTERS = 1_000_000
"Of all documents that are remembered."

PERSISTED = "persistedQuery"
"The key in a request's extensions."


class PersistedQueries:
    """One for a process. Another process, or this one after a restart, asks the client to send the document again."""

    def __init__(self, limit: int = MAX_CHARACTERS) -> None:
        self._documents: LRU[str, str] = LRU(limit)

    def read(self, given: Mapping[str, Any]) -> GraphQLRequest:
        """The parameters of a request, from JSON or a URL. An empty `operationName` counts as none.

        Raises `PersistedQueryNotFound` for an unknown hash without a document, and `BadUserInput`.
        """
        query, operation_name = given.get("query"), given.get("operationName")
        if not isinstance(operation_name, str | None):
            raise BadUserInput("`operationName` must be a string or null.")
        for name in ("variables", "extensions"):
            if not isinstance(given.get(name), dict | None):
                raise BadUserInput(f"`{name}` must be an object or null.")
        persisted = (given.get("extensions") or {}).get(PERSISTED)
        if persisted is not None and isinstance(query, str | None):
            query = self._resolve(query, persisted)
        if not isinstance(query, str) or not query:
            raise BadUserInput("`query` must be the text of a GraphQL document.")
        return GraphQLRequest(query, operation_name or None, given.get("variables"))

    def _resolve(self, query: str | None, persisted: object) -> str:
        version, digest = map(persisted.get, ("version", "sha256Hash")) if isinstance(persisted, dict) else (None, None)
        if type(version) is not int or version != 1 or not isinstance(digest, str):
            raise BadUserInput(f"extensions.{PERSISTED} is accepted as {{version: 1, sha256Hash: …}}.")
        digest = digest.lower()
        if not query:
            found = self._documents.get(digest)
            if found is None:
                raise PersistedQueryNotFound("PersistedQueryNotFound")  # clients compare this text
            return found
        if sha256(query.encode(errors="surrogatepass")).hexdigest() != digest:
            raise BadUserInput(f"extensions.{PERSISTED}.sha256Hash is not the SHA-256 of `query`.")
        if len(query) <= MAX_LENGTH:
            self._documents.put(digest, query, len(query))
        return query
