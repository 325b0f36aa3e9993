"""Bounds the log: whatever a client or an outage repeats, one cause logs `LINES_AT_ONCE` lines, then one a second.

A cause is the statement that logs. Of the lines that come too fast, the newest is logged late: it says how many others
were left out, as `left_out`, besides its own values, such as the client's address.
"""

import contextvars
import logging
import threading
import time
from collections import defaultdict
from dataclasses import dataclass

LINES_AT_ONCE = 100
"A worker may have something to say about each of its tickers."

LINES_PER_SECOND = 1.0


@dataclass(slots=True)
class _Cause:
    due: float = 0.0
    "GCRA: the theoretical arrival time of the next line."
    left_out: int = 0
    newest: tuple[logging.LogRecord, contextvars.Context] | None = None
    "With the ids of the request or job that is in the context."


class LogLimit(logging.Filter):
    """A filter of `handler`, which also gets the lines that come late. Debug lines are not limited."""

    def __init__(
        self, handler: logging.Handler, lines_at_once: int = LINES_AT_ONCE, lines_per_second: float = LINES_PER_SECOND
    ) -> None:
        super().__init__()
        self._handler = handler
        self._pause = 1 / lines_per_second
        self._burst = (lines_at_once - 1) * self._pause
        self._causes: defaultdict[tuple[str, int], _Cause] = defaultdict(_Cause)
        self._lock = threading.RLock()  # a signal or the garbage collector may log while a line is counted

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG or hasattr(record, "left_out"):
            return True
        now = time.monotonic()
        with self._lock:
            cause = self._causes[record.pathname, record.lineno]
            wait = cause.due - self._burst - now
            if wait <= 0:
                cause.due = max(cause.due, now) + self._pause
                return True
            if cause.newest is None:
                timer = threading.Timer(wait, self._log_newest, [cause])
                timer.daemon = True
                timer.start()
            else:
                cause.left_out += 1
            cause.newest = record, contextvars.copy_context()
            return False

    def _log_newest(self, cause: _Cause) -> None:
        with self._lock:
            assert cause.newest is not None  # noqa: S101  since the timer was started
            record, context = cause.newest
            record.left_out = cause.left_out or None
            cause.newest, cause.left_out = None, 0
            cause.due += self._pause
        context.run(self._handler.handle, record)
