"""The two scalars: exact decimals and RFC 3339 instants, each with one spelling in answers."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import strawberry
from graphql import GraphQLError

from shared.errors import BadUserInput

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]([01]\d|2[0-3]):\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:[0-5]\d)", re.ASCII)
_REFUSED = {"code": BadUserInput.code}


@dataclass(frozen=True, slots=True)
class BadInstant:
    """A text that is not an instant. The resolver refuses it, because only the resolver knows the argument's name."""

    text: str


def instant(value: datetime | BadInstant, argument: str) -> datetime:
    """Raises `BadUserInput`, which names the argument and what is accepted."""
    if isinstance(value, BadInstant):
        raise BadUserInput(
            f"{argument} is {value.text[:60]!r}; accepted is an RFC 3339 instant with its offset, "
            "such as 2026-01-31T08:00:00Z or 2026-01-31T09:00:00+01:00."
        )
    return value


def print_instant(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")


def parse_instant(value: Any) -> datetime | BadInstant:
    if not isinstance(value, str) or not _RFC_3339.fullmatch(value):
        return BadInstant(str(value))
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):  # no such day, or a year outside 1 to 9999 in UTC
        return BadInstant(value)


def print_decimal(value: Decimal) -> str:
    return format(value, "f")


def parse_decimal(value: Any) -> Decimal:
    if not isinstance(value, str) or not re.fullmatch(r"-?\d+(\.\d+)?", value, re.ASCII):
        raise GraphQLError("A decimal is a string in plain notation.", extensions=_REFUSED)
    return Decimal(value)


SCALARS: dict[object, Any] = {
    Decimal: strawberry.scalar(
        name="Decimal",
        description='Exact decimal in plain notation, as a string: "91234.56".',
        serialize=print_decimal,
        parse_value=parse_decimal,
    ),
    datetime: strawberry.scalar(
        name="DateTime",
        description="RFC 3339 instant. Output is UTC, always in one spelling; input needs an offset.",
        specified_by_url="https://www.rfc-editor.org/rfc/rfc3339",
        serialize=print_instant,
        parse_value=parse_instant,
    ),
}
