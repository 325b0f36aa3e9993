"""`python -m tests.bench.holding PORT`: the API with a watch on its event loop.

Two times a millisecond a task notes how late it is, and how much CPU time the loop's thread has taken meanwhile: by
the clock, what other programs take of the core counts too. On SIGUSR1 it prints the most of both, in milliseconds,
since the last SIGUSR1.
"""

import asyncio
import signal
import sys
import time

import uvloop

from server.app import create_app
from server.process import create_server
from shared.config.settings import load_settings

_TICK_SECONDS = 0.0005


async def watch(port: int) -> None:
    loop = asyncio.get_running_loop()
    latest, longest = 0.0, 0.0

    def report() -> None:
        nonlocal latest, longest
        print(f"{longest * 1000:.3f} {latest * 1000:.3f}", flush=True)
        latest, longest = 0.0, 0.0

    loop.add_signal_handler(signal.SIGUSR1, report)
    server = create_server(create_app(load_settings()), "127.0.0.1", port)
    serving = asyncio.create_task(server.serve())
    while not serving.done():
        called, before = loop.time(), time.thread_time()
        await asyncio.sleep(_TICK_SECONDS)
        longest = max(longest, time.thread_time() - before)
        latest = max(latest, loop.time() - called - _TICK_SECONDS)


if __name__ == "__main__":
    uvloop.run(watch(int(sys.argv[1])))
