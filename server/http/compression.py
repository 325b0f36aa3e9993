"""Compressed answers: for each client that accepts gzip, if the answer is worth it."""

import asyncio
import zlib

MIN_GZIP_BYTES = 1000

IN_THREAD_BYTES = 32 * 1024
"Compressing more than this would hold the event loop for over a millisecond."

_LEVEL = 5


async def gzip(body: bytes) -> bytes:
    """Off the event loop if the body is large."""
    return await asyncio.to_thread(_gzip, body) if len(body) > IN_THREAD_BYTES else _gzip(body)


def _gzip(body: bytes) -> bytes:
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return compressor.compress(body) + compressor.flush()
