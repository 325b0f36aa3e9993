"""How each column of a GraphQL type is read into Python, and how PostgreSQL writes it as JSON.

Both come from the Strawberry type itself: a statement's row has one column for each of the type's fields, under the
field's Python name. The columns of a nested object have that object's name as a prefix: `latest_price`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import Any

import asyncpg
import strawberry
from strawberry.types.base import StrawberryList, StrawberryOptional, get_object_definition
from strawberry.types.enum import StrawberryEnumDefinition
from strawberry.utils.str_converters import to_camel_case

from shared.storage.database import Statement

READ = "read"
"Metadata of a field that has a statement of its own: its `ReadField`."

FREE_TEXT = {"free_text": True}
"Metadata of a text that may hold any character. All other texts are names, which JSON need not escape."

CHANGES_EVERY_SECOND = {"changes_while": "true"}
"Metadata of a value that depends on the second in which it is read."

CHANGES_WHILE_RUNNING = {"changes_while": "is_running"}
"As `CHANGES_EVERY_SECOND`, but only if the row's column `is_running` is true."

# A slot is a whole second. Writing it from two casts takes a third of the time that to_char takes.
_INSTANT = """
case when {0} = {0}::timestamptz(0)
    then {0}::date::text || 'T' || {0}::time::text || '.000000Z'
    else to_char({0}, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
end
""".strip()

# As Python spells a float: 1.0, where PostgreSQL says 1. Beyond 1e15 both use an exponent.
_FLOAT = "{0}::text || case when {0} = trunc({0}) and abs({0}) < 1e15 then '.0' else '' end"


class Quoting(Enum):
    QUOTED = "quoted"
    BARE = "bare"


_WRITERS: Mapping[object, tuple[str, Quoting]] = {
    str: ("{0}", Quoting.QUOTED),
    strawberry.ID: ("{0}", Quoting.QUOTED),
    Decimal: ("{0}::text", Quoting.QUOTED),
    datetime: (_INSTANT, Quoting.QUOTED),
    int: ("{0}::text", Quoting.BARE),
    bool: ("{0}::text", Quoting.BARE),
    float: (_FLOAT, Quoting.BARE),
}


@dataclass(frozen=True, slots=True)
class Column:
    """A field of a GraphQL type: a scalar, a nested object (`row_type`), or a nested list with a statement (`read`)."""

    name: str
    "In Python and in SQL."
    writer: str = ""
    "SQL that writes the value as text, with {0} in place of the column."
    quoting: Quoting = Quoting.BARE
    is_nullable: bool = False
    changes_while: str | None = None
    "SQL over the root field's row: whether the value changes with every second."
    row_type: type | None = None
    read: Any = None


@cache
def columns_of(cls: type) -> Mapping[str, Column]:
    """The columns of a Strawberry type by their GraphQL names."""
    fields = get_object_definition(cls, strict=True).fields
    return {field.graphql_name or to_camel_case(field.python_name): _column(field) for field in fields}


def _column(field: Any) -> Column:
    name, metadata, kind = field.python_name, field.metadata, field.type
    if READ in metadata:
        return Column(name, read=metadata[READ])
    is_nullable = isinstance(kind, StrawberryOptional)
    kind = kind.of_type if is_nullable else kind
    if isinstance(kind, StrawberryEnumDefinition):
        kind = str
    if get_object_definition(kind) is not None:
        return Column(name, is_nullable=is_nullable, row_type=kind)
    assert not isinstance(kind, StrawberryList), f"{name}: a list needs a statement of its own"  # noqa: S101
    writer, quoting = _WRITERS[kind]
    if "free_text" in metadata:
        writer, quoting = "to_json({0})::text", Quoting.BARE
    return Column(name, writer, quoting, is_nullable, metadata.get("changes_while"))


def read_row(cls: type, row: asyncpg.Record, statement: Statement, prefix: str = "") -> Any:
    """An object of a Strawberry type from a statement's row; `None` if the nested object's columns are null.

    A type with a nested list keeps the statement, because the list's own statement is made from it.
    """
    columns = columns_of(cls).values()
    if prefix and row[prefix + presence_of(cls)] is None:
        return None
    values: dict[str, Any] = {}
    for column in columns:
        if column.read is not None:
            values["statement"] = statement
        elif column.row_type is not None:
            values[column.name] = read_row(column.row_type, row, statement, f"{prefix}{column.name}_")
        else:
            values[column.name] = row[prefix + column.name]
    return cls(**values)


def presence_of(cls: type) -> str:
    """The first column that is not nullable: in a nested object it is null exactly if there is no object."""
    return next(column.name for column in columns_of(cls).values() if not column.is_nullable)
