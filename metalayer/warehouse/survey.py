"""What a stage holds: counted, fingerprinted, and looked over for suspects, in one pass.

Does not belong here: judging the suspects (`violations.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from psycopg2 import sql

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
        fingerprint: Two hashes of 64 bits over all of them.
    """

    rows: int = 0
    superseded: int = 0
    fingerprint: tuple[int, int] = (0, 0)

    def __add__(self, other: Tally) -> Tally:
        """These rows and others."""
        first, second = (a ^ b for a, b in zip(self.fingerprint, other.fingerprint, strict=True))
        return Tally(self.rows + other.rows, self.superseded + other.superseded, (first, second))

    @property
    def data_version(self) -> str:
        """Equal for equal rows, and in practice for no others."""
        first, second = self.fingerprint
        return f"{self.rows:x}-{first:016x}{second:016x}"


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
    equal values equally (1.0 and 1.00), and two seeds make 128 bits.

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
    superseded = "count(*) filter (where not _is_latest)" if spec.layer == "bronze" else "0"
    cursor.execute(
        sql.SQL(
            "select c.relname, g.is_suspect, g.rows, g.superseded, g.first, g.second from ("
            "select s.leaf, ({suspect}) is true as is_suspect, count(*) as rows, "
            "{superseded} as superseded, bit_xor(hash_record_extended({row}, 0)) as first, "
            "bit_xor(hash_record_extended({row}, 1)) as second "
            "from ({rows}) as s where {condition} group by 1, 2"
            ") as g join pg_class as c on c.oid = g.leaf"
        ).format(
            suspect=suspect(stage),
            superseded=sql.SQL(superseded),
            row=sql.SQL("row({})").format(identifiers(content)),
            rows=sql.SQL(" union all ").join(
                sql.SQL("select tableoid as leaf, * from {}").format(table) for table in tables
            ),
            condition=suspect(stage) if only_suspects else sql.SQL("true"),
        )
    )
    found: dict[str, dict[bool, Tally]] = {}
    for leaf, is_suspect, rows, replaced, first, second in cursor.fetchall():
        found.setdefault(leaf, {})[is_suspect] = Tally(
            rows, replaced, (first & _MASK, second & _MASK)
        )
    return found
