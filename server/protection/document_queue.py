"""Long documents that come together are looked at one by one, so that whoever asks little is answered in between."""

import asyncio

LONG = 1000
"Characters of a document, or bytes of a body. To parse and validate as many can take some 10 ms, and nothing stops it."


class Turns:
    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self.waiting = 0

    async def take(self) -> None:
        """Wait for one's turn; to be called just before the work."""
        self.waiting += 1
        try:
            async with self._turn:
                await asyncio.sleep(0)  # a round of the loop, in which everybody else is served
        finally:
            self.waiting -= 1
