"""A queue for long documents, so that requests with short ones are answered between them."""

import asyncio

LONG = 1000
"Characters of a document, or bytes of a body. Parsing and validating this many can block the event loop for 10 ms."

IS_QUEUED = "document_is_queued"
"The key in a request's scope that says that its document has already waited."


class DocumentQueue:
    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self.waiting = 0

    async def wait(self) -> None:
        """To be called right before the work: lets one document pass in each iteration of the event loop."""
        self.waiting += 1
        try:
            async with self._lock:
                await asyncio.sleep(0)
        finally:
            self.waiting -= 1
