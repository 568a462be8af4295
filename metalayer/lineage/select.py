"""One SELECT of `sql/`: read, understood, and rendered for PostgreSQL.

The file names real tables and takes a window of months through `:start` and `:end`. From its text
alone come the upstream tables and how far back each is read. Rendering turns the portable
`try_cast`, `try_phone` and `surrogate_key` into MetaLayer's PostgreSQL functions and, for tables
fed from landed text, adds one hidden column that reports every cast that failed. What is encrypted
was typed before it was: there the same words only tell whether that worked.

Belongs here: text in, text and facts out. Does not belong here: connections, or column lineage
(see `columns.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from pathlib import Path

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from metalayer.contracts.contract import ColumnSpec, TableSpec
from metalayer.errors import ContractError

#: Hidden column of a staged row: its failed casts, as `column US value` records joined by RS.
FAILED_CASTS = "_failed_casts"
RECORD_SEPARATOR, UNIT_SEPARATOR = "\x1e", "\x1f"
_SHOWN_OF_A_VALUE = 200
_TRY_PHONE = "try_phone"
#: What `meta.clean_text` takes away.
_BLANKS = " \t\r\n\u00a0"

_CASTS = {
    exp.DataType.Type.BIGINT: "meta.try_bigint",
    exp.DataType.Type.DECIMAL: "meta.try_numeric",
    exp.DataType.Type.DATE: "meta.try_date",
    exp.DataType.Type.TIMESTAMP: "meta.try_timestamp",
    exp.DataType.Type.BOOLEAN: "meta.try_boolean",
}


class Reach(StrEnum):
    """Which months of an upstream table one month of this table is made from."""

    SAME = "same"  # the same month
    BEFORE = "before"  # every month before it
    UP_TO = "up_to"  # every month up to and including it
    ALL = "all"  # every month, later ones too

    def __or__(self, other: str) -> Reach:
        """The smallest reach that covers both."""
        both = {self, Reach(other)}
        if len(both) == 1:
            return self
        return Reach.ALL if Reach.ALL in both else Reach.UP_TO

    def covers(self, read: date, month: date) -> bool:
        """Whether `month` is made from the month `read` of the upstream table."""
        if self is Reach.SAME:
            return read == month
        if self is Reach.BEFORE:
            return read < month
        return self is Reach.ALL or read <= month


@dataclass(frozen=True)
class Select:
    """A parsed SELECT.

    Attributes:
        table: Full name of the table it fills, e.g. "gold.fact_sales".
        path: Its file.
        text: The file's text.
        inputs: Upstream table -> how far back it is read.
    """

    table: str
    path: Path
    text: str
    inputs: Mapping[str, Reach]
    tree: exp.Query = field(repr=False, compare=False)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the columns it returns, in order."""
        return tuple(self.tree.named_selects)


def parse_select(path: Path, table: TableSpec, specs: Mapping[str, TableSpec]) -> Select:
    """Read the SELECT that fills `table` from `path`; `specs` are all tables by full name.

    Raises:
        ContractError: naming file, cause and fix, when the file is not one SELECT over known
            tables, or its columns are not the contract's.
    """
    where = f"sql/{table.layer}/{path.name}"
    text = path.read_text(encoding="utf-8")
    try:
        statements = [s for s in sqlglot.parse(text, read="postgres") if s is not None]
    except SqlglotError as error:
        raise ContractError(f"{where} is not valid SQL: {error}", "Mend the statement") from error
    if len(statements) != 1 or not isinstance(statements[0], exp.Query):
        raise ContractError(f"{where} is not one SELECT", "Keep a single SELECT in the file")
    tree = statements[0]
    _refuse_unknown_columns(tree, table, where)
    _refuse_what_cannot_be_rendered(tree, table, where)
    _refuse_looking_into_sealed(tree, specs, where)
    return Select(table.full_name, path, text, _inputs(tree, table, specs, where), tree)


def render(
    select: Select,
    table: TableSpec,
    specs: Mapping[str, TableSpec],
    start: date,
    end: date,
    only: Sequence[str] | None = None,
) -> str:
    """The SELECT as PostgreSQL text for the months `[start, end)`.

    Args:
        only: Values, as text, of the column that the table's rows follow: of all inputs the rows
            with these are read, and no others.

    The columns are the contract's stored ones, in order; a table fed from landed files has
    `FAILED_CASTS` besides.
    """
    tree = select.tree.copy()
    for placeholder in list(tree.find_all(exp.Placeholder)):
        day = {"start": start, "end": end}[placeholder.name]
        placeholder.replace(exp.cast(exp.Literal.string(day.isoformat()), "date"))
    read = {column.name for column in tree.find_all(exp.Column)}
    for source in [t for t in tree.find_all(exp.Table) if _full_name(t) in specs]:
        upstream = specs[_full_name(source)]
        _blank_null_tokens(source, table, upstream)
        reading = _read_stored(source, upstream, read)
        if only is not None:
            _read_only(reading, upstream, table, only)
    casts = _track_casts(tree, table) if table.source is not None else None
    inputs = [specs[name] for name in select.inputs]
    _read_sealed(tree, sealed_names(select.tree, inputs))
    portable = tree.transform(_to_postgres)
    sql = portable.sql(dialect="postgres", pretty=True, comments=False)
    if casts is None:
        return sql
    return _with_failed_casts(sql, table, casts)


def transpile_to_spark(select: Select) -> str:
    """The SELECT as Spark SQL, raising `SqlglotError` where Spark has no equivalent."""
    tree = select.tree.copy()
    for word in tree.find_all(exp.Initcap):
        # PostgreSQL begins a word after any punctuation, Spark only after a space.
        word.set("expression", None)
    return tree.sql(dialect="spark", pretty=True, unsupported_level=sqlglot.ErrorLevel.RAISE)


def _inputs(
    tree: exp.Query, table: TableSpec, specs: Mapping[str, TableSpec], where: str
) -> dict[str, Reach]:
    inputs: dict[str, Reach] = {}
    local = {cte.alias for cte in tree.find_all(exp.CTE)}
    for source in tree.find_all(exp.Table):
        name = _full_name(source)
        if not source.db and (source.name in local or isinstance(source.this, exp.Func)):
            continue
        if name == table.full_name:
            raise ContractError(f"{where} reads its own table", "Read the tables it is made from")
        if name not in specs:
            known = ", ".join(sorted(specs))
            raise ContractError(f"{where} reads the unknown table '{name}'", f"Known are {known}")
        reach = _reach(source, specs[name].month_column)
        inputs[name] = inputs[name] | reach if name in inputs else reach
    return inputs


def _reach(source: exp.Table, month_column: str) -> Reach:
    """How the query block that reads `source` bounds its month column by the window."""
    block = source.find_ancestor(exp.Select)
    where = block.args.get("where") if block is not None else None
    bounds: set[tuple[type, str]] = set()
    for condition in _conjuncts(where.this) if where is not None else ():
        left, right = condition.args.get("this"), condition.args.get("expression")
        if (
            isinstance(left, exp.Column)
            and left.name == month_column
            and left.table in ("", source.alias_or_name)
            and isinstance(right, exp.Placeholder)
        ):
            bounds.add((type(condition), right.name))
    if (exp.LT, "start") in bounds:
        return Reach.BEFORE
    if (exp.LT, "end") in bounds:
        return Reach.SAME if (exp.GTE, "start") in bounds else Reach.UP_TO
    return Reach.ALL


def _conjuncts(condition: exp.Expr) -> list[exp.Expr]:
    return list(condition.flatten()) if isinstance(condition, exp.And) else [condition]


def _refuse_unknown_columns(tree: exp.Query, table: TableSpec, where: str) -> None:
    outputs = tuple(tree.named_selects)
    declared = tuple(c.name for c in table.stored)
    if outputs == declared:
        return
    contract = f"contracts/{table.layer}/{table.name}.py"
    for name in outputs:
        if name not in declared:
            raise ContractError(
                f"{where} selects '{name}', which {contract} does not declare",
                "Add it there or drop it here",
            )
    for name in declared:
        if name not in outputs:
            raise ContractError(
                f"{where} does not select '{name}', which {contract} declares",
                "Select it here or drop it there",
            )
    raise ContractError(
        f"{where} selects its columns in another order than {contract} declares them",
        f"Select {', '.join(declared)}",
    )


def _refuse_what_cannot_be_rendered(tree: exp.Query, table: TableSpec, where: str) -> None:
    """What `render` would stumble over: told when the file is read, not when it is built."""
    for word in tree.find_all(exp.Placeholder):
        if word.name not in ("start", "end"):
            raise ContractError(
                f"{where} uses :{word.name}, which nothing gives a value",
                "Use :start and :end, the first days of the window and of the month after it",
            )
    for cast in tree.find_all(exp.TryCast):
        if cast.to.this not in _CASTS:
            raise ContractError(
                f"{where} has a try_cast to {cast.to.sql('postgres')}, which is not supported",
                "Cast to bigint, numeric(p, s), date, timestamp or boolean",
            )
    if table.source is not None:
        _track_casts(tree.copy(), table)


def _full_name(source: exp.Table) -> str:
    return f"{source.db}.{source.name}" if source.db else source.name


def _blank_null_tokens(source: exp.Table, table: TableSpec, upstream: TableSpec) -> None:
    """Read the contract's null tokens as NULL, where a landed column may hold them."""
    tokens = {c.name: c.null_tokens for c in table.landed if c.null_tokens and not c.sealed_type}
    if upstream.layer != "bronze" or not tokens:
        return
    columns = [_untokened(c, tokens.get(c.name, ())) for c in upstream.columns]
    # The subquery is pulled up by the planner, so partitions are still pruned by the outer WHERE.
    reading = exp.select(*columns, dialect="postgres").from_(
        exp.Table(
            this=exp.to_identifier(upstream.stored_name), db=exp.to_identifier(upstream.layer)
        )
    )
    source.replace(reading.subquery(source.alias_or_name))


def _read_stored(source: exp.Table, upstream: TableSpec, read: set[str]) -> exp.Expr:
    """Read the stored rows of a table whose name is a view, never the view.

    That would mask what is read, and compute derived columns over all rows, before any month is
    left out. Those that are asked for are computed here.
    """
    if upstream.stored_name == upstream.name:
        return source
    name = source.alias_or_name
    source.set("this", exp.to_identifier(upstream.stored_name))
    source.set("alias", exp.TableAlias(this=exp.to_identifier(name)))
    if not any(c.derived and c.name in read for c in upstream.columns):
        return source
    columns = [
        exp.alias_(sqlglot.parse_one(c.derived, read="postgres"), c.name, quoted=True)
        if c.derived
        else exp.column(c.name, quoted=True)
        for c in upstream.columns
    ]
    plain = exp.Table(this=source.this.copy(), db=source.args["db"].copy())
    return source.replace(exp.select(*columns).from_(plain).subquery(name))


def _read_only(
    source: exp.Expr, upstream: TableSpec, table: TableSpec, values: Sequence[str]
) -> None:
    """Read no rows but those with one of the values in the column that `table` follows."""
    assert table.rows_follow is not None
    column = upstream.column(table.rows_follow)
    listed = [exp.cast(exp.Literal.string(value), column.type) for value in values]
    name = source.alias_or_name
    plain = (
        exp.Table(this=source.this.copy(), db=source.args["db"].copy())
        if isinstance(source, exp.Table)
        else source.copy()
    )
    reading = exp.select("*").from_(plain).where(exp.column(column.name, quoted=True).isin(*listed))
    # Pulled up by the planner, so partitions are still pruned by the outer WHERE.
    source.replace(reading.subquery(name))


def _untokened(column: ColumnSpec, tokens: tuple[str, ...]) -> str:
    name = exp.to_identifier(column.name, quoted=True).sql("postgres")
    if not tokens:
        return name
    listed = ", ".join(exp.Literal.string(t.upper()).sql("postgres") for t in tokens)
    # Most values begin unlike any token, and unlike what may stand around it: one look is enough.
    first = {ord(letter) for token in tokens for letter in token[:1].upper() + token[:1].lower()}
    begins = ", ".join(str(code) for code in sorted(first.union(map(ord, _BLANKS))))
    return (
        f"case when ascii({name}) in ({begins}) "
        f'and upper(meta.clean_text({name}) collate "C") in ({listed}) '
        f"then null else {name} end as {name}"
    )


@dataclass(frozen=True)
class _Cast:
    column: str  # output column the cast contributes to
    result: str  # column that holds the cast's result
    source: str  # hidden column that holds the text


def _track_casts(tree: exp.Query, table: TableSpec) -> list[_Cast]:
    """Make the final select return, besides its columns, the input of every cast."""
    where = f"sql/{table.layer}/{table.name}.sql"
    plain = isinstance(tree, exp.Select) and not any(
        tree.args.get(a) for a in ("group", "distinct", "having", "limit")
    )
    inside = [] if not isinstance(tree, exp.Select) else list(tree.expressions)
    nodes = [(p, n) for p in inside for n in p.find_all(exp.TryCast)]
    if not plain or len(nodes) != len(list(tree.find_all(exp.TryCast))):
        raise ContractError(
            f"{where} casts landed text outside a plain final select",
            "Move every try_cast to the final select, without group by or distinct",
        )
    assert isinstance(tree, exp.Select)
    whole = {node.sql() for projection, node in nodes if projection.unalias() is node}
    casts: list[_Cast] = []
    for number, (projection, node) in enumerate(nodes):
        output = projection.alias_or_name
        is_whole = projection.unalias() is node
        if not is_whole and node.sql() in whole:
            continue  # the same cast is a column of its own, which tells of it
        result = output if is_whole else f"_cast_{number}"
        casts.append(_Cast(output, result, f"_source_{number}"))
        tree.select(exp.alias_(node.this.copy(), f"_source_{number}"), copy=False)
        if result != output:
            tree.select(exp.alias_(node.copy(), result), copy=False)
    return casts


def _read_sealed(tree: exp.Query, sealed: set[str]) -> None:
    """Have what types a landed text not look into one that is encrypted: it was typed before."""
    for word in [*tree.find_all(exp.TryCast), *tree.find_all(exp.Anonymous)]:
        if isinstance(word, exp.Anonymous) and word.name.lower() != _TRY_PHONE:
            continue
        argument = word.this if isinstance(word, exp.TryCast) else word.expressions[0]
        if carries_sealed(argument, sealed):
            well_sealed = exp.Anonymous(this="meta.well_sealed", expressions=[argument.copy()])
            word.replace(well_sealed)
    for word in list(tree.find_all(exp.Lower)):
        if carries_sealed(word.this, sealed):
            word.replace(word.this.copy())


def sealed_names(tree: exp.Query, inputs: Iterable[TableSpec]) -> set[str]:
    """Names under which a SELECT has encrypted values, in its inputs or in a part of it."""
    names = {column.name for spec in inputs for column in spec.sealed}
    while names:
        passed_on = {
            projection.alias_or_name
            for query in tree.find_all(exp.Select)
            for projection in query.expressions
            if carries_sealed(projection, names)
        }
        if passed_on <= names:
            break
        names |= passed_on
    return names


def carries_sealed(made: exp.Expr, names: Collection[str]) -> bool:
    """Whether an expression gives one of the encrypted values with these names, or NULL."""
    match made:
        case exp.Column():
            return made.name in names
        case exp.Case():
            results = [branch.args.get("true") for branch in made.args["ifs"]]
            results.append(made.args.get("default"))
            return any(r is not None and carries_sealed(r, names) for r in results)
        case exp.Coalesce():
            return any(carries_sealed(e, names) for e in (made.this, *made.expressions))
        case exp.Anonymous():
            is_word = made.name.lower() == _TRY_PHONE and bool(made.expressions)
            return is_word and carries_sealed(made.expressions[0], names)
        case (
            exp.Alias() | exp.Paren() | exp.Trim() | exp.Nullif() | exp.TryCast() | exp.Lower()
            | exp.Window() | exp.Lag() | exp.Lead() | exp.FirstValue() | exp.LastValue()
        ):  # fmt: skip
            return carries_sealed(made.this, names)
    return False


#: What may be done with an encrypted value: it is passed on, compared, counted, or found missing.
_DONE_WITH_SEALED = (
    exp.Alias, exp.Paren, exp.Trim, exp.Nullif, exp.TryCast, exp.Window, exp.Lag, exp.Lead,
    exp.FirstValue, exp.LastValue, exp.Coalesce, exp.Case, exp.If, exp.Is, exp.EQ, exp.NEQ,
    exp.NullSafeEQ, exp.NullSafeNEQ, exp.In, exp.Tuple, exp.Count, exp.Distinct, exp.Select,
    exp.Group, exp.Ordered, exp.Order, exp.Join, exp.Where,
)  # fmt: skip


def _refuse_looking_into_sealed(
    tree: exp.Query, specs: Mapping[str, TableSpec], where: str
) -> None:
    inputs = [specs[_full_name(t)] for t in tree.find_all(exp.Table) if _full_name(t) in specs]
    names = sealed_names(tree, inputs)
    emails = {c.name for spec in inputs for c in spec.sealed if c.pii == "email"}
    for column in tree.find_all(exp.Column) if names else ():
        parent = column.parent
        if column.name not in names or parent is None or isinstance(parent, _DONE_WITH_SEALED):
            continue
        if isinstance(parent, exp.Anonymous) and parent.name.lower() == _TRY_PHONE:
            continue
        # An address is in lower case before it is encrypted.
        if isinstance(parent, exp.Lower) and column.name in emails:
            continue
        raise ContractError(
            f"{where} looks into {column.name}, which is encrypted: {parent.sql('postgres')}",
            "Only pass it on, compare it or ask whether it is there; or take encrypted=True off",
        )


def _with_failed_casts(sql: str, table: TableSpec, casts: list[_Cast]) -> str:
    columns = ",\n  ".join(f'"{c.name}"' for c in table.stored)
    failures = ",\n    ".join(
        f'case when "{c.result}" is null and meta.clean_text({c.source}) is not null then '
        f"'{c.column}' || chr(31) || left(translate({c.source}, chr(30) || chr(31), '  '), "
        f"{_SHOWN_OF_A_VALUE}) end"
        for c in casts
    )
    problem = f"nullif(concat_ws(chr(30),\n    {failures}), '')" if casts else "null::text"
    # `offset 0` keeps the planner from evaluating every cast twice.
    return (
        f"select\n  {columns},\n  {problem} as {FAILED_CASTS}\nfrom (\n{sql}\noffset 0\n) as typed"
    )


def _to_postgres(node: exp.Expr) -> exp.Expr:
    if isinstance(node, exp.TryCast):
        parameters = [exp.Literal.number(p.name) for p in node.to.expressions]
        return exp.Anonymous(this=_CASTS[node.to.this], expressions=[node.this, *parameters])
    if isinstance(node, exp.Anonymous) and node.name.lower() == _TRY_PHONE:
        return exp.Anonymous(this="meta.try_phone", expressions=node.expressions)
    if isinstance(node, exp.Anonymous) and node.name.lower() == "surrogate_key":
        texts = [exp.cast(e, "text") for e in node.expressions]
        return exp.Anonymous(this="meta.surrogate_key", expressions=texts)
    return node
