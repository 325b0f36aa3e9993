"""Writes the SQL that writes an answer: JSON around the statements of the fields that are asked for."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from server.reads.columns import Column, Quoting, presence_of
from server.reads.fields import ReadField
from shared.storage.database import Statement

_LINE_END = re.compile(r"\s*(--.*)?\n\s*")
"With the comment before it, and the indentation behind it: a shorter statement is read faster, and may be cached."


@dataclass(frozen=True, slots=True)
class Selected:
    """A selected field: the key of its value, and its column. `column` is `None` for `__typename`."""

    key: str
    type_name: str
    column: Column | None
    children: tuple["Selected", ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """A root field: the key of its value, its declaration, and what is selected of it."""

    key: str
    read: ReadField
    children: tuple[Selected, ...]


def write_answer(members: Sequence[Member | str], statements: Sequence[Statement], *, is_whole: bool = True) -> str:
    """One row: the version of the data, when the answer expires (or null), and the answer as UTF-8 bytes (or null).

    `members`: in the order of the answer; a text is a constant member. `statements`: those of the members, each before
    the ones nested in it. Without `is_whole` the answer is one column for each member, without braces.

    Keys are GraphQL names, and no constant holds a quote: nothing here needs escaping.
    """
    bases = iter(_shift_parameters(statements))
    sources: list[str] = []
    values: list[str] = []
    expiries: list[str] = []
    for member in members:
        if isinstance(member, str):
            values.append(f"'{member}'")
            continue
        alias = f"m{len(sources)}"
        base, statement = next(bases)
        source, has_expiry = _write_member(member, base, statement, bases)
        sources.append(f"{source} as {alias}")
        values.append(f"{alias}.json")
        expiries += [f"{alias}.expires_at"] if has_expiry else []
    # As bytes: text would be decoded in Python only to be encoded again.
    whole = "'{\"data\":{' || " + " || ',' || ".join(values) + " || '}}'"
    answers = [whole] if is_whole else values
    columns = ", ".join(f"convert_to({answer}, 'UTF8')" for answer in answers)
    expires_at = f"least({', '.join(expiries)})" if expiries else "null::timestamptz"
    return f"select (select version from data_version), {expires_at}, {columns} from {' cross join '.join(sources)}"


def _write_member(
    member: Member, base: str, statement: Statement, bases: Iterator[tuple[str, Statement]]
) -> tuple[str, bool]:
    """A subquery with one row, and whether it has a column `expires_at`."""
    row = _Row().object(member.children, "", bases)
    value = f"'\"{member.key}\":' || " + (row.as_list() if member.read.is_list else row.as_object())
    if statement.refuse is not None:
        value = f"case when bool_or(is_refused) then null else {value} end"
    changes = _conditions_of_change(member.children)
    expiries = ["expires_at"] * statement.expires
    expiries += [f"case when {condition} then '-infinity'::timestamptz end" for condition in sorted(changes)]
    column = f", min(least({', '.join(expiries)})) as expires_at" if expiries else ""
    return f"(select {value} as json{column} from ({base}) as row)", bool(expiries)


class _Row:
    """A row's JSON: constant texts, and SQL between them."""

    def __init__(self) -> None:
        self._texts = [""]
        self._expressions: list[str] = []

    def object(self, children: Sequence[Selected], prefix: str, bases: Iterator[tuple[str, Statement]]) -> "_Row":
        self._texts[-1] += "{"
        for position, child in enumerate(children):
            self._texts[-1] += f'{"," if position else ""}"{child.key}":'
            self._value(child, prefix, bases)
        self._texts[-1] += "}"
        return self

    def _value(self, child: Selected, prefix: str, bases: Iterator[tuple[str, Statement]]) -> None:
        column = child.column
        if column is None:
            self._texts[-1] += f'"{child.type_name}"'
        elif column.read is not None:
            base, _ = next(bases)
            rows = _Row().object(child.children, "", bases).as_list()
            is_skipped = f"{prefix}{column.read.skip_if}" if column.read.skip_if else "false"
            self._sql(f"case when {is_skipped} then '[]' else (select {rows} from ({base}) as row) end")
        elif column.row_type is not None:
            inner = f"{prefix}{column.name}_"
            written = _Row().object(child.children, inner, bases).as_text()
            self._sql(f"case when {inner}{presence_of(column.row_type)} is null then 'null' else {written} end")
        else:
            value = column.writer.format(prefix + column.name)
            quote = '"' if column.quoting is Quoting.QUOTED else ""
            if column.is_nullable:
                self._sql(f"coalesce('{quote}' || {value} || '{quote}', 'null')")
            else:
                self._texts[-1] += quote
                self._sql(value)
                self._texts[-1] += quote

    def _sql(self, expression: str) -> None:
        self._expressions.append(f"({expression})")
        self._texts.append("")

    def as_text(self) -> str:
        parts = [f"'{self._texts[0]}'"]
        for expression, text in zip(self._expressions, self._texts[1:], strict=True):
            parts += [expression, f"'{text}'"]
        return " || ".join(part for part in parts if part != "''")

    def as_object(self) -> str:
        """An aggregate over one row, or none."""
        return f"coalesce(string_agg({self.as_text()}, ''), 'null')"

    def as_list(self) -> str:
        """An aggregate. What stands between any two rows is its delimiter: no row has to be put together with it."""
        if not self._expressions:
            return f"'[' || coalesce(string_agg('{self._texts[0]}', ','), '') || ']'"
        first, last = self._texts[0], self._texts[-1]
        row = self._expressions[0] + "".join(
            f" || '{text}' || {expression}"
            for text, expression in zip(self._texts[1:], self._expressions[1:], strict=False)
        )
        return f"coalesce('[{first}' || string_agg({row}, '{last},{first}') || '{last}]', '[]')"


def _conditions_of_change(children: Sequence[Selected]) -> set[str]:
    """SQL over a row: if any is true, the answer changes with every second."""
    columns = {child.column for child in children if child.column is not None}
    conditions = {column.changes_while for column in columns if column.changes_while is not None}
    return conditions.union(*(_conditions_of_change(child.children) for child in children))


def _shift_parameters(statements: Sequence[Statement]) -> Iterator[tuple[str, Statement]]:
    """Each statement's SQL, its parameters numbered after those of the statements before it."""
    first = 0
    for statement in statements:
        offset = first
        sql = _LINE_END.sub(" ", statement.sql)
        yield re.sub(r"\$(\d+)", lambda match: f"${int(match[1]) + offset}", sql), statement  # noqa: B023
        first += len(statement.parameters)
