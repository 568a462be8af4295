"""What a delivered value is copied to another environment as, by kind: one place, as SQL.

A pseudonym is a value of the same kind that works as data: equal values have equal pseudonyms and
different ones differ, so that rows join, count and keep their contracts as they did. It is made
with a key that stays behind, and nothing that is encrypted is opened for it.

    Ann Lee              Kgbpdhmnajoc Fpclkanbhgei   word by word, capitals where they were
    ann@example.com      5d0c1f2e9a7b4c36@example.org
    +12125550187         +13475558812    a valid number that no subscriber has
    1980-05-17           1980-09-02      another day of the year
    90210; Springfield   902hbam; Jmoahbgfnkci
    customer 7           customer 2870193342   a permutation of all numbers

Masks for readers (`masks.py`) say less and do not work as data. Does not belong here: which rows
are copied, and where to (`environment_copy.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg2 import sql

from metalayer.contracts.classification import ANONYMOUS
from metalayer.contracts.contract import ColumnSpec

#: Stands for what a column's type cannot hold, so that it is refused again where it was refused.
UNREADABLE = "unreadable"
#: The key as the statement has it: derived, so that what masks show cannot be told from a copy.
KEY = (
    "select encode(sha256(pseudonym_key || convert_to('copies for environments', 'UTF8')), 'hex') "
    "as key from meta.secret"
)
#: Whoever reads a copy can tell what this many people have in common, and nothing of any of them.
SHARED_BY = 20

_HASH = "md5(k.key || {kind} || {v})"
# Of the letters a to p: what has no digits is taken for no number, and no postal code.
_LETTERS = "translate(left({hash}, {length}), '0123456789', 'ghijklmnop')"
_WORD = (
    "case when w = '' then '' when w = lower(w) then {p} when w = upper(w) then upper({p}) "
    "when w = initcap(w) then initcap({p}) else left({p}, 6) || upper(substr({p}, 7)) end"
)
_WORDS = (
    "(select string_agg({word}, ' ' order by n) "
    "from unnest(string_to_array({v}, ' ')) with ordinality as words (w, n))"
)
_NUMBER = "('x' || left({hash}, 15))::bit(60)::bigint"
# No subscriber has a number of exchange 555.
_EXCHANGE, _LINES = "555", 10_000
# The rounds of a Feistel network; NIST's FF1 takes as many.
_ROUNDS = 10
_ROUND = (
    "select hi, r as l, l # ('x' || left(md5(k.key || ' number {number} ' || hi || ' ' || r), 4))"
    "::bit(16)::bigint as r from ({before}) as round_{number} offset 0"
)
_JOINED = "(select ((hi << 32) | (l << 16) | r) + 1 from ({halves}) as permuted)"


@dataclass(frozen=True)
class Delivered:
    """A delivered value as SQL has it.

    Attributes:
        raw: The text as it lies in bronze; sealed where the column is encrypted.
        tidy: The same as its typed table has it, as text; where that did not take the row, only
            without whitespace around it, and NULL where it stands for no value.
        is_taken: Whether the typed table took the row.
        is_shared: Whether enough people have the value in common.
    """

    raw: sql.Composable
    tidy: sql.Composable
    is_taken: sql.Composable
    is_shared: sql.Composable


def pseudonym(column: ColumnSpec, value: Delivered, region_codes: list[str]) -> sql.Composed:
    """What stands for a value of a personal column. The statement has the key as `k.key`.

    Args:
        column: Of the typed table.
        region_codes: Area codes of the numbers that stand for phone numbers.
    """
    kind = column.pii or "free_text"
    source = value.tidy
    if column.sealed_type is not None:
        source = sql.SQL("nullif({}, '')").format(value.raw)
    type_ = column.sealed_type or column.type
    if kind == "phone" and type_ == "text":
        return _phone(column, value, region_codes)
    if type_ != "text":
        return _typed(column, type_, value)
    make = {"name": _name, "email": _email, "address": _address}.get(kind, _whole)
    if column.sealed_type is not None and kind != "email":
        make = _whole  # its words cannot be told apart
    return make(source)


def number_pseudonym(column: ColumnSpec, value: Delivered) -> sql.Composed:
    """What stands for the number of a person; what stands for nobody stays."""
    if column.type != "bigint":
        return sql.SQL("case when {v} = {nobody} then {v} else left({hash}, 16) end").format(
            v=value.tidy, nobody=sql.Literal(ANONYMOUS), hash=_hash("number", value.tidy)
        )
    return sql.SQL(
        "(select case when n < 1 then n::text when n is not null then {permuted}::text "
        "when meta.clean_text({raw}) is not null then {unreadable} end "
        "from (select meta.try_bigint({raw}) as n offset 0) as numbered)"
    ).format(raw=value.raw, permuted=sql.SQL(_permuted("n")), unreadable=sql.Literal(UNREADABLE))


def free_text_pseudonym(value: Delivered) -> sql.Composed:
    """What stands for a text that people typed: itself, where many have it in common."""
    return sql.SQL("case when {shared} then {v} else {name} end").format(
        shared=value.is_shared, v=value.tidy, name=_name(value.tidy)
    )


def checked(column: ColumnSpec, value: Delivered) -> sql.Composed:
    """A value that is not personal of a row in which values may stand in wrong columns.

    It passes where it is of its column's type or, for a text, where the contract took it.
    """
    if column.type == "text":
        return sql.SQL("case when {taken} then {raw} else {whole} end").format(
            taken=value.is_taken, raw=value.raw, whole=_whole(value.tidy)
        )
    return sql.SQL(
        "case when {typed} is not null or meta.clean_text({raw}) is null then {raw} "
        "else {unreadable} end"
    ).format(
        typed=_as_type(column.type, value.raw),
        raw=value.raw,
        unreadable=sql.Literal(UNREADABLE),
    )


def _hash(kind: str, value: sql.Composable) -> sql.Composed:
    return sql.SQL(_HASH).format(kind=sql.Literal(f" {kind} "), v=value)


def _letters(kind: str, value: sql.Composable, length: int = 12) -> sql.Composed:
    return sql.SQL(_LETTERS).format(hash=_hash(kind, value), length=sql.Literal(length))


def _name(value: sql.Composable) -> sql.Composed:
    """Word by word: a name stays the sum of its parts, whichever table it stands in."""
    word = sql.SQL(_WORD).format(p=_letters("name", sql.SQL("lower(w)")))
    return sql.SQL(_WORDS).format(word=word, v=value)


def _whole(value: sql.Composable) -> sql.Composed:
    return sql.SQL("initcap({})").format(_letters("text", value))


def _email(value: sql.Composable) -> sql.Composed:
    address = sql.SQL("lower({})").format(value)
    return sql.SQL("left({hash}, 16) || {domain}").format(
        hash=_hash("email", address), domain=sql.Literal("@example.org")
    )


def _address(value: sql.Composable) -> sql.Composed:
    """Of a postal code its first three digits stay, which tell a region."""
    return sql.SQL(
        "case when ltrim({v}, '0123456789- ') = '' and length({v}) > 4 "
        "then left({v}, 3) || {letters} else {name} end"
    ).format(v=value, letters=_letters("address", value, 4), name=_name(value))


def _phone(column: ColumnSpec, value: Delivered, region_codes: list[str]) -> sql.Composed:
    is_valid, of = _validity(column, sql.SQL("meta.try_phone({})").format(value.raw), value.raw)
    number = sql.SQL(_NUMBER).format(hash=_hash("phone", of))
    return _where_valid(
        is_valid,
        sql.SQL(
            "'+1' || ({codes}::text[])[1 + {n} / {lines} % {count}] || {exchange} "
            "|| lpad(({n} % {lines})::text, 4, '0')"
        ).format(
            codes=sql.Literal(region_codes),
            n=number,
            lines=sql.Literal(_LINES),
            count=sql.Literal(len(region_codes)),
            exchange=sql.Literal(_EXCHANGE),
        ),
        value.raw,
    )


def _typed(column: ColumnSpec, type_: str, value: Delivered) -> sql.Composed:
    """A personal value that is no text; of a day the year stays."""
    typed = _as_type(type_, value.raw)
    is_valid, of = _validity(column, typed, value.raw)
    number = sql.SQL(_NUMBER).format(hash=_hash("value", sql.SQL("{}::text").format(of)))
    if type_ in ("date", "timestamp"):
        year = (
            sql.SQL("extract(year from {})::int").format(typed)
            if column.sealed_type is None
            else sql.SQL("coalesce(nullif(split_part({}, '~', 1), ''), '1970')::int").format(of)
        )
        made = sql.SQL("(make_date({year}, 1, 1) + ({n} % 365)::int)::text")
    elif type_ == "boolean":
        year, made = sql.SQL(""), sql.SQL("({n} % 2 = 0)::text")
    elif type_.startswith("numeric"):
        precision, scale = (int(part) for part in type_[8:-1].split(","))
        most = min(10 ** (precision - scale), 10**15)
        year, made = sql.SQL(""), sql.SQL(f"({{n}} % {most})::text")
    else:
        year, made = sql.SQL(""), sql.SQL("{n}::text")
    return _where_valid(is_valid, made.format(n=number, year=year), value.raw)


def _validity(
    column: ColumnSpec, typed: sql.Composable, raw: sql.Composable
) -> tuple[sql.Composable, sql.Composable]:
    """Whether a value is of its column's type, and what its pseudonym is made from."""
    if column.sealed_type is None:
        return sql.SQL("{} is not null").format(typed), typed
    return sql.SQL("meta.well_sealed(nullif({}, '')) is not null").format(raw), raw


def _where_valid(
    is_valid: sql.Composable, made: sql.Composable, raw: sql.Composable
) -> sql.Composed:
    return sql.SQL(
        "case when {valid} then {made} when meta.clean_text({raw}) is not null then {bad} end"
    ).format(valid=is_valid, made=made, raw=raw, bad=sql.Literal(UNREADABLE))


def _as_type(type_: str, raw: sql.Composable) -> sql.Composed:
    """A delivered text as a value of a type; NULL where it is none."""
    word, _, digits = type_.partition("(")
    if word == "numeric":
        call = "meta.try_numeric({}, " + digits
    else:
        function = {
            "bigint": "try_bigint",
            "date": "try_date",
            "timestamp": "try_timestamp",
            "boolean": "try_boolean",
        }.get(word, "any_number")
        call = f"meta.{function}({{}})"
    return sql.SQL(call).format(raw)


def _permuted(n: str) -> str:
    """A number from 1 on, permuted with the key: its lower 32 bits, as the upper ones are.

    A Feistel network over halves of 16 bits (Luby and Rackoff, 1988). Each round is a subquery of
    its own, so that its hash is computed once.
    """
    query = (
        f"select ({n} - 1) >> 32 as hi, (({n} - 1) >> 16) & 65535 as l, ({n} - 1) & 65535 as r "
        "offset 0"
    )
    for number in range(_ROUNDS):
        query = _ROUND.format(number=number, before=query)
    return _JOINED.format(halves=query)
