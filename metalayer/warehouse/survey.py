"""What a stage holds: counted, fingerprinted, and looked over for suspects, in one pass.

Does not belong here: judging the suspects (`violations.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from psycopg2 import sql

from metalayer.contracts.contract import TableSpec
from metalayer.warehouse.ddl import identifiers
from metalayer.warehouse.leaves import LEAVES
from metalayer.warehouse.stage import Stage
from metalayer.warehouse.suspects import suspect

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Tally:
    """Some rows of a month, whatever order they are in.

    Attributes:
        rows: How many.
        superseded: Those of them that a later delivery replaces (bronze keeps them, marked).
        fingerprint: Exclusive or, and sum, of a hash of 64 bits of each.
    """

    rows: int = 0
    superseded: int = 0
    fingerprint: tuple[int, int] = (0, 0)

    def __add__(self, other: Tally) -> Tally:
        """These rows and others."""
        xor = self.fingerprint[0] ^ other.fingerprint[0]
        total = (self.fingerprint[1] + other.fingerprint[1]) & _MASK
        return Tally(self.rows + other.rows, self.superseded + other.superseded, (xor, total))

    @property
    def data_version(self) -> str:
        """Equal for equal rows; of two others once in 2^64."""
        xor, total = self.fingerprint
        return f"{self.rows:x}-{xor:016x}{total:016x}"


def survey(
    cursor: Any,
    stage: Stage,
    leaves: Collection[str] | None = None,
    *,
    only_suspects: bool = False,
) -> dict[str, dict[bool, Tally]]:
    """Leaf -> its rows that keep the contract (False), and those that may not (True).

    Where a row came from is not part of what it says, so a typed table's fingerprint leaves
    provenance out: the same rows delivered again change nothing downstream. PostgreSQL hashes
    equal values equally (1.0 and 1.00).

    Args:
        leaves: Names of leaves to look at; None: all.
        only_suspects: Leave the others out.
    """
    spec = stage.spec
    content = [
        c.name
        for c in spec.stored
        if spec.layer == "bronze" or c.name not in ("_delivery_id", "_line")
    ]
    tables = [stage.parent]
    if leaves is not None:
        tables = [sql.Identifier(LEAVES, name) for name in sorted(leaves)]
    # The offset is a fence: without it PostgreSQL would hash a row for every mention of the hash.
    rows = sql.SQL(
        "(select tableoid as leaf, ({suspect}) is true as is_suspect, {superseded} as superseded, "
        "hash_record_extended(row({content}), 0) as hash from {table} where {condition} offset 0)"
    )
    cursor.execute(
        sql.SQL(
            "select c.relname, g.is_suspect, g.rows, g.superseded, g.xor, g.total from ("
            "select leaf, is_suspect, count(*) as rows, sum(superseded) as superseded, "
            "bit_xor(hash) as xor, sum(hash) as total from ({rows}) as s group by 1, 2"
            ") as g join pg_class as c on c.oid = g.leaf"
        ).format(
            rows=sql.SQL(" union all ").join(
                rows.format(
                    suspect=suspect(stage),
                    superseded=sql.SQL("(not _is_latest)::int" if spec.layer == "bronze" else "0"),
                    content=identifiers(content),
                    table=table,
                    condition=suspect(stage) if only_suspects else sql.SQL("true"),
                )
                for table in tables
            )
        )
    )
    found: dict[str, dict[bool, Tally]] = {}
    for leaf, is_suspect, count, superseded, xor, total in cursor.fetchall():
        fingerprint = (xor & _MASK, int(total) & _MASK)
        found.setdefault(leaf, {})[is_suspect] = Tally(count, superseded, fingerprint)
    return found


def fingerprints(cursor: Any, spec: TableSpec, leaves: Collection[str]) -> dict[str, str]:
    """Leaf of a published month -> the data version that its rows have now.

    Args:
        spec: With the columns that files brought, see `evolve.with_evolved`.
    """
    if not leaves:
        return {}
    # Casts that failed went to the quarantine: a published month has no column for them.
    published = replace(spec, source=None)
    stage = Stage(published, sql.Identifier(LEAVES), {}, "")
    found = survey(cursor, stage, leaves)
    return {leaf: sum(found.get(leaf, {}).values(), Tally()).data_version for leaf in leaves}
