"""Answers that a client may keep, as long as it asks each time whether they are still current."""

import hashlib

from starlette.requests import Request
from starlette.responses import Response


def etag_of(content: bytes) -> str:
    """Weak, because the compressed content has the same."""
    return f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'


def cacheable(request: Request, content: bytes, media_type: str, headers: dict[str, str]) -> Response:
    """The content with its ETag, or 304 without the content if the client has this version."""
    headers = {**headers, "Cache-Control": "no-cache", "ETag": etag_of(content)}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=media_type)
