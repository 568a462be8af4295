"""Landed values looked over for personal data that no contract speaks of.

A column that its contract does not tag, or that no contract knows (`_extra`), is named when its
values look personal (`looks.py`), or when they are those of a tagged column. No value leaves this
module. Does not belong here: how tags follow the SELECTs (`flow.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
from psycopg2 import sql

from metalayer.catalog import Catalog
from metalayer.contracts.contract import TableSpec, bronze_spec
from metalayer.governance.looks import Look, is_enough, looks
from metalayer.warehouse.ddl import stored_name

#: Distinct values of a column that are judged one by one.
_MOST_JUDGED = 2_000
_SHOWN_CHARACTERS = 200
#: Share of a column's values that are those of a tagged one.
_SAME_SHARE = 0.5
#: Shorter texts, and texts without a letter, say nothing about where they come from.
_TELLING = r"\p{L}.*\p{L}.*\p{L}"


@dataclass(frozen=True)
class Finding:
    """A column that looks personal and is not tagged.

    Attributes:
        table: Bronze table, as "bronze.orders".
        column: Its column; of one that no contract knows, as it stands in the files.
        looks_like: What its values look like.
        values: How many distinct values look so.
        judged: Of how many.
        next_step: What to write into which contract.
    """

    table: str
    column: str
    looks_like: str
    values: int
    judged: int
    next_step: str


def scan(
    cursor: Any,
    tables: Catalog,
    *,
    rows: int,
    region: str,
    told: Callable[[str], None] = lambda _: None,
    opened: Callable[[str], str] = str,
) -> Iterator[Finding]:
    """Look over the landed rows of every source.

    Args:
        rows: About how many rows of a table are looked at, in blocks from everywhere in it.
        region: Country in which phone numbers without one are dialled, as "US".
        told: Is told which table is looked at.
        opened: Opens an encrypted value.
    """
    sources = tables.sources.values()
    values = {}
    for spec in sources:
        told(f"bronze.{spec.name}")
        values[spec.name] = _landed_values(cursor, spec, rows)
        for column in spec.sealed:
            if (texts := values[spec.name].get(column.name)) is not None:
                plain = list(map(opened, texts))
                values[spec.name][column.name] = pl.Series(plain, dtype=pl.String)
    known = {
        (column.pii, f"bronze.{spec.name}.{column.name}"): _telling(found)
        for spec in sources
        for column in spec.landed
        if column.pii is not None and (found := values[spec.name].get(column.name)) is not None
    }
    ways = list(looks(region))
    for spec in sources:
        spoken_of = {c.name for c in spec.landed if c.pii or c.declassified}
        for name, texts in sorted(values[spec.name].items()):
            if name in spoken_of:
                continue
            table = f"bronze.{spec.name}"
            for what, tag, count, judged in (*_looking(texts, ways), *_shared(texts, known)):
                yield Finding(table, name, what, count, judged, _next_step(spec, name, tag))


def _landed_values(cursor: Any, spec: TableSpec, rows: int) -> dict[str, pl.Series]:
    """Landed column -> its distinct values in a sample of the rows; those of `_extra` as well.

    Args:
        spec: The typed table that the source feeds.
    """
    bronze = bronze_spec(spec)
    cursor.execute(
        "select coalesce(sum(rows + rows_superseded), 0)::bigint from meta.versions "
        "where table_name = %s and is_current",
        (bronze.full_name,),
    )
    (stored,) = cursor.fetchone()
    if not stored:
        return {}
    # Whole blocks: a sample by rows reads them all.
    some = sql.SQL("tablesample system ({}) repeatable (0)").format(
        sql.Literal(min(100.0, 100.0 * rows / stored))
    )
    pairs = [
        sql.SQL("({}, {})").format(sql.Literal(c.name), sql.Identifier(c.name)) for c in spec.landed
    ]
    cursor.execute(
        sql.SQL(
            "select name, array_agg(distinct value) from (select name, left(value, {length}) as "
            "value from (select * from {table} {some}) as s cross join lateral (values {pairs} "
            "union all select key, value from jsonb_each_text(s._extra)) as v (name, value) "
            "where value ~ '[^[:space:]]') as found group by name"
        ).format(
            length=sql.Literal(_SHOWN_CHARACTERS),
            table=stored_name(bronze),
            some=some,
            pairs=sql.SQL(", ").join(pairs),
        )
    )
    return {name: pl.Series(found, dtype=pl.String) for name, found in cursor.fetchall()}


def _looking(texts: pl.Series, ways: list[Look]) -> Iterator[tuple[str, str, int, int]]:
    """(What, tag, values that look so, of how many) of the look that most of the values have."""
    judged = texts.str.strip_chars()
    if len(judged) > _MOST_JUDGED:
        judged = judged.sample(_MOST_JUDGED, seed=0)
    counts = {look: int(look.finds(judged).sum()) for look in ways}
    believed = [look for look, count in counts.items() if look.is_believed(count, len(judged))]
    if believed:
        look = max(believed, key=counts.__getitem__)
        yield look.what, look.tag, counts[look], len(judged)


def _shared(
    texts: pl.Series, known: Mapping[tuple[str, str], pl.Series]
) -> Iterator[tuple[str, str, int, int]]:
    """The same where the values are those of a tagged column: of the one that has the most."""
    own = _telling(texts)
    counts = {column: int(own.is_in(theirs.implode()).sum()) for column, theirs in known.items()}
    if not counts:
        return
    (kind, column), count = max(counts.items(), key=lambda item: item[1])
    if is_enough(count, len(own), _SAME_SHARE):
        yield f"the values of {column}", f'pii="{kind}"', count, len(own)


def _telling(texts: pl.Series) -> pl.Series:
    """Those of the texts that say something about where they come from, in lower case."""
    lower = texts.str.strip_chars().str.to_lowercase().unique()
    return lower.filter(lower.str.contains(_TELLING))


def _next_step(spec: TableSpec, name: str, tag: str) -> str:
    contract = f"contracts/silver/{spec.name}.py"
    if name in {c.name for c in spec.landed}:
        return f'{contract}: give {name} {tag}, or declassified="why it is not"'
    return f"{contract}: no contract knows {name}; declare it with {tag}, or have it left out"
