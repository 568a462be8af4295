"""Grants carried across a migration that makes a table's name anew.

PostgreSQL forgets who may read a view when it is dropped, and a grant on a table goes with the
table when that is renamed. Here readers keep the name they were given, and lose the stored rows
behind it.

Does not belong here: what anybody should have (`roles.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg2 import sql

from metalayer.contracts.contract import TableSpec

PUBLIC = "public"
_READ = "SELECT"


@dataclass(frozen=True)
class Held:
    """A privilege that somebody other than the owner has on a table or view."""

    schema: str
    name: str
    kind: str
    grantee: str
    privilege: str


def grants_on(cursor: Any, schemas: Collection[str]) -> list[Held]:
    """All of them in these schemas; columns that are granted by themselves count as read."""
    cursor.execute(
        "select n.nspname, c.relname, c.relkind::text, coalesce(r.rolname, %(public)s), "
        "a.privilege_type from pg_class as c join pg_namespace as n on n.oid = c.relnamespace "
        "cross join aclexplode(c.relacl) as a left join pg_roles as r on r.oid = a.grantee "
        "where n.nspname = any(%(schemas)s) and c.relkind in ('p', 'v', 'r') "
        "and a.grantee <> c.relowner order by 1, 2, 4, 5",
        {"schemas": sorted(schemas), "public": PUBLIC},
    )
    return [Held(*row) for row in cursor.fetchall()]


def keep_grants(cursor: Any, held: Sequence[Held], specs: Sequence[TableSpec]) -> None:
    """Give back what readers of a name had, where it is another relation now."""
    if not held:
        return
    stored: dict[tuple[str, str], str] = {(s.layer, s.name): s.stored_name for s in specs}
    cursor.execute(
        "select n.nspname, c.relname, c.relkind::text from pg_class as c "
        "join pg_namespace as n on n.oid = c.relnamespace where n.nspname = any(%s)",
        (sorted({h.schema for h in held}),),
    )
    kinds = {(schema, name): kind for schema, name, kind in cursor.fetchall()}
    there = set(grants_on(cursor, {h.schema for h in held}))
    for h in held:
        place = (h.schema, h.name)
        kind = kinds.get(place)
        if h.kind == "p" and kind == "v":
            parent = sql.Identifier(h.schema, stored.get(place, h.name))
            cursor.execute(sql.SQL("revoke all on {} from {}").format(parent, grantee(h.grantee)))
        is_gone = Held(h.schema, h.name, kind or "", h.grantee, h.privilege) not in there
        if kind is not None and h.privilege == _READ and is_gone:
            cursor.execute(
                sql.SQL("grant select on {} to {}").format(
                    sql.Identifier(*place), grantee(h.grantee)
                )
            )


def grantee(name: str) -> sql.Composable:
    """A role as GRANT takes it."""
    return sql.SQL("public") if name == PUBLIC else sql.Identifier(name)
