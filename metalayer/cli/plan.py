"""`build --plan`: what a build would do and why, before anything is done.

Dagster is not imported here; making the plan is `metalayer.planning`'s.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import date
from typing import TYPE_CHECKING, Any

from rich.text import Text

from metalayer.console import Column, print_table, say, say_next, sparing, working
from metalayer.wording import counted

if TYPE_CHECKING:
    from metalayer.landing.ledger import Registration
    from metalayer.planning import Plan, Reason
    from metalayer.settings import Settings


def make_plan(
    settings: Settings, selected: set[str] | None, months: set[date] | None, *, force: bool
) -> tuple[Plan, Registration]:
    """The plan of a build, and what registering the landed files would find."""
    from metalayer.planning import preview
    from metalayer.warehouse.pool import warehouse_pool

    with working("Planning") as tell, warehouse_pool(settings, tell) as pool:
        return preview(pool, settings, selected, months, force=force, progress=sparing(tell))


def write_plan_json(plan: Plan, registration: Registration) -> None:
    """The plan for programs: every month that would be rebuilt, or may have to follow."""
    from metalayer.cli.formats import json_text

    document = {
        "nothing_to_do": plan.is_empty,
        "deliveries": [
            {"file": d.file, "source": d.source, "status": d.status, "reason": d.reason}
            for d in registration.deliveries
        ],
        "skipped": [{"file": s.name, "reason": s.reason} for s in registration.skipped],
        "months": [
            {
                "table": table,
                "month": f"{month:%Y-%m}",
                "rebuild": _rebuild(plan, table, month),
                "reasons": list(reasons),
            }
            for (table, month), reasons in plan.reasons.items()
        ],
        "unchecked": [
            {"table": table, "month": f"{month:%Y-%m}"}
            for table, months in plan.unchecked.items()
            for month in sorted(months)
        ],
    }
    sys.stdout.write(json_text(document) + "\n")


def print_plan(plan: Plan) -> None:
    """The plan for people, months with the same reasons in one line."""
    if plan.is_empty:
        say("Nothing to do: a build would rebuild no month.")
        return
    print_table(
        [Column("table"), Column("months"), Column("rebuild"), Column("why")],
        [
            (Text(table), ", ".join(_in_words(months)), rebuild, why)
            for (table, rebuild, why), months in _grouped(plan).items()
        ],
    )
    certain = sum(len(months) for months in plan.stale.values())
    following = sum(len(months) for months in plan.affected.values()) - certain
    tables = counted(sum(map(bool, plan.stale.values())), "table")
    say(f"A build would rebuild {counted(certain, 'month')} of {tables}")
    if following:
        say(f"and {following:,} more where what they are made from turns out to differ.")
    unchecked = sum(len(months) for months in plan.unchecked.values())
    if unchecked:
        say(f"It would ask the checks of {counted(unchecked, 'published month')} again.")
    say_next(("build", "does it"))


def _grouped(plan: Plan) -> dict[tuple[str, str, str], list[date]]:
    groups: dict[tuple[str, str, str], list[date]] = {}
    for (table, month), reasons in plan.reasons.items():
        line = (table, _rebuild(plan, table, month), _why(reasons))
        groups.setdefault(line, []).append(month)
    return groups


def _rebuild(plan: Plan, table: str, month: date) -> str:
    return "yes" if month in plan.stale[table] else "if changed"


def _why(reasons: Iterable[Reason]) -> str:
    return "; ".join(dict.fromkeys(reason.text for reason in reasons))


def _in_words(months: Iterable[date]) -> list[Any]:
    from metalayer.jobs import month_ranges

    return [
        f"{first:%Y-%m}" if first == last else f"{first:%Y-%m}..{last:%Y-%m}"
        for first, last in month_ranges(months)
    ]
