"""The records of one file, in DuckDB: from clean lines to two Parquet files.

Here belong DuckDB itself, the order in which lines become records, and what is written. What a
record means is judge.py's; a closer look at the quotes of a few lines is quotes.py's.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from importlib.resources import files
from pathlib import Path

import duckdb
import numpy as np

from metalayer.errors import LandingError
from metalayer.landing.engine import MEMORY_BYTES, Configuration, open_memory
from metalayer.landing.header import Header
from metalayer.landing.judge import (
    END,
    IRREGULAR,
    KEY_TEXT,
    Judge,
    SourceShape,
    identifier,
    literal,
)
from metalayer.landing.normalise import ESCAPE, Normalised, clean_lines
from metalayer.landing.quotes import Joiner, Repaired, settle_alone

_MEMORY_BYTES_FOR_LONG_ROWS = 2 * 1024 * 1024 * 1024
"""The same where rows of 10 kB and more are the rule."""
_BATCH_ROWS = 2048
"""DuckDB takes so many rows at a time, and holds a few copies of them."""
_LONG_BATCH_BYTES = 20 * 1024 * 1024

_SMALL_BYTES = 1024 * 1024
"""A file of so many bytes is worth no database of its own."""
_SPILLED_BYTES = 1024 * 1024 * 1024
"""Lines of more bytes go into a database on disk. What spills leaves a trace of each of its blocks
in memory, which five gigabytes fill; below, writing it compressed takes longer, by a sixth."""
_of_thread = threading.local()

_NO_DELIMITER = ESCAPE + "x"
_FIELD_END = ESCAPE + "f"
_ROW_GROUP_ROWS = 122_880
_ROW_GROUP_BYTES = 16 * 1024 * 1024


class Records:
    """The records of one file, in a table that spills to `folder` when it grows, or lies there.

    Args:
        folder: for what is written meanwhile; removed by the caller.
        lines_path: the clean lines.
        facts: what is known of them.
        header: of the file.
        shape: of its source.
        fallback_month: any day of the month of rows whose source has no month column.
    """

    def __init__(
        self,
        folder: Path,
        lines_path: Path,
        facts: Normalised,
        header: Header,
        shape: SourceShape,
        fallback_month: date,
    ) -> None:
        self._folder = folder
        self._lines_path = lines_path
        self._facts = facts
        self._header = header
        self._shape = shape
        self._fallback_month = fallback_month
        self._judge = Judge(header, shape, fallback_month, facts.has_quotes, facts.has_escapes)
        text_bytes = self._lines_path.stat().st_size
        self._row_bytes = text_bytes // (self._facts.line_count + 1) + 1
        # First line -> last line of the records that have several.
        self._last_lines: dict[int, int] = {}
        self._create = "create temp table"
        if text_bytes <= _SMALL_BYTES:
            self._database = _database_for_small_files().cursor()
        else:
            self._database = open_with_grammar(self._configuration(text_bytes))
        if text_bytes > _SPILLED_BYTES:
            self._create = "create table"
            self._run(f"attach {literal(str(folder / 'records'))} as disk")
            # Tables are made in the first; the second has the grammar.
            self._run("set search_path = 'disk.main,memory.main'")

    def _configuration(self, text_bytes: int) -> Configuration:
        batch_bytes = min(self._row_bytes * _BATCH_ROWS, text_bytes)
        memory = min(MEMORY_BYTES + 8 * batch_bytes, _MEMORY_BYTES_FOR_LONG_ROWS)
        configuration: Configuration = {
            "memory_limit": f"{memory} bytes",
            "temp_directory": str(self._folder / "spill"),
        }
        if batch_bytes > _LONG_BATCH_BYTES:
            configuration["threads"] = 1  # each would hold batches of its own
        return configuration

    def close(self) -> None:
        """Let go of the memory."""
        self._database.close()

    def read(self) -> None:
        """Fill the table with every record of the file.

        Raises:
            LandingError: DuckDB saw other lines than were written; nothing of the file is trusted.
        """
        # A table first, for its rowid: row_number() would keep all behind it on one thread.
        lines = _read_lines(self._lines_path, self._facts.longest_line)
        self._run(f"{self._create} line as select l from {lines}")
        source = "select rowid + 1 as line, cast(null as varchar) as verdict, l from line"
        judged = self._judge.select(source, after_line=self._header.last_line)
        self._run(f"{self._create} record as {judged}")
        self._run("drop table line")
        end = self._run(f"delete from record where rule = '{END}' returning _line").fetchall()
        if end != [(self._facts.line_count + 1,)]:
            raise LandingError(
                f"{self._facts.line_count} lines of {self._shape.name} were read as {end}",
                "This is a defect of MetaLayer; please report it with the file.",
            )
        if self._facts.has_quotes:
            self._settle_irregular_lines()

    def erased(self) -> tuple[list[tuple[int, int]], frozenset[int]]:
        """First and last line of every record that is to go, in order; and which have expired.

        Those of erased persons go, and those of months that are kept no longer. The latter are told
        by their first lines.
        """
        erasing = self._shape.erasing
        if erasing is None:
            return [], frozenset()
        places = {column.name: f"c{n}" for n, column in enumerate(self._shape.columns, start=1)}
        expired = self._expired(places)
        conditions = [is_numbered(self._shape, erasing.numbers, places.__getitem__), expired]
        if erasing.lines:
            conditions.append(f"_line in ({', '.join(map(str, sorted(erasing.lines)))})")
        found = self._run(
            f"select _line, coalesce({expired}, false) from record "
            f"where {' or '.join(conditions)} order by _line"
        ).fetchall()
        spans = [(line, self._last_lines.get(line, line)) for line, _ in found]
        return spans, frozenset(line for line, is_expired in found if is_expired)

    def _expired(self, places: Mapping[str, str]) -> str:
        """The condition that a record is of a month that is kept no longer.

        One of which no month can be told has expired with all others of its file.
        """
        erasing = self._shape.erasing
        condition = has_expired(self._shape)
        if erasing is None or erasing.expired_before is None:
            return condition
        if erasing.held:
            held = is_numbered(self._shape, erasing.held, places.__getitem__)
            ((months,),) = self._run(
                f"select list(distinct month) from record where {held} and month is not null"
            ).fetchall()
            if months:
                kept = ", ".join(f"date '{month}'" for month in sorted(months))
                condition = f"({condition} and month not in ({kept}))"
        ((others,),) = self._run(
            f"select count(*) from record where month is not null and not {condition}"
        ).fetchall()
        month = self._fallback_month.replace(day=1)
        if not others and month < erasing.expired_before and month not in erasing.held_months:
            condition = f"({condition} or month is null)"
        return condition

    def counts(self) -> tuple[int, int, dict[date, int]]:
        """Records, those of them rejected, and the good ones per month."""
        months = self._run(
            "select month, count(*) from record where rule is null group by month order by month"
        ).fetchall()
        ((rejected,),) = self._run("select count(*) from record where rule is not null").fetchall()
        good: dict[date, int] = dict(months)
        return sum(good.values()) + rejected, rejected, good

    def write(self, rows_path: Path, rejects_path: Path) -> None:
        """Write the Parquet files that reader.parse describes."""
        columns = ", ".join(
            f"c{number} as {identifier(column.name)}"
            for number, column in enumerate(self._shape.columns, start=1)
        )
        self._copy(
            f"select {columns}, _extra, _line, month, _key from record where rule is null",
            rows_path,
        )
        self._copy(
            'select _line, month, "column", rule, value, raw from record '
            "where rule is not null order by _line",
            rejects_path,
        )

    def _copy(self, select: str, path: Path) -> None:
        # A row group is held in memory until it is full, so one of long rows has fewer.
        rows = min(max(_ROW_GROUP_BYTES // self._row_bytes, _BATCH_ROWS), _ROW_GROUP_ROWS)
        self._run(
            f"copy ({select}) to {literal(str(path))} "
            f"(format parquet, compression snappy, row_group_size {rows})"
        )

    def _run(self, sql: str) -> duckdb.DuckDBPyConnection:
        return self._database.execute(sql)

    def _settle_irregular_lines(self) -> None:
        irregular = self._run(
            f"select _line from record where rule = '{IRREGULAR}' order by _line"
        ).fetchnumpy()["_line"]
        if not len(irregular):
            return
        open_lines: list[int] = []

        def settled_alone() -> Iterator[Repaired]:
            for settled in settle_alone(self._lines(irregular), self._header.delimiter):
                if isinstance(settled, Repaired):
                    yield settled
                else:
                    open_lines.append(settled)

        self._replace(settled_alone())
        if open_lines:
            joiner = Joiner(
                clean_lines(self._lines_path),
                self._header.delimiter,
                self._header.fits,
                self._header.most,
                self._is_complete(),
            )
            self._replace(joiner.settle(open_lines))

    def _lines(self, numbers: Iterable[int]) -> Iterator[tuple[int, str]]:
        """The lines of these numbers, which rise."""
        numbered = enumerate(clean_lines(self._lines_path), start=1)
        for wanted in numbers:
            for number, line in numbered:
                if number == wanted:
                    yield number, line
                    break

    def _is_complete(self) -> Callable[[int], bool]:
        """Whether a line is by itself a record that hardly is a piece of someone's text.

        That is one with as many fields as the header and with key and month, if one of those is
        typed. A source without such a column is told by other typed values, or by many fields.
        """
        told_by = [*self._shape.key, *filter(None, [self._shape.month_column])]
        evidence = "true"
        if self._header.fewest < 4 and all(self._shape.type_of(c) == "text" for c in told_by):
            typed = [
                f"{KEY_TEXT[column.type].format(f'c{number}')} is not null"
                for number, column in enumerate(self._shape.columns, start=1)
                if column.type != "text"
            ]
            evidence = f"({' or '.join(typed)})" if typed else "false"
        numbers = self._run(
            f"select _line from record where rule is null and _key is not null and {evidence}"
        ).fetchnumpy()["_line"]
        complete = np.zeros(self._facts.line_count + 1, dtype=np.bool_)
        complete[numbers] = True
        return lambda number: bool(complete[number])

    def _replace(self, repaired: Iterable[Repaired]) -> None:
        """Put repaired records into the table, in place of the lines that they take."""
        path = self._folder / "repaired"
        longest = 0
        with path.open("wb") as out:
            for record in repaired:
                if record.last > record.first:
                    self._last_lines[record.first] = record.last
                fields = (str(record.first), str(record.last), record.rule or "", record.text)
                line = _FIELD_END.join(fields).encode()
                longest = max(longest, len(line))
                out.write(line + b"\n")
        if not longest:
            return
        first, last, rule, text = (
            f"split_part(l, {literal(_FIELD_END)}, {number})" for number in range(1, 5)
        )
        lines = _read_lines(path, longest)
        taken = f"range(cast({first} as bigint), cast({last} as bigint) + 1)"
        self._run(f"delete from record where _line in (select unnest({taken}) from {lines})")
        source = (
            f"select cast({first} as bigint) as line, nullif({rule}, '') as verdict, {text} as l "
            f"from {lines}"
        )
        self._run(f"insert into record {self._judge.select(source, after_line=0)}")


def is_erased(shape: SourceShape, text_of: Callable[[str], str]) -> str:
    """The condition, for a database with the grammar, that a record is to go.

    It is of an erased person, or of a month that is kept no longer (its column `month`).

    Args:
        text_of: Column -> the SQL of what was delivered for it.
    """
    assert shape.erasing is not None
    theirs = is_numbered(shape, shape.erasing.numbers, text_of)
    return f"({has_expired(shape)} or {theirs})"


def is_numbered(
    shape: SourceShape,
    numbers: Iterable[tuple[str, str, frozenset[str]]],
    text_of: Callable[[str], str],
) -> str:
    """The condition that a record has one of these persons' numbers, see `Erasing.numbers`."""
    conditions = ["false"]
    for name, prefix, tokens in numbers:
        number = KEY_TEXT[shape.type_of(name)].format(text_of(name))
        listed = ", ".join(map(literal, sorted(tokens)))
        conditions.append(f"sha256({literal(prefix)} || {number}) in ({listed})")
    return f"({' or '.join(conditions)})"


def has_expired(shape: SourceShape) -> str:
    """The condition that a record is of a month that is kept no longer."""
    erasing = shape.erasing
    if erasing is None or erasing.expired_before is None:
        return "false"
    condition = f"month < date '{erasing.expired_before}'"
    if erasing.held_months:
        held = ", ".join(f"date '{month}'" for month in sorted(erasing.held_months))
        condition += f" and month not in ({held})"
    return f"({condition})"


def open_with_grammar(configuration: Configuration) -> duckdb.DuckDBPyConnection:
    """A database of its own that knows the grammar."""
    database = open_memory(configuration)
    database.execute(files("metalayer.landing").joinpath("macros.sql").read_text(encoding="utf-8"))
    return database


def _database_for_small_files() -> duckdb.DuckDBPyConnection:
    """The one of this thread: to make one takes longer than to read a small file.

    Each file works in a cursor, whose temporary tables leave with it. Nothing spills.
    """
    known: duckdb.DuckDBPyConnection | None = getattr(_of_thread, "database", None)
    if known is None:
        known = open_with_grammar(
            {"memory_limit": f"{MEMORY_BYTES} bytes", "temp_directory": "", "threads": 1}
        )
        _of_thread.database = known
    return known


def _read_lines(path: Path, longest: int) -> str:
    """The table function that gives each physical line as `l`, in order; NULL for an empty one."""
    # A buffer holds whole lines, and each thread has some; small ones spread the work.
    size = max(longest + 16, 2 * 1024**2)
    pattern = re.sub(r"([\[*?])", r"[\1]", str(path))  # DuckDB takes a path for a glob
    return (
        f"read_csv({literal(pattern)}, columns={{'l': 'VARCHAR'}}, auto_detect=false, "
        f"delim={literal(_NO_DELIMITER)}, quote='', escape='', header=false, strict_mode=false, "
        f"max_line_size={size}, buffer_size={2 * size})"
    )
