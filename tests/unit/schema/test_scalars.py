"""Exact decimals and RFC 3339 instants: one spelling in answers, strict parsing of arguments."""

import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from graphql import GraphQLError
from hypothesis import given
from hypothesis import strategies as st

from server.schema.scalars import BadInstant, instant, parse_decimal, parse_instant, print_decimal, print_instant
from shared.errors import BadUserInput

UTC_INSTANTS = st.datetimes(timezones=st.just(UTC))


@given(UTC_INSTANTS)
def test_a_printed_instant_is_read_back_the_same(value: datetime) -> None:
    text = print_instant(value)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
    assert parse_instant(text) == value


@given(st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1)), st.integers(-1439, 1439))  # noqa: DTZ001  the offset is added below
def test_every_zone_prints_the_same_instant_in_utc(wall: datetime, minutes: int) -> None:
    value = wall.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert print_instant(value) == print_instant(value.astimezone(UTC))
    parsed = parse_instant(value.isoformat())
    assert parsed == value
    assert isinstance(parsed, datetime)
    assert parsed.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("2026-01-31T08:00:00Z", "2026-01-31T08:00:00.000000Z"),
        ("2026-01-31t08:00:00z", "2026-01-31T08:00:00.000000Z"),
        ("2026-01-31T09:00:00+01:00", "2026-01-31T08:00:00.000000Z"),
        ("2026-01-31T08:00:00-00:00", "2026-01-31T08:00:00.000000Z"),
        ("2026-01-31T00:00:00+05:45", "2026-01-30T18:15:00.000000Z"),
        ("2026-01-31T08:00:00.5Z", "2026-01-31T08:00:00.500000Z"),
        ("2026-01-31T08:00:00.123456789Z", "2026-01-31T08:00:00.123456Z"),
        ("2024-02-29T08:00:00Z", "2024-02-29T08:00:00.000000Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_instants_are_read_in_every_spelling_of_rfc_3339(text: str, printed: str) -> None:
    parsed = parse_instant(text)
    assert isinstance(parsed, datetime)
    assert print_instant(parsed) == printed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-01-31",
        "2026-01-31T08:00:00",
        "2026-01-31T08:00Z",
        "2026-01-31 08:00:00Z",
        "2026-01-31T08:00:00 Z",
        "2026-01-31T08:00:00.Z",
        "2026-01-31T08:00:00,5Z",
        "2026-01-31T08:00:00+01",
        "2026-01-31T08:00:00+0100",
        "2026-01-31T08:00:00+24:00",
        "2026-01-31T08:00:00+01:60",
        "2026-01-31T08:00:00-01:99",
        "2026-01-31T08:00:00+01:00:30",
        "2026-01-31T24:00:00Z",
        "2026-01-31T08:60:00Z",
        "2026-06-30T23:59:60Z",
        "2026-02-30T08:00:00Z",
        "2025-02-29T08:00:00Z",
        "2026-13-01T08:00:00Z",
        "2026-00-01T08:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "12026-01-31T08:00:00Z",
        "-2026-01-31T08:00:00Z",
        "2026-W05-6T08:00:00Z",
        "20260131T080000Z",
        "2026-031T08:00:00Z",
        "1790000000",
        "now",
        "2026-01-31T08:00:00Z\n",
        " 2026-01-31T08:00:00Z",
        "2026-01-31T08:00:00ZZ",
        "2026-01-31T08:00:00Z[Europe/London]",
        "\uff12026-01-31T08:00:00Z",
        "\u0662026-01-31T08:00:00Z",
        "2026\u201001\u201031T08:00:00Z",
    ],
)
def test_any_other_text_is_not_an_instant(text: str) -> None:
    assert parse_instant(text) == BadInstant(text)


@given(st.text(max_size=30) | st.from_regex(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)"))
def test_any_text_is_an_instant_or_a_bad_instant(text: str) -> None:
    parsed = parse_instant(text)
    assert parsed == BadInstant(text) if isinstance(parsed, BadInstant) else parsed.tzinfo is UTC


@pytest.mark.parametrize("value", [None, 5, 1.5, True, ["2026-01-31T08:00:00Z"], {}])
def test_an_instant_of_another_type_is_the_clients_mistake(value: object) -> None:
    assert parse_instant(value) == BadInstant(str(value))


def test_a_bad_instant_is_answered_with_its_arguments_name_and_what_is_accepted() -> None:
    with pytest.raises(BadUserInput) as caught:
        instant(BadInstant("yesterday"), "fromDt")
    assert str(caught.value) == (
        "fromDt is 'yesterday'; accepted is an RFC 3339 instant with its offset, "
        "such as 2026-01-31T08:00:00Z or 2026-01-31T09:00:00+01:00."
    )
    with pytest.raises(BadUserInput) as caught:
        instant(BadInstant("x" * 10_000), "toDt")
    assert len(str(caught.value)) < 250


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_a_printed_decimal_is_plain_and_read_back_the_same(value: Decimal) -> None:
    text = print_decimal(value)
    assert re.fullmatch(r"-?\d+(\.\d+)?", text)
    assert parse_decimal(text) == value


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("2.0792e-4", "0.00020792"),
        ("1.583e-05", "0.00001583"),
        ("2.2e3", "2200"),
        ("82477.9600", "82477.9600"),
        ("0E-10", "0.0000000000"),
        ("1E+18", "1000000000000000000"),
    ],
)
def test_a_decimal_is_never_printed_with_an_exponent(text: str, printed: str) -> None:
    assert print_decimal(Decimal(text)) == printed


@pytest.mark.parametrize(
    "value", ["", "NaN", "Infinity", "1e5", "1.", ".5", "+1", "1_000", "1,5", "\u0661", "1\n", 1, 1.5]
)
def test_a_decimal_in_another_notation_is_the_clients_mistake(value: object) -> None:
    with pytest.raises(GraphQLError) as caught:
        parse_decimal(value)
    assert caught.value.extensions == {"code": "BAD_USER_INPUT"}
