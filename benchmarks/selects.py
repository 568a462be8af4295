"""The project's own SELECTs as a peer would write them: over all months at once, on clean text.

MetaLayer builds month by month, tracks what came from which delivery and quarantines what it cannot
cast. A script over one full load needs none of that, so it is taken out: the window of months, the
provenance columns, `try_cast` and `_is_latest`. What remains is the domain, and as the peers' SQL
is derived, it never goes stale and is as good as the project's.

Belongs here: trees of SQL in, text out. How a peer loads files and runs statements is its module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from sqlglot import exp, parse_one

from metalayer.catalog import catalog
from metalayer.contracts.contract import TableSpec
from metalayer.warehouse.ddl import next_month

_MONTH = re.compile(r"(\d{4})-(\d{2})")
#: The first 64 bits of the md5 of the parts, as `meta.surrogate_key` has it.
_KEY_IN_POSTGRES = "cast(cast('x' || left(md5({parts}), 16) as bit(64)) as bigint)"
_HALF_OF_64_BITS = 2**63
_KEY_IN_DUCKDB = (
    f"cast(cast(md5_number_upper({{parts}}) as hugeint) - {_HALF_OF_64_BITS} as bigint)"
)
_PHONE = """case
    when d like '+%' and length(d) between 9 and 16 then d
    when d like '+%' then null
    when length(d) = 10 then '+1' || d
    when length(d) = 11 and d like '1%' then '+' || d
    when length(d) between 10 and 17 and d like '00%' then '+' || substring(d, 3)
end"""
#: `try_phone` with the digits computed once for each mention.
_PHONE_IN_POSTGRES = (
    f"(select {_PHONE} from (select "
    "case when {v} like '+%' then '+' else '' end "
    "|| translate({v}, translate({v}, '0123456789', ''), '') as d offset 0) as dialled)"
)
_PHONE_IN_DUCKDB = (
    "list_transform([case when {v} like '+%' then '+' else '' end "
    "|| regexp_replace({v}, '[^0-9]', '', 'g')], "
    f"lambda d: {_PHONE})[1]"
)


@dataclass(frozen=True)
class Months:
    """The half-open range of months that the exports are spread over."""

    start: date
    end: date

    @classmethod
    def counted(cls, start: date, months: int) -> Months:
        """So many months from `start` on."""
        end = start
        for _ in range(months):
            end = next_month(end)
        return cls(start, end)


def built_tables() -> list[TableSpec]:
    """The silver and gold tables, upstream before downstream."""
    return [spec for spec in catalog().specs.values() if spec.layer != "bronze"]


def sources() -> list[TableSpec]:
    """The silver tables that exports feed; the bronze table of each has its name."""
    return list(catalog().sources.values())


def bronze_columns(table: TableSpec) -> list[str]:
    """Columns of a peer's bronze table: the export's, as text, and `month` where files tell it."""
    assert table.source is not None
    month = ["month"] if table.source.kind == "snapshot" else []
    return [column.name for column in table.landed] + month


def months_of_snapshots(table: TableSpec, files: Iterable[Path]) -> dict[Path, date]:
    """File -> the month in its name, for a source whose files are snapshots; else nothing."""
    assert table.source is not None
    if table.source.kind != "snapshot":
        return {}
    found = {file: _MONTH.search(file.name) for file in files}
    return {file: date(int(name[1]), int(name[2]), 1) for file, name in found.items() if name}


def select(
    table: TableSpec,
    months: Months,
    dialect: str,
    source: Callable[[str], str] | None = None,
) -> str:
    """The SELECT that fills `table` in one statement.

    Args:
        months: all there are.
        dialect: "postgres" or "duckdb".
        source: how the text names an upstream table of the given full name; as it is by default.
    """
    tree: exp.Expr = catalog().selects[table.full_name].tree.copy()
    for where in list(tree.find_all(exp.Where)):
        _open_the_window(where)
    for placeholder in list(tree.find_all(exp.Placeholder)):
        day = {"start": months.start, "end": months.end}[placeholder.name]
        placeholder.replace(exp.cast(exp.Literal.string(day.isoformat()), "date"))
    for query in tree.find_all(exp.Select):
        kept = [e for e in query.expressions if not e.alias_or_name.startswith("_")]
        query.set("expressions", kept)
    tree = tree.transform(_plain, dialect)
    named: dict[str, str] = {}
    if source is not None:
        for upstream in tree.find_all(exp.Table):
            if upstream.db:
                mark = f"upstream_{upstream.db}_{upstream.name}"
                named[mark] = source(f"{upstream.db}.{upstream.name}")
                upstream.set("this", exp.to_identifier(mark))
                upstream.set("db", None)
    text = tree.sql(dialect=dialect, pretty=True, comments=False)
    # The longest first: one name may begin another.
    for mark in sorted(named, key=len, reverse=True):
        text = text.replace(mark, named[mark])
    return text


def _open_the_window(where: exp.Where) -> None:
    """Leave out the conditions that all months fulfil; nothing lies before the first month."""
    condition = where.this
    conjuncts = list(condition.flatten()) if isinstance(condition, exp.And) else [condition]
    kept = []
    for each in conjuncts:
        right = each.args.get("expression")
        if isinstance(each, exp.Column) and each.name == "_is_latest":
            continue
        if isinstance(right, exp.Placeholder):
            if isinstance(each, exp.LT) and right.name == "start":
                where.set("this", exp.false())
                return
            continue
        kept.append(each)
    if kept:
        where.set("this", exp.and_(*kept))
    else:
        where.pop()


def _plain(node: exp.Expr, dialect: str) -> exp.Expr:
    if isinstance(node, exp.TryCast):
        return exp.cast(node.this, node.to)
    if isinstance(node, exp.Anonymous) and node.name.lower() == "surrogate_key":
        template = _KEY_IN_DUCKDB if dialect == "duckdb" else _KEY_IN_POSTGRES
        parts = " || '|' || ".join(part.sql(dialect) for part in node.expressions)
        return parse_one(template.format(parts=parts), read=dialect)
    if isinstance(node, exp.Anonymous) and node.name.lower() == "try_phone":
        template = _PHONE_IN_DUCKDB if dialect == "duckdb" else _PHONE_IN_POSTGRES
        return parse_one(template.format(v=node.expressions[0].sql(dialect)), read=dialect)
    if isinstance(node, exp.Initcap):
        # DuckDB has none; sqlglot's stand-in for it is a page long and slow.
        return exp.Anonymous(this="initcap", expressions=[node.this])
    return node
