"""An event loop whose clock jumps to the next timer instead of waiting for it: minutes of retries in milliseconds."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select()
        self.now += max(timeout, 0)
        return super().select(0)


class _FastLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_fast(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to its end; the loop's clock starts at 0."""
    loop = _FastLoop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()
