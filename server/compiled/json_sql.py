"""An answer's JSON, written by PostgreSQL: the SQL around the statements of `shared/storage/prices.py`."""

import re
from collections.abc import Sequence

_INSTANT = """to_char({}, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""

# A slot is a whole second: put together from pieces, for to_char takes a third of the time of a whole answer.
_TIMESTAMP = f"""
    case when timestamp = timestamp::timestamptz(0)
        then timestamp::date::text || 'T' || timestamp::time::text || '.000000Z'
        else {_INSTANT.format("timestamp")}
    end
""".strip()

# How a column is written, without the quotes around it; a test holds each against the scalar it stands for.
_COLUMNS = {
    "ticker": ("ticker", True),
    "price": ("price::text", True),
    "timestamp": (_TIMESTAMP, True),
    "observedAt": (_INSTANT.format("observed_at"), True),
    "source": ("source", True),
    "testnet": ("testnet::text", False),
}


def write_answer(members: Sequence[str]) -> str:
    """The whole statement: one row of one value, the answer's bytes."""
    # As bytes, for text would be decoded in Python only to be encoded again.
    return "select convert_to('{\"data\":{' || " + " || ',' || ".join(members) + " || '}}', 'UTF8')"


def write_typename(key: str, name: str) -> str:
    return f'\'"{key}":"{name}"\''


def write_member(key: str, base: str, fields: Sequence[tuple[str, str]], *, is_list: bool) -> str:
    """What the statement `base` reads, as the member `key`. `fields` are the (key, field name) of a price."""
    first, row, last = _write_row(fields)
    if is_list:
        # What stands between any two rows is the aggregate's delimiter: no row has to be put together with it.
        value, empty = f"'[{first}' || string_agg({row}, '{last},{first}') || '{last}]'", "[]"
    else:
        value, empty = f"'{first}' || {row} || '{last}'", "null"
    return f"'\"{key}\":' || coalesce((select {value} from ({base}) as row), '{empty}')"


def _write_row(fields: Sequence[tuple[str, str]]) -> tuple[str, str, str]:
    """A price: the constant text it begins with, the SQL of the rest, the constant text it ends with.

    Keys are GraphQL names and tickers index names: neither needs escaping.
    """
    texts, columns = ["{"], []
    for position, (key, name) in enumerate(fields):
        texts[-1] += f'{"," if position else ""}"{key}":'
        if name == "__typename":
            texts[-1] += '"Price"'
            continue
        column, is_quoted = _COLUMNS[name]
        quote = '"' if is_quoted else ""
        texts[-1] += quote
        columns.append(column)
        texts.append(quote)
    texts[-1] += "}"
    if not columns:
        return texts[0], "''", ""
    row = columns[0] + "".join(
        f" || '{text}' || {column}" for text, column in zip(texts[1:], columns[1:], strict=False)
    )
    return texts[0], row, texts[-1]


def shift_parameters(statement: str, first: int) -> tuple[str, int]:
    """The statement with its parameters numbered after the first `first`, and how many there are then."""
    numbers = [int(number) for number in re.findall(r"\$(\d+)", statement)]
    return re.sub(r"\$(\d+)", lambda match: f"${int(match[1]) + first}", statement), first + max(numbers)
