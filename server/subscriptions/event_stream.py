"""An operation's answers as an event stream: the protocol graphql-sse, in its mode of one connection an operation."""

import asyncio
import json
from collections.abc import AsyncGenerator

from starlette.responses import StreamingResponse

from server.feeds.price_feed import TooSlow
from server.subscriptions.operations import Refused

KEEP_ALIVE_SECONDS = 12
"Under the half minute after which proxies give up a silent connection."

_KEEP_ALIVE = ":\n\n"
_COMPLETE = "event: complete\ndata:\n\n"


def event_stream(answers: AsyncGenerator[str], closing: asyncio.Event) -> StreamingResponse:
    """`closing`: when set, the stream ends without its last event, so that the client asks again, elsewhere."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(answers, closing), media_type="text/event-stream", headers=headers)


async def _events(answers: AsyncGenerator[str], closing: asyncio.Event) -> AsyncGenerator[str]:
    """Events and comments; what GraphQL refuses is an event too, for a browser's `EventSource` shows nothing else."""
    ended = asyncio.create_task(closing.wait())
    following: asyncio.Future[str | None] | None = None
    try:
        yield _KEEP_ALIVE  # sends the headers: the client knows that it is heard
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
