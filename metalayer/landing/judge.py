"""What a record means, in SQL: its fields, month and key, or the rule it breaks.

Here belongs the SELECT that judges all lines of a file at once, built from its header and its
source's shape. Running it is records.py's. The grammar of values is macros.sql's.

A line is split by the first of these ways that reads it rightly:
1. it has no quote: at the delimiters;
2. every field is quoted and none holds a quote: at `","`;
3. no field begins with a quote, so all quotes are literal: at the delimiters;
4. quoted fields, and unquoted ones without quotes: cut at the quotes; every second piece was within
   some, and its delimiters are masked before the pieces are joined again and split;
5. none: it is `irregular`, and quotes.py finds out which record it belongs to.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal

from metalayer.landing.header import Header
from metalayer.landing.normalise import CARRIAGE_RETURN, END_LINE, ESCAPE, ESCAPED_ESCAPE, NUL
from metalayer.landing.quotes import LINE_BREAK, LITERAL_QUOTE
from metalayer.landing.raw import UNPACKING, Unpacking

#: How the rule begins for a row of a month that has not come; the file is read again when it has.
AFTER_THE_CURRENT_MONTH = "after the current month"

ColumnType = Literal["text", "bigint", "numeric", "date", "timestamp", "boolean"]

IRREGULAR = "irregular"
"""The rule of a line whose quotes have to be looked at."""
END = "end"
"""The rule of the line that ends the clean lines."""

MAX_VALUE_CHARACTERS = 200
MAX_RAW_CHARACTERS = 10_000

_MASKED_DELIMITER = ESCAPE + "d"
_BLANKS = "' ' || chr(9) || chr(13) || chr(160) || chr(65279)"

# A part of a key is written in one way only: '007', ' 7' and '7.0' are one order.
KEY_TEXT: Mapping[ColumnType, str] = {
    "text": "clean({})",
    "bigint": "cast(try_bigint({}) as varchar)",
    "numeric": "number_text({})",
    "date": "cast(try_date({}) as varchar)",
    "timestamp": "cast(try_timestamp({}) as varchar)",
    "boolean": "cast(try_boolean({}) as varchar)",
}
_MOMENT: Mapping[ColumnType, str] = {"date": "try_date({})", "timestamp": "try_timestamp({})"}


@dataclass(frozen=True)
class LandedColumn:
    """A column of a source.

    Attributes:
        name: in the contract's spelling; a header may differ in case, spaces and hyphens.
        type: what its text stands for; used for the month and the key only.
        required: the header must have it.
    """

    name: str
    type: ColumnType
    required: bool = True


@dataclass(frozen=True)
class Erasing:
    """By what records of erased persons are known in a source; see erased.py.

    Attributes:
        numbers: of each column that holds a person's number: its name, what stands before a number
            when it is hashed, and SHA-256 in hexadecimal of each erased person's, hashed so.
        lines: further lines of the one file that is read, on which such records begin.
        keeps_rows: whether a record stays, without what is personal in it.
        personal: columns that are emptied in a record that stays.
        expired_before: first day of the first month whose records have not expired; None: none has.
        held_months: earlier months whose records stay all the same.
        held: as `numbers`, of persons on legal hold: of a file that has a record of theirs in a
            month, that month stays.
    """

    numbers: tuple[tuple[str, str, frozenset[str]], ...]
    lines: frozenset[int] = frozenset()
    keeps_rows: bool = False
    personal: tuple[str, ...] = ()
    expired_before: date | None = None
    held_months: frozenset[date] = frozenset()
    held: tuple[tuple[str, str, frozenset[str]], ...] = ()


@dataclass(frozen=True)
class SourceShape:
    """What the reader must know about a source; built from its contract.

    Attributes:
        name: such as `erp/orders`.
        columns: as they are written to `rows_out`.
        key: names of the key columns.
        month_column: whose month is the row's month; None if that is the delivery's month.
        first_month, last_month: first days of the months that are taken, both included.
        unpacking: how far a gzip may unfold.
        erasing: whose records make the reader stop; None: nobody's.
    """

    name: str
    columns: tuple[LandedColumn, ...]
    key: tuple[str, ...]
    month_column: str | None
    first_month: date
    last_month: date
    unpacking: Unpacking = UNPACKING
    erasing: Erasing | None = None

    def type_of(self, name: str) -> ColumnType:
        """The type of one of the columns."""
        return next(column.type for column in self.columns if column.name == name)


@dataclass(frozen=True)
class Judge:
    """Writes the SELECT for the records of one file.

    Attributes:
        header: of the file.
        shape: of its source.
        fallback_month: of rows whose source has no month column.
        has_quotes, has_escapes: whether the clean lines have any.
    """

    header: Header
    shape: SourceShape
    fallback_month: date
    has_quotes: bool
    has_escapes: bool

    def select(self, source: str, after_line: int) -> str:
        """The SELECT that makes records of lines.

        Args:
            source: a SELECT of line (its number), verdict (a rule it is known to break) and l.
            after_line: lines up to this number are left out.
        """
        header, shape = self.header, self.shape
        columns = list(enumerate(shape.columns, start=1))
        value = {
            column.name: self._value(f"f[{header.position[column.name]}]")
            if column.name in header.position
            else "cast(null as varchar)"
            for column in shape.columns
        }
        number = {column.name: f"c{n}" for n, column in columns}
        values = ", ".join(f"{value[column.name]} as c{n}" for n, column in columns)
        names = ", ".join(f"c{n}" for n, _ in columns)
        key = " || chr(31) || ".join(
            KEY_TEXT[shape.type_of(name)].format(number[name]) for name in shape.key
        )
        if shape.month_column is None:
            month, told = f"date '{self.fallback_month:%Y-%m-01}'", "cast(null as varchar)"
            month_column = "null"
        else:
            told = number[shape.month_column]
            # With too few or too many fields, none can be trusted to be the one it seems.
            moment = _MOMENT[shape.type_of(shape.month_column)].format(told)
            month = (
                "case when shape_rule is null or shape_rule = 'NUL byte' "
                f"then cast(date_trunc('month', {moment}) as date) end"
            )
            month_column = literal(shape.month_column)
        text = f"replace(l, {literal(CARRIAGE_RETURN)}, '')" if self.has_escapes else "l"
        return f"""
            with split as not materialized (
                select line, verdict, l, {self._fields("l")} as f
                from ({source})
                where line > {after_line} and trim({text}, {_BLANKS}) <> ''
            ),
            shaped as not materialized (
                select line, l, {self._shape_rule()} as shape_rule, {values},
                    {self._extra()} as _extra
                from split
            ),
            dated as not materialized (
                select line, l, shape_rule, {names}, _extra, {month} as month,
                    {key or "null"} as _key, {told} as told
                from shaped
            ),
            ruled as not materialized (
                select *, coalesce(shape_rule, case
                    when month is null then 'month cannot be told'
                    when month < date '{shape.first_month:%Y-%m-01}'
                    then 'before the first month {shape.first_month:%Y-%m}'
                    when month > date '{shape.last_month:%Y-%m-01}'
                    then '{AFTER_THE_CURRENT_MONTH} {shape.last_month:%Y-%m}'
                end) as rule
                from dated
            )
            select {names}, _extra, line as _line, month, cast(_key as varchar) as _key, rule,
                case when shape_rule is null and rule is not null then {month_column} end
                    as "column",
                case when shape_rule is null and rule is not null
                    then left(told, {MAX_VALUE_CHARACTERS}) end as value,
                case when rule is not null then {self._raw("l")} end as raw
            from ruled"""

    def _fields(self, l: str) -> str:  # noqa: E741
        """The fields of a line; NULL if it is irregular."""
        d = self.header.delimiter
        split = f"string_split({l}, {literal(d)})"
        if not self.has_quotes:
            return split
        e = re.escape(d)
        quoted, bare, loose = '"(?:[^"]|"")*"', f'[^"{e}]*', f'(?:[^"{e}][^{e}]*)?'
        full = literal(f'"[^"]*"(?:{e}"[^"]*")*')
        lenient = literal(f"{loose}(?:{e}{loose})*")
        strict = literal(f"(?:{quoted}|{bare})(?:{e}(?:{quoted}|{bare}))*")
        mask = f"replace(x, {literal(d)}, {literal(_MASKED_DELIMITER)})"
        return f"""case
            when not contains({l}, '"') then {split}
            when regexp_full_match({l}, {full})
            then string_split(substring({l}, 2, length({l}) - 2), {literal(f'"{d}"')})
            when regexp_full_match({l}, {lenient}) then {split}
            when regexp_full_match({l}, {strict})
            then string_split(array_to_string(list_transform(
                -- An empty piece between two quoted ones is where a quote was doubled.
                string_split('x' || {l} || 'x', '"'),
                lambda x, i: case when i % 2 = 0 then {mask} when x = '' then '"' else x end
            ), '')[2:-2], {literal(d)})
        end"""

    def _shape_rule(self) -> str:
        fewest, most = self.header.fewest, self.header.most
        return f"""case
            when l = {literal(END_LINE)} then '{END}'
            when verdict is not null then verdict
            when f is null then '{IRREGULAR}'
            when contains(l, {literal(NUL)}) then 'NUL byte'
            when len(f) < {fewest} then 'expected {fewest} fields, found ' || len(f)
            when len(f) > {most} and array_to_string(f[{most + 1}:], '') <> ''
            then 'expected {most} fields, found ' || len(f)
        end"""

    def _value(self, field: str) -> str:
        """A field as delivered; NULL where it is empty."""
        if not self.has_quotes and not self.has_escapes:
            return f"nullif({field}, '')"
        plain = _replaced(
            field,
            (_MASKED_DELIMITER, self.header.delimiter),
            (LITERAL_QUOTE, '"'),
            (LINE_BREAK, "\n"),
            (CARRIAGE_RETURN, "\r"),
            (ESCAPED_ESCAPE, ESCAPE),
        )
        return (
            f"nullif(case when contains({field}, {literal(ESCAPE)}) then {plain} "
            f"else {field} end, '')"
        )

    def _extra(self) -> str:
        """The columns that the contract does not know, as a JSON object of those not empty."""
        if not self.header.extra:
            return "cast(null as varchar)"
        entries = ", ".join(
            f"{{'k': {literal(name)}, 'v': {self._value(f'f[{position}]')}}}"
            for name, position in self.header.extra
        )
        entry_list = f"list_filter([{entries}], lambda e: e.v is not null)"
        return f"nullif(cast(to_json(map_from_entries({entry_list})) as varchar), '{{}}')"

    def _raw(self, l: str) -> str:  # noqa: E741
        """The record as delivered, for a person to look at."""
        # An escape takes two characters, so this much gives enough of them.
        start = f"left({l}, {2 * MAX_RAW_CHARACTERS + 2})"
        plain = _replaced(
            start,
            (LITERAL_QUOTE, '"'),
            (LINE_BREAK, "\n"),
            (CARRIAGE_RETURN, "\r"),
            (NUL, "\u2400"),
            (ESCAPED_ESCAPE, ESCAPE),
        )
        return f"left({plain}, {MAX_RAW_CHARACTERS})"


def _replaced(expression: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        expression = f"replace({expression}, {literal(old)}, {literal(new)})"
    return expression


def literal(text: str) -> str:
    """A string literal; DuckDB knows no escapes in it but the doubled quote."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A name of a column, whatever its letters."""
    return '"' + name.replace('"', '""') + '"'
