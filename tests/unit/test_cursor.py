"""A cursor is one spelling of a price's position."""

from base64 import urlsafe_b64encode
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.cursor import Position, decode_cursor, encode_cursor

POSITION = Position(5, datetime(2026, 1, 31, 12, tzinfo=UTC), "btc_usd")
CURSOR = "AQAAAAAAAAAFAALsrJkRUABidGNfdXNk"

positions = st.builds(
    Position,
    st.integers(-1, 2**63 - 1),
    st.datetimes(timezones=st.just(UTC)),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=60),
)


@given(positions)
def test_a_position_is_read_back_as_it_was(position: Position) -> None:
    assert decode_cursor(encode_cursor(position)) == position


def packed(head: bytes, ticker: bytes) -> str:
    return urlsafe_b64encode(head + ticker).decode().rstrip("=")


HEAD = b"\x01" + bytes(16)
BAD = [
    "",
    "x",
    "AQ",
    CURSOR[:-1],
    CURSOR + "=",
    CURSOR + "A" * 400,
    " " + CURSOR,
    CURSOR.replace("A", "/"),
    "ф" * 30,
    "\ud800" * 30,
    encode_cursor(POSITION._replace(ticker="btc_usdc"))[:-1] + "x",  # the last character has bits to spare
    packed(b"\x02" + bytes(16), b"btc_usd"),
    packed(HEAD, b"btc\0usd"),
    packed(HEAD, b"\xff\xff"),
    packed(b"\x01" + bytes(8) + b"\x7f" + b"\xff" * 7, b"btc_usd"),  # infinity
]


@pytest.mark.parametrize("text", BAD)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"cursor|decode"):
        decode_cursor(text)


def test_cursors_that_clients_keep_stay_valid() -> None:
    assert encode_cursor(POSITION) == CURSOR
    assert decode_cursor(CURSOR) == POSITION
