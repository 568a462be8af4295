"""The audit log as it is read: listed, and held against its chain.

    acts --hash--> act_seals --last--> act_head --noted after each seal--> <home>/audit-heads.jsonl

Nobody can change an act through normal statements. Whoever owns the tables can switch the triggers
off; then the chain tells what was edited, deleted, put in another order or left out, and the head a
cut end. A superuser could also write chain and head anew; then the ends noted in the home, or kept
anywhere else and given to `verify`, do not fit any more.

Does not belong here: writing (`metalayer.warehouse.acts`), or the contracts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from metalayer.errors import UsageError
from metalayer.warehouse.acts import CONTENT, chained

#: Position in the chain, and the hash there.
Head = tuple[int, str]

_GUARDS = {
    ("acts", "stamp"),
    ("acts", "append_only"),
    ("act_seals", "append_only"),
    ("act_head", "append_only"),
    ("act_head", "only_longer"),
    ("versions", "recorded"),
    ("deliveries", "recorded"),
}


@dataclass(frozen=True)
class Act:
    """One entry; `position` is its place in the chain, None as long as it waits for one."""

    act_id: int
    at: datetime
    role: str
    os_user: str
    action: str
    subject: str
    details: dict[str, Any]
    why: str
    position: int | None


@dataclass
class Verdict:
    """What verifying found.

    Attributes:
        chained: Acts in the chain.
        waiting: Acts that are not chained yet; that they are unchanged cannot be told.
        head: Where the chain ends: worth keeping elsewhere.
        problems: What is wrong, a sentence each.
    """

    chained: int = 0
    waiting: int = 0
    head: Head = (0, "")
    problems: list[str] = field(default_factory=list)


def parse_since(text: str) -> datetime:
    """A day or a time, UTC unless it says otherwise.

    Raises:
        UsageError: when it is neither.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(
            f"'{text}' is no time", "Write a day as 2025-07-01, a time as 2025-07-01T10:30 (UTC)"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def parse_head(text: str) -> Head:
    """`POSITION:HASH`, as `metalayer audit verify` prints it.

    Raises:
        UsageError: when it is not that.
    """
    position, _, head = text.strip().partition(":")
    if not position.isdecimal() or not head:
        raise UsageError(f"'{text}' is no end of a chain", "Write it as 1234:0a1b2c…")
    return int(position), head


def noted_heads(path: Path) -> list[Head]:
    """The ends that a home has noted. Read them before the warehouse, which may grow meanwhile.

    Raises:
        UsageError: when a line cannot be understood.
    """
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            said = json.loads(line)
            found.append((int(said["position"]), str(said["hash"])))
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"Line {number} of {path} cannot be understood",
                "It was changed by hand, or by a full disk; move the file away to verify without",
            ) from None
    return found


def has_log(connection: Any) -> bool:
    """Whether the warehouse has an audit log; one of an earlier release gets it when built."""
    with connection.cursor() as cursor:
        cursor.execute("select to_regclass('meta.acts') is not null")
        return bool(cursor.fetchone()[0])


def acts(
    connection: Any,
    since: datetime | None = None,
    action: str | None = None,
    limit: int | None = None,
) -> Iterator[Act]:
    """The newest acts, newest first.

    Args:
        since: None: from the first on.
        action: Only these, "rollback" say.
        limit: At most so many; None: all.
    """
    with connection.cursor(name="acts") as cursor:
        cursor.execute(
            "select a.act_id, a.at, a.role, a.os_user, a.action, a.subject, a.details, a.why, "
            "s.position from meta.acts as a left join meta.act_seals as s using (act_id) "
            "where (%(since)s::timestamptz is null or a.at >= %(since)s) "
            "and (%(action)s::text is null or a.action = %(action)s) "
            "order by a.act_id desc limit %(limit)s",
            {"since": since, "action": action, "limit": limit},
        )
        for row in cursor:
            yield Act(*row)


def verify(connection: Any, heads: Iterable[Head] = ()) -> Verdict:
    """Hold the log against its chain, in one state of the warehouse.

    Args:
        connection: In a repeatable-read transaction.
        heads: Ends of the chain that were noted apart from the warehouse.
    """
    verdict = Verdict()
    noted: dict[int, set[str]] = {}
    for position, head in heads:
        noted.setdefault(position, set()).add(head)
    _walk(connection, verdict, noted)
    with connection.cursor() as cursor:
        _check_end(cursor, verdict, noted)
        _check_waiting(cursor, verdict)
        _check_versions(cursor, verdict)
        _check_guards(cursor, verdict)
    return verdict


def _walk(connection: Any, verdict: Verdict, noted: dict[int, set[str]]) -> None:
    position, before = 0, ""
    with connection.cursor(name="chain") as cursor:
        cursor.itersize = 10_000
        cursor.execute(
            f"select s.position, s.act_id, s.hash, {CONTENT}, a.act_id is not null "  # noqa: S608
            "from meta.act_seals as s left join meta.acts as a using (act_id) order by s.position"
        )
        for found, act, stored, content, is_there in cursor:
            if found != position + 1:
                missing = f"{position + 1} to {found - 1}" if found - position > 2 else position + 1
                verdict.problems.append(f"The chain lacks position {missing}")
            elif not is_there:
                verdict.problems.append(f"Act {act}, at position {found}, was deleted")
            elif next(iter(chained(before, [content]))) != stored:
                verdict.problems.append(
                    f"Act {act}, at position {found}, is not what was chained: it was changed, "
                    "or put in another place"
                )
            if found in noted and noted[found] != {stored}:
                verdict.problems.append(
                    f"The chain at position {found} is not the one that was noted then: it was "
                    "written anew"
                )
            position, before = found, stored
            verdict.chained += 1
    verdict.head = (position, before)


def _check_end(cursor: Any, verdict: Verdict, noted: dict[int, set[str]]) -> None:
    cursor.execute("select position, hash from meta.act_head")
    kept = cursor.fetchone()
    end, _ = verdict.head
    if kept is None:
        verdict.problems.append("The head of the chain was deleted")
    elif kept[0] > end:
        verdict.problems.append(f"The chain was cut off: it ends at {end}, and had {kept[0]} acts")
    elif kept != verdict.head:
        verdict.problems.append("The head of the chain is not its end: one of them was changed")
    furthest = max(noted, default=0)
    if furthest > end:
        verdict.problems.append(
            f"The chain was cut off: it ends at {end}, and {furthest} acts had been noted"
        )


def _check_waiting(cursor: Any, verdict: Verdict) -> None:
    cursor.execute(
        "select coalesce(a.act_id, u.act_id), a.act_id is not null, u.act_id is not null "
        "from (select act_id from meta.acts except select act_id from meta.act_seals) as a "
        "full join meta.acts_unsealed as u on u.act_id = a.act_id order by 1"
    )
    for act, is_there, is_waiting in cursor.fetchall():
        if is_there and is_waiting:
            verdict.waiting += 1
        elif is_there:
            verdict.problems.append(f"Act {act} was taken out of the chain, or never came into it")
        else:
            verdict.problems.append(f"Act {act} was deleted before it was chained")


def _check_versions(cursor: Any, verdict: Verdict) -> None:
    """Every version that was published since the log began is in it."""
    cursor.execute(
        "select v.table_name || ' ' || to_char(v.month, 'YYYY-MM'), v.version "
        "from meta.versions as v left join meta.acts as a "
        "on a.subject = v.table_name || ' ' || to_char(v.month, 'YYYY-MM') "
        "and a.action in ('publish', 'rollback') and (a.details ->> 'version')::int = v.version "
        "where a.act_id is null "
        "and v.published_at > (select coalesce(min(at), '-infinity') from meta.acts) order by 1, 2"
    )
    verdict.problems += [
        f"Version {version} of {month} was published, which no act says"
        for month, version in cursor.fetchall()
    ]


def _check_guards(cursor: Any, verdict: Verdict) -> None:
    cursor.execute(
        "select c.relname, t.tgname from pg_trigger as t join pg_class as c on c.oid = t.tgrelid "
        "where c.relnamespace = 'meta'::regnamespace and t.tgenabled = 'A' and not t.tgisinternal"
    )
    standing: Sequence[tuple[str, str]] = cursor.fetchall()
    verdict.problems += [
        f"The trigger {name} of meta.{table} is off or gone"
        for table, name in sorted(_GUARDS.difference(standing))
    ]
