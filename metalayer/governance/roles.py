"""Who may do what with the tables: what contracts want, what there is, the statements between.

The roles are groups without login, `metalayer_<reader>` and `metalayer_pipeline`; people and tools
log in with roles of their own that are members. What a contract does not say is not granted: on
MetaLayer's schemas, tables, columns, sequences and functions nobody but the owner keeps anything
else, PUBLIC nothing at all. Applying is one transaction.

Does not belong here: how values are masked (`masks.py`); who logs in, and how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2 import sql

from metalayer.contracts.contract import READERS, TableSpec
from metalayer.errors import WarehouseError
from metalayer.governance.carrying import PUBLIC, grantee
from metalayer.warehouse.acts import record
from metalayer.warehouse.ddl import as_text
from metalayer.warehouse.leaves import LEAVES

PREFIX = "metalayer_"
PIPELINE, STEWARD = f"{PREFIX}pipeline", f"{PREFIX}steward"
ROLES = (*(f"{PREFIX}{reader}" for reader in READERS), PIPELINE)
_META = "meta"
_APPLY_LOCK = 0x4D4C0012
#: What each reader sees of MetaLayer's own tables; the quarantine holds plain values.
_META_READABLE: Mapping[str, Sequence[str]] = {
    "engineer": ("tables", "versions"),
    "steward": (
        *("tables", "versions", "ledger", "deliveries", "quarantine", "past_quarantine"),
        "keys",
    ),
}
# Nobody gets these, whatever else they may write: the key of the pseudonyms, who was erased or must
# not be, and the audit log, which is written by a function of its own that those may call who may
# see plain values.
_CLOSED = (
    *("secret", "acts", "acts_unsealed", "act_seals", "act_head"),
    *("erased", "erased_salt", "holds"),
)
_RECORDING = "record_act("
_READ = ("SELECT",)
_ROWS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")
# Kind of relation -> what the pipeline's role has on it; views it only reads.
_WRITE = {"r": _ROWS, "p": _ROWS, "S": ("SELECT", "UPDATE", "USAGE")}


@dataclass(frozen=True, order=True)
class Grant:
    """A privilege of a role: on a "schema", "table" (or view), "column", "sequence" or "function".

    `name` is that of the schema, or within the schema; a function's has its argument types.
    """

    grantee: str
    kind: str
    schema: str
    name: str
    privilege: str


@dataclass(frozen=True)
class RolesPlan:
    """Statements in order, each with what it is for: missing roles, surplus, new grants."""

    missing_roles: tuple[str, ...]
    revoked: tuple[Grant, ...]
    granted: tuple[Grant, ...]
    statements: tuple[str, ...]


def plan_roles(cursor: Any, specs: Sequence[TableSpec]) -> RolesPlan:
    """What makes the grants of a warehouse those that the contracts ask for; nothing is changed."""
    schemas = sorted({str(spec.layer) for spec in specs} | {_META, LEAVES})
    cursor.execute("select rolname from pg_roles where rolname = any(%s)", (list(ROLES),))
    there = {name for (name,) in cursor.fetchall()}
    missing = tuple(role for role in ROLES if role not in there)
    relations = _relations(cursor, schemas)
    existing = _existing(cursor, schemas)
    wanted = _wanted(specs, relations, _functions(cursor))
    revoked = tuple(sorted(existing - wanted))
    granted = tuple(sorted(wanted - existing))
    parts = [
        *map(_create_role, missing),
        *(_revoke(g) for g in revoked),
        *_default_privileges(cursor, schemas),
        *_memberships(cursor),
        *_grants(granted),
    ]
    return RolesPlan(missing, revoked, granted, tuple(map(as_text, parts)))


def apply_roles(connection: Any, specs: Sequence[TableSpec]) -> RolesPlan:
    """Make the grants what the contracts say, in the caller's transaction.

    Raises:
        WarehouseError: when roles are missing and the connected role cannot make them, with the
            statements that somebody who can has to run; or when a grant is somebody else's.
    """
    with connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s)", (_APPLY_LOCK,))
        plan = plan_roles(cursor, specs)
        _refuse_without_createrole(cursor, plan.missing_roles)
        for statement in plan.statements:
            try:
                cursor.execute(statement)
            except psycopg2.errors.InsufficientPrivilege as error:
                raise WarehouseError(
                    f"PostgreSQL refuses `{statement}`: {error.diag.message_primary}",
                    "Run `metalayer roles apply` as the role that owns the warehouse's tables",
                ) from None
        left = plan_roles(cursor, specs)
        if left.revoked or left.statements:
            raise WarehouseError(
                "Some privileges could not be taken back, as another role than the owner gave "
                f"them: {'; '.join(left.statements[:5])}",
                "Have that role, or a superuser, revoke them, then apply again",
            )
        if plan.statements:
            details = {"roles_made": list(plan.missing_roles), "granted": len(plan.granted)}
            record(cursor, "grant", "roles", {**details, "revoked": len(plan.revoked)})
    return plan


def _refuse_without_createrole(cursor: Any, missing: Sequence[str]) -> None:
    if not missing:
        return
    cursor.execute(
        "select rolsuper or rolcreaterole, rolname from pg_roles where rolname = current_user"
    )
    may_create, user = cursor.fetchone()
    if not may_create:
        statements = "\n".join(f"  create role {role} nologin;" for role in missing)
        raise WarehouseError(
            f"The role {user} may not create roles, and {', '.join(missing)} are missing",
            f"Have somebody who may (CREATEROLE) run:\n{statements}\nthen apply again",
        )


def _wanted(
    specs: Sequence[TableSpec], relations: Mapping[tuple[str, str], str], functions: Sequence[str]
) -> set[Grant]:
    found = _reading(specs, relations)
    # Views may call them; with nothing to look at they tell nothing.
    callers = {g.grantee for g in found} | {PIPELINE}
    found |= {
        Grant(role, "function", _META, function, "EXECUTE")
        for function in functions
        for role in (callers & {PIPELINE, STEWARD} if function.startswith(_RECORDING) else callers)
    }
    for (schema, name), kind in relations.items():
        found.add(Grant(PIPELINE, "schema", schema, schema, "USAGE"))
        # Months are written through their table.
        is_closed = schema == LEAVES or (schema == _META and name in _CLOSED)
        if not is_closed:
            on = "sequence" if kind == "S" else "table"
            found |= {Grant(PIPELINE, on, schema, name, p) for p in _WRITE.get(kind, _READ)}
    return found


def _reading(specs: Sequence[TableSpec], relations: Mapping[tuple[str, str], str]) -> set[Grant]:
    """What the readers have, of what is there already."""
    open_to: list[tuple[str, str, str]] = [
        (reader, spec.layer, name)
        for spec in specs
        for reader in spec.readers
        for name in (spec.name, *spec.views)
    ]
    open_to += [(reader, _META, name) for reader, names in _META_READABLE.items() for name in names]
    found = set()
    for reader, schema, name in open_to:
        if (schema, name) in relations:
            role = f"{PREFIX}{reader}"
            found.add(Grant(role, "schema", schema, schema, "USAGE"))
            found.add(Grant(role, "table", schema, name, "SELECT"))
    return found


def _relations(cursor: Any, schemas: Sequence[str]) -> dict[tuple[str, str], str]:
    cursor.execute(
        "select n.nspname, c.relname, c.relkind::text from pg_class as c "
        "join pg_namespace as n on n.oid = c.relnamespace "
        "where n.nspname = any(%s) and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')",
        (list(schemas),),
    )
    return {(schema, name): kind for schema, name, kind in cursor.fetchall()}


def _functions(cursor: Any) -> list[str]:
    cursor.execute(
        "select quote_ident(proname) || '(' || oidvectortypes(proargtypes) || ')' from pg_proc "
        "where pronamespace = to_regnamespace(%s)",
        (_META,),
    )
    return [name for (name,) in cursor.fetchall()]


def _existing(cursor: Any, schemas: Sequence[str]) -> set[Grant]:
    """Whatever anybody but the owner has; a function without a list is everybody's."""
    cursor.execute(
        """
        with of_ours as (
            select oid, nspname, nspowner, nspacl from pg_namespace
            where nspname = any(%(schemas)s)
        ),
        relation as (
            select n.nspname, c.oid, c.relname, c.relkind, c.relowner, c.relacl
            from pg_class as c join of_ours as n on n.oid = c.relnamespace
        ),
        held as (
            select 'schema' as kind, nspname as schema, nspname::text as name, nspowner as owner,
                nspacl as acl
            from of_ours
            union all
            select case when relkind = 'S' then 'sequence' else 'table' end, nspname, relname,
                relowner, relacl
            from relation
            union all
            select 'column', c.nspname, c.relname || '.' || quote_ident(a.attname), c.relowner,
                a.attacl
            from pg_attribute as a join relation as c on c.oid = a.attrelid
            where a.attacl is not null
            union all
            select 'function', n.nspname,
                quote_ident(p.proname) || '(' || oidvectortypes(p.proargtypes) || ')',
                p.proowner, coalesce(p.proacl, acldefault('f', p.proowner))
            from pg_proc as p join of_ours as n on n.oid = p.pronamespace
        )
        select distinct coalesce(r.rolname, %(public)s), h.kind, h.schema, h.name,
            a.privilege_type
        from held as h cross join aclexplode(h.acl) as a
        left join pg_roles as r on r.oid = a.grantee
        where a.grantee <> h.owner
        """,
        {"schemas": list(schemas), "public": PUBLIC},
    )
    return {Grant(*row) for row in cursor.fetchall()}


def _create_role(name: str) -> sql.Composable:
    # Roles are the server's: another database of it may make the same at this moment.
    return sql.SQL(
        "do $$ begin create role {} nologin; "
        "exception when duplicate_object or unique_violation then null; end $$"
    ).format(sql.Identifier(name))


def _target(g: Grant) -> sql.Composable:
    match g.kind:
        case "schema":
            return sql.SQL("schema {}").format(sql.Identifier(g.schema))
        case "function":
            return sql.SQL("function {}.{}").format(sql.Identifier(g.schema), sql.SQL(g.name))
        case "column":
            table = g.name.partition(".")[0]
            return sql.Identifier(g.schema, table)
        case "sequence":
            return sql.SQL("sequence {}").format(sql.Identifier(g.schema, g.name))
    return sql.Identifier(g.schema, g.name)


def _revoke(g: Grant) -> sql.Composable:
    privilege = sql.SQL(g.privilege)
    if g.kind == "column":
        column = sql.SQL(g.name.partition(".")[2])
        privilege = sql.SQL("{} ({})").format(privilege, column)
    return sql.SQL("revoke {} on {} from {} cascade").format(
        privilege, _target(g), grantee(g.grantee)
    )


def _grants(granted: Sequence[Grant]) -> list[sql.Composable]:
    """One statement for each role and target, with all its privileges."""
    together: dict[tuple[str, str, str, str], list[Grant]] = {}
    for g in granted:
        together.setdefault((g.grantee, g.kind, g.schema, g.name), []).append(g)
    return [
        sql.SQL("grant {} on {} to {}").format(
            sql.SQL(", ").join(sql.SQL(g.privilege) for g in each),
            _target(each[0]),
            grantee(each[0].grantee),
        )
        for each in together.values()
    ]


def _default_privileges(cursor: Any, schemas: Sequence[str]) -> list[sql.Composable]:
    """What would open tables of the future in our schemas."""
    cursor.execute(
        "select distinct o.rolname, n.nspname, d.defaclobjtype::text, coalesce(r.rolname, %s) "
        "from pg_default_acl as d join pg_roles as o on o.oid = d.defaclrole "
        "join pg_namespace as n on n.oid = d.defaclnamespace "
        "cross join aclexplode(d.defaclacl) as a left join pg_roles as r on r.oid = a.grantee "
        "where n.nspname = any(%s) and a.grantee <> d.defaclrole and d.defaclobjtype in "
        "('r', 'S', 'f')",
        (PUBLIC, list(schemas)),
    )
    kinds = {"r": "tables", "S": "sequences", "f": "functions"}
    return [
        sql.SQL(
            "alter default privileges for role {} in schema {} revoke all on {} from {}"
        ).format(sql.Identifier(owner), sql.Identifier(schema), sql.SQL(kinds[kind]), grantee(name))
        for owner, schema, kind, name in cursor.fetchall()
    ]


def _memberships(cursor: Any) -> list[sql.Composable]:
    """A reader that is a member of something would see more than its contract says."""
    readers = [f"{PREFIX}{reader}" for reader in READERS]
    cursor.execute(
        "select g.rolname, m.rolname from pg_auth_members as a join pg_roles as g "
        "on g.oid = a.roleid join pg_roles as m on m.oid = a.member where m.rolname = any(%s)",
        (readers,),
    )
    return [
        sql.SQL("revoke {} from {}").format(sql.Identifier(group), sql.Identifier(member))
        for group, member in sorted(set(cursor.fetchall()))
    ]
