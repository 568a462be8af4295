"""Whether a command shows personal values plain: masked unless asked, refused to who may not.

The one gate for all commands, so that unmasked reads are found in one place. It needs a connection
only: reading commands start without the contracts.
"""

from __future__ import annotations

import re
from typing import Any

from metalayer.errors import UsageError

# What holds plain values under a name of its own: for those whom PostgreSQL refuses nothing.
_PLAIN_PLACES = re.compile(r"\w+_stored\b|\bmonths\b\W*\.|\b(past_)?quarantine\b|\bsecret\b", re.I)


def sees_plain(connection: Any) -> bool:
    """Whether the connected role sees personal values: the owner, and members of the stewards."""
    with connection.cursor() as cursor:
        # By the catalog, which everybody may read: who asks need not have a right on the schema.
        cursor.execute(
            "select pg_has_role(current_user, c.relowner, 'usage') or exists ("
            "select from pg_roles where rolname in ('metalayer_steward', 'metalayer_pipeline') "
            "and pg_has_role(current_user, oid, 'usage')) from pg_class as c "
            "join pg_namespace as n on n.oid = c.relnamespace "
            "where n.nspname = 'meta' and c.relname = 'reader'"
        )
        found = cursor.fetchone()
        return found is None or bool(found[0])  # an earlier release masked nothing


def open_unmasked(connection: Any, what: str) -> None:
    """Let the command read personal values plain from here on.

    Args:
        what: What is read, for the error: "the query", "rejects".

    Raises:
        UsageError: when the connected role may not.
    """
    may_see = sees_plain(connection)
    connection.rollback()
    if not may_see:
        raise UsageError(
            f"The connected database role may not see {what} unmasked",
            "Connect as a member of metalayer_steward, or read it masked: leave --unmasked out.",
        )


def keep_masked(connection: Any, query: str) -> None:
    """Have the masks hold for all that the connection reads from here on, the owner's too.

    Raises:
        UsageError: when the query names a place that has plain values behind the masks.
    """
    found = _PLAIN_PLACES.search(query)
    if found is not None and sees_plain(connection):
        raise UsageError(
            f"The query names {found[0].rstrip(' .')}, where values are not masked",
            "Read the table by its own name, or add --unmasked.",
        )
    with connection.cursor() as cursor:
        cursor.execute("select set_config('metalayer.masked', 'on', false)")
    # What is asked then begins a transaction of its own, with the newest state.
    connection.commit()
