"""What a personal value is shown as, by kind: the one place that says so, as SQL.

A mask is one expression over the plain value, made of PostgreSQL's own functions only: it raises
for no value, needs no right on a function of ours, and costs no call into SQL or PL/pgSQL. Whether
a reader gets the mask or the plain value is asked once a statement, by a subquery on `meta.reader`
that does not depend on the row.

Does not belong here: the views that use it (`warehouse/ddl.py`), or who may read (`roles.py`).
"""

from __future__ import annotations

from psycopg2 import sql

from metalayer.contracts.contract import ColumnSpec, TableSpec

#: Shown where nothing of a value may be.
HIDDEN = "***"
_READER = "(select {} from meta.reader)"
# Columns that no contract knows may hold anything.
_UNKNOWN = "_extra"

# Kind of personal data -> mask of a text `{v}`. Whoever is in none of them is hidden whole.
_TEXTS = {
    # Half of a keyed hash: equal names stay equal, in every table of the warehouse. Behind 256
    # secret bits MD5 is not to be turned back by trying names, at a fifth of SHA-256's cost.
    "name": "left(md5({key} || {v}), 16)",
    # What stands behind the last @; what has none is no address, and may be anything.
    "email": "case when strpos({v}, '@') > 1 "
    "then left({v}, 1) || '***@' || split_part({v}, '@', -1) "
    "when {v} is not null then '***' end",
    "phone": "case when length({v}) > 4 then '***' || right({v}, 2) "
    "when {v} is not null then '***' end",
    # A postal code of digits; a city or a street is hidden.
    "address": "case when ltrim({v}, '0123456789- ') = '' then left({v}, 3) || '**' "
    "when {v} is not null then '***' end",
}
# Of an encrypted value: its hint, which is no more than the mask of the plain one shows. What was
# there before the column was encrypted has none, and is hidden.
_SEALED = {
    "phone": "case when {v} ~ '^[0-9]+~' then '***' || split_part({v}, '~', 1) "
    "when {v} is not null then '***' end",
    "birth_date": "case when {v} ~ '^[0-9]+~' then split_part({v}, '~', 1) "
    "when {v} is not null then '***' end",
}
# Layers in which masks are stored beside the values: what many read, and often.
_STORED_IN = ("gold",)
_DAYS = {"birth_date": "date_trunc('year', {v}::timestamp)::{type}"}


def is_personal(spec: TableSpec) -> bool:
    """Whether the table has a column whose values are not for everyone."""
    return any(c.pii for c in spec.columns)


def is_open(column: ColumnSpec) -> bool:
    """Whether samples and messages, whose readers are not known, may show values of `column`.

    Not those that are personal, that people type, or that no contract knows.
    """
    return not (column.pii or column.is_free_text or column.name == _UNKNOWN)


def may_be_shifted(spec: TableSpec) -> bool:
    """Whether a text delivered for any column may be personal: a shifted row has a name in each."""
    return spec.source is not None and is_personal(spec)


def is_masked(spec: TableSpec, column: ColumnSpec) -> bool:
    """Whether `column` is masked: what is personal, and what may be.

    Where files hold personal data, so may what people typed into them, and what no contract knows.
    """
    is_delivered = spec.layer == "bronze" and is_personal(spec)
    return bool(column.pii) or (is_delivered and not is_open(column))


def shown(
    spec: TableSpec,
    column: ColumnSpec,
    value: sql.Composable,
    masked: sql.Composable | None = None,
) -> sql.Composable:
    """What a reader sees of `value`: it, or its mask, as the reader's roles are.

    Args:
        masked: The mask as it is stored, where it is: it may be missing.
    """
    if not is_masked(spec, column):
        return value
    hidden = mask(column, value)
    if masked is not None:
        hidden = sql.SQL("coalesce({}, {})").format(masked, hidden)
    return sql.SQL("case when {} then {} else {} end").format(
        sql.SQL(_READER.format("sees_plain")), value, hidden
    )


def is_stored(spec: TableSpec, column: ColumnSpec) -> bool:
    """Whether the mask of `column` is stored beside it, so that reading it costs no function call.

    Not what is derived on reading, nor a mask that stands for the ciphertext itself: that changes
    when it is sealed with another key.
    """
    lasts = column.sealed_type is None or column.pii in _SEALED
    says_something = column.type in ("text", "jsonb") or column.pii in _DAYS
    return (
        spec.layer in _STORED_IN
        and bool(column.pii)
        and column.derived is None
        and lasts
        and says_something
    )


def mask(column: ColumnSpec, value: sql.Composable) -> sql.Composable:
    """The mask of `value`, of the column's own type; NULL stays NULL."""
    kind = column.pii or "free_text"
    if column.sealed_type is not None:
        # Equal values have equal ciphertext, so what stands for it still joins and counts.
        key = sql.SQL(_READER.format("pseudonym_key"))
        return sql.SQL(_SEALED.get(kind, _TEXTS["name"])).format(v=value, key=key)
    if column.type in ("date", "timestamp") and kind in _DAYS:
        return sql.SQL(_DAYS[kind]).format(v=value, type=sql.SQL(column.type))
    if column.type == "text" and kind in _TEXTS:
        key = sql.SQL(_READER.format("pseudonym_key"))
        return sql.SQL(_TEXTS[kind]).format(v=value, key=key)
    if column.type in ("text", "jsonb"):
        hidden = HIDDEN if column.type == "text" else f'"{HIDDEN}"'
        return sql.SQL("case when {} is not null then {}::{} end").format(
            value, sql.Literal(hidden), sql.SQL(column.type)
        )
    return sql.SQL("null::{}").format(sql.SQL(column.type))
