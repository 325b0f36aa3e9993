"""`read_field`: declares a query field once, as a function from its arguments to a statement.

    @read_field(Price | None, description="The newest price.")
    def latest_price(context: Context, ticker: Ticker) -> Statement: ...

The decorator makes the Strawberry field, whose resolver runs the statement and reads its rows. `server/compiled` finds
the same declaration in the field's metadata and lets PostgreSQL write the answer. Both call `ReadField.statement`, so
both refuse the same arguments.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import asyncpg
import strawberry

from server.protection.turns import Turns
from server.reads.columns import READ, columns_of, read_row
from server.reads.context import Context, Info
from server.reads.selections import weigh
from shared.storage.database import Pool, Statement, fetch

PARENT: Any = strawberry.Parent[object]


@dataclass(frozen=True, slots=True)
class ReadField:
    build: Callable[..., Statement]
    row_type: type
    "The Strawberry type of a row."
    is_list: bool
    counts: str | None
    "The argument that says how many rows are asked for: a number, or a list with one value for each row."
    is_nested: bool
    "Takes the parent's statement after the context."
    skip_if: str | None
    "Of a nested list: a column of the parent. If it is true, the list is empty and the statement does not run."

    def statement(
        self,
        context: Context,
        arguments: Mapping[str, Any],
        width: int,
        *parent: Statement,
        at_most: int | None = None,
    ) -> Statement:
        """`width`: how many fields of a row are selected. `at_most`: rows that are read, if more are asked for.

        Raises the error that the field answers for bad arguments.
        """
        given = dict(arguments)
        if at_most is not None and self.counts == "limit":
            given["limit"] = min(given["limit"], at_most)
        statement = self.build(context, *parent, **given)
        if self.counts is not None:
            context.count_rows(self.rows_asked_for(context, arguments), width)
        return statement

    def rows_asked_for(self, context: Context, arguments: Mapping[str, Any]) -> int:
        """1 if no argument says how many. Raises `BadUserInput`."""
        asked = 1 if self.counts is None else arguments[self.counts]
        return len(asked) if isinstance(asked, list) else context.limit(asked)


def read_field(
    returns: Any, *, description: str, skip_if: str | None = None, counts: str | None = None
) -> Callable[[Callable[..., Statement]], Any]:
    """`returns`: `Type | None`, `list[Type] | None` or `list[Type]`. All parameters after the context are arguments,
    except a parent's statement. The parent of a nested field keeps its statement as `statement`. `counts`: the argument
    that counts towards the rows of a request; `limit` if there is one.
    """
    found = returns if get_origin(returns) is list else get_args(returns)[0]
    is_list = get_origin(found) is list

    def declare(build: Callable[..., Statement]) -> Any:
        _, *parameters = inspect.signature(build).parameters.values()
        is_nested = parameters[:1] != [] and parameters[0].annotation is Statement
        arguments = parameters[is_nested:]
        counted = "limit" if any(parameter.name == "limit" for parameter in arguments) else counts
        read = ReadField(build, get_args(found)[0] if is_list else found, is_list, counted, is_nested, skip_if)

        async def resolve(info: Info, root: Any = None, **given: Any) -> Any:
            parent = (root.statement,) if is_nested else ()
            context, selected = info.context, _width(info)
            # All columns of a row are read, however few are selected.
            width = max(selected, len(columns_of(read.row_type)))
            statement = read.statement(context, given, selected, *parent, at_most=context.rows_in_python(width))
            async with context.heavy_reads.place(context.weight):
                rows = await fetch(context.pool, statement.sql, *statement.parameters)
            context.count_values_in_python(rows, width)
            objects = _objects(rows, read.row_type, statement)
            return _in_turns(objects, context.turns) if read.is_list else next(objects, None)

        shown = [inspect.Parameter("info", inspect.Parameter.KEYWORD_ONLY, annotation=Info)]
        if is_nested:
            shown.append(inspect.Parameter("root", inspect.Parameter.KEYWORD_ONLY, annotation=PARENT))
        shown += [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in arguments]
        resolve.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        resolve.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
        resolve.__module__, resolve.__name__ = build.__module__, build.__name__
        return strawberry.field(resolver=resolve, graphql_type=returns, description=description, metadata={READ: read})

    return declare


async def read_rows(pool: Pool, cls: type, statement: Statement) -> list[Any]:
    """Objects of the Strawberry type `cls`. Raises what the statement refuses with, and `StorageUnavailable`."""
    return list(_objects(await fetch(pool, statement.sql, *statement.parameters), cls, statement))


def _objects(rows: Iterable[asyncpg.Record], cls: type, statement: Statement) -> Iterator[Any]:
    for row in rows:
        if statement.refuse is not None and row["is_refused"]:
            raise statement.refuse(row)
        yield read_row(cls, row, statement)


async def _in_turns(objects: Iterator[Any], turns: Turns) -> AsyncIterator[Any]:
    """graphql-core writes each object as it comes, so thousands of them do not hold the event loop."""
    for one in objects:
        await turns.take()
        yield one


def _width(info: Info) -> int:
    """How many fields of a row are selected. A field that several fragments repeat counts again."""
    raw = info._raw_info
    return sum(weigh(node.selection_set, raw.fragments).width for node in raw.field_nodes if node.selection_set)
