"""An operation's answers as server-sent events: the protocol graphql-sse in its distinct connections mode."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence

from graphql import GraphQLError
from starlette.responses import Response, StreamingResponse

from server.feeds.recent_prices import TooSlow
from server.schema.errors import as_graphql
from server.subscriptions.operations import Refused
from shared.errors import ServiceError

KEEP_ALIVE_SECONDS = 12
"Less than the 30 s after which proxies close a silent connection."

_KEEP_ALIVE = ":\n\n"
_COMPLETE = "event: complete\ndata:\n\n"
_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}


def event_stream(answers: AsyncGenerator[str], closing: asyncio.Event) -> StreamingResponse:
    """`closing`: when set, the stream ends without `complete`, so that the client reconnects to another server."""
    return StreamingResponse(_events(answers, closing), headers=_HEADERS)


def refusing_stream(error: ServiceError) -> Response:
    return Response(_refusal([as_graphql(error)]), headers=_HEADERS)


async def _events(answers: AsyncGenerator[str], closing: asyncio.Event) -> AsyncGenerator[str]:
    """Events and keep-alive comments. Request errors are events, too, because a browser's `EventSource` needs them."""
    ended = asyncio.create_task(closing.wait())
    following: asyncio.Future[str | None] | None = None
    try:
        yield _KEEP_ALIVE  # sends the headers at once
        while True:
            following = following or asyncio.ensure_future(anext(answers, None))
            await asyncio.wait((following, ended), timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                answer, following = following.result(), None
                if answer is None:
                    break
                yield f"event: next\ndata: {answer}\n\n"
            elif ended.done():
                return
            else:
                yield _KEEP_ALIVE
        yield _COMPLETE
    except Refused as refused:
        yield _refusal(refused.errors)
    except TooSlow:
        return
    finally:
        ended.cancel()
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await answers.aclose()


def _refusal(errors: Sequence[GraphQLError]) -> str:
    body = json.dumps({"errors": [error.formatted for error in errors]})
    return f"event: next\ndata: {body}\n\n{_COMPLETE}"
