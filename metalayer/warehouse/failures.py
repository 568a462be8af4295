"""What failed, and from what it was made: so that nobody tries the same again without need.

A failure counts for as long as trying again would use the same code and the same inputs. Whoever
plans a build lets go of what is well again (`planning.forget_mended`): a month may be so without a
build, when a contract or a file is again what it was.

Does not belong here: quarantined rows (`quarantine.py`), or deciding what to try (`planning.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from metalayer.warehouse.state import State


@dataclass(frozen=True)
class Failures:
    """The last failures.

    Attributes:
        months: (table, month) -> fingerprint of code and inputs its audit failed with.
        checks: Table -> fingerprint of the versions its blocking checks failed with.
    """

    months: Mapping[tuple[str, date], str]
    checks: Mapping[str, str]


def made_from(code_version: str, inputs: Mapping[str, str]) -> str:
    """Fingerprint of what a month is made from."""
    text = json.dumps([code_version, dict(inputs)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def versions_asked(
    state: State, table: str, months: Iterable[date], upstream: Iterable[str]
) -> str:
    """Fingerprint of what the checks of a table are asked about.

    Args:
        months: Those of its months that are asked about.
        upstream: What it is made from, and what its keys point at: once that is built, what pointed
            nowhere may point at something.
    """
    published = state.published.get(table, {})
    looked_at = [f"{month:%Y-%m}={published[month].version}" for month in sorted(months)]
    for name in sorted(upstream):
        there = sorted(state.published.get(name, {}).items())
        looked_at += [f"{name} {month:%Y-%m}={version.version}" for month, version in there]
    text = " ".join(looked_at)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def load_failures(cursor: Any) -> Failures:
    """Read the last failures."""
    cursor.execute("select table_name, month, made_from from meta.failed_months")
    months = {(table, month): fingerprint for table, month, fingerprint in cursor.fetchall()}
    cursor.execute("select table_name, versions from meta.failed_checks")
    return Failures(months, dict(cursor.fetchall()))


def note_failed_month(cursor: Any, table: str, month: date, fingerprint: str, problem: str) -> None:
    """Remember that the audit of a month failed."""
    cursor.execute(
        "insert into meta.failed_months (table_name, month, made_from, problem) "
        "values (%s, %s, %s, %s) on conflict (table_name, month) do update set "
        "made_from = excluded.made_from, problem = excluded.problem, failed_at = now()",
        (table, month, fingerprint, problem),
    )


def note_failed_checks(cursor: Any, table: str, asked: str, problem: str) -> None:
    """Remember that blocking checks failed on what they were asked about, see `versions_asked`."""
    cursor.execute(
        "insert into meta.failed_checks (table_name, versions, problem) values (%s, %s, %s) "
        "on conflict (table_name) do update set "
        "versions = excluded.versions, problem = excluded.problem, failed_at = now()",
        (table, asked, problem),
    )
