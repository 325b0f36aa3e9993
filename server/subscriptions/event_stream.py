"""An operation's answers as server-sent events: the protocol graphql-sse in its distinct connections mode."""

import asyncio
import json
from collections.abc import AsyncGenerator

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.feeds.price_feed import TooSlow
from server.protection.holdings import Holding
from server.subscriptions.operations import Refused

KEEP_ALIVE_SECONDS = 12
"Less than the 30 s after which proxies close a silent connection."

_KEEP_ALIVE = ":\n\n"
_COMPLETE = "event: complete\ndata:\n\n"


def event_stream(answers: AsyncGenerator[str], closing: asyncio.Event, held: Holding) -> StreamingResponse:
    """`closing`: when set, the stream ends without `complete`, so that the client reconnects to another server.

    `held`: what the stream takes of its client's budget.
    """
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return _Stream(_events(answers, closing), held, headers)


class _Stream(StreamingResponse):
    def __init__(self, events: AsyncGenerator[str], held: Holding, headers: dict[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


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
        body = json.dumps({"errors": [error.formatted for error in refused.errors]})
        yield f"event: next\ndata: {body}\n\n{_COMPLETE}"
    except TooSlow:
        return
    finally:
        ended.cancel()
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await answers.aclose()
