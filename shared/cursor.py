"""A price's cursor: its place in the order of storing, as an opaque text for clients.

Base64url of: a version byte, the batch (int8), the timestamp (µs since 2000, as PostgreSQL has it) and the ticker.
"""

import binascii
import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from shared.grid import EPOCH

_VERSION = 1
_HEAD = struct.Struct(">Bqq")
_PATTERN = re.compile("[A-Za-z0-9_-]{24,400}", re.ASCII)
_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

CURSOR_SQL = r"""
translate(
    encode('\x01'::bytea || int8send(batch) || timestamptz_send(timestamp) || convert_to(ticker, 'UTF8'), 'base64'),
    E'+/=\n',
    '-_'
)
""".strip()
"The cursor of a row of `prices`, as `encode_cursor` writes it."

UNKNOWN_BATCH = -1
"Of a price that was not read from the database."


class Position(NamedTuple):
    """A price's place in the order of storing. A reader that sees a batch sees all earlier batches completely.

    Batch 0: stored before prices had batches, or with triggers off. These come first, in the order of their timestamps.
    """

    batch: int
    timestamp: datetime
    ticker: str


BEGINNING = Position(0, EPOCH, "")


def encode_cursor(position: Position) -> str:
    microseconds = (position.timestamp - _POSTGRES_EPOCH) // timedelta(microseconds=1)
    packed = _HEAD.pack(_VERSION, position.batch, microseconds) + position.ticker.encode()
    return urlsafe_b64encode(packed).decode().rstrip("=")


def decode_cursor(text: str) -> Position:
    """Raises `ValueError` if it is not a cursor."""
    if not _PATTERN.fullmatch(text):
        raise ValueError("not a cursor")
    try:
        packed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        version, batch, microseconds = _HEAD.unpack_from(packed)
        timestamp = _POSTGRES_EPOCH + timedelta(microseconds=microseconds)
        position = Position(batch, timestamp, packed[_HEAD.size :].decode())
    except (binascii.Error, struct.error, OverflowError) as error:
        raise ValueError("not a cursor") from error
    if version != _VERSION or "\0" in position.ticker or encode_cursor(position) != text:
        raise ValueError("not a cursor of this version")
    return position
