"""Python imports this at the start of a process whose own clock a test sets: CLOCK_OFFSET, then CLOCK_OFFSET_FILE.

Only the clock of `time.time` and `time.time_ns` is off. The monotonic clock goes on, as when a clock is stepped.
"""

import os
import time

_time_ns = time.time_ns
_file = os.environ.get("CLOCK_OFFSET_FILE", "")


def _offset_ns() -> int:
    try:
        with open(_file) as file:
            seconds = float(file.read())
    except (OSError, ValueError):
        seconds = float(os.environ.get("CLOCK_OFFSET", "0"))
    return round(seconds * 1e9)


time.time_ns = lambda: _time_ns() + _offset_ns()
time.time = lambda: time.time_ns() / 1e9
