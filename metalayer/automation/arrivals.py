"""What the assets that stand for the exports show: what arrived, and what was refused and why.

It is read from the ledger, so it does not matter who took a file in: the sensor, a run, a command.
What was told already is remembered from tick to tick.

Does not belong here: taking files in (`landing.py`).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import Any

import dagster as dg

from metalayer.assets.breaking import step
from metalayer.assets.keys import to_key
from metalayer.assets.resources import Warehouse
from metalayer.assets.tables import landing_key
from metalayer.automation.retries import fingerprint
from metalayer.catalog import Catalog, catalog
from metalayer.landing.entries import Delivery
from metalayer.landing.files import Skipped
from metalayer.landing.ledger import Registration
from metalayer.warehouse.pool import transaction
from metalayer.wording import counted

ACCEPTED = "files_accepted"
_SHOWN = 50
Event = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation


@dataclass(frozen=True)
class Told:
    """What ticks have told so far.

    Attributes:
        delivery: Every entry of the ledger up to this one.
        refused: Source -> fingerprint of its refused files.
        left: Fingerprint of the files that are left alone.
        asked: What was asked for, see `Asked`.
    """

    delivery: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)
    left: str = ""
    asked: Mapping[str, tuple[str, int, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, cursor: str | None) -> "Told":
        """From what the tick before left."""
        return cls(**json.loads(cursor or "{}"))

    def written(self) -> str:
        """For the tick that comes next."""
        return json.dumps(asdict(self))

    def left_alone(self, left: Sequence[Skipped], tell: Callable[[str], Any]) -> "Told":
        """Tell which files are left alone, unless that was told already."""
        now = fingerprint(sorted((s.name, s.reason) for s in left))
        if now != self.left:
            for skipped in left:
                tell(f"left alone: {skipped.name}: {skipped.reason}")
        return replace(self, left=now)


def said_of(registration: Registration) -> Iterator[str]:
    """What became of each file, a line each."""
    for delivery in registration.deliveries:
        yield _became(delivery)
        yield from (f"{delivery.file}: {said}" for said in delivery.drift)
    for skipped in registration.skipped:
        yield f"left alone: {skipped.name}: {skipped.reason}"


def _became(delivery: Delivery) -> str:
    if delivery.status != "loaded":
        return f"{delivery.status}: {delivery.file}: {delivery.reason}"
    unreadable = f", {delivery.rows_rejected:,} unreadable" if delivery.rows_rejected else ""
    line = f"taken in: {delivery.file}: {counted(delivery.rows_read, 'row')}{unreadable}"
    if not delivery.months:
        return line
    return f"{line}, {to_key(min(delivery.months))} to {to_key(max(delivery.months))}"


def landing_events(
    warehouse: Warehouse, told: Told, landed: Set[str]
) -> tuple[list[Event], Told, list[str]]:
    """What there is to show that was not told yet.

    Args:
        landed: The files in the landing zone; a refused one that is gone troubles nobody.

    Returns:
        The events, what is told with them, and how many files became what.
    """
    entries = _entries_after(warehouse, told.delivery)
    events: list[Event] = []
    counts: dict[str, int] = {}
    by_month: dict[tuple[str, date], list[str]] = {}
    for _, source, file, status, reason, months in entries:
        word = "taken in" if status in ("loaded", "superseded") else status
        counts[word] = counts.get(word, 0) + 1
        for month in months:
            if month >= warehouse.settings.start_month:
                by_month.setdefault((source, month), []).append(file)
        if status in ("rejected", "duplicate"):
            events.append(
                dg.AssetObservation(
                    landing_key(source),
                    description=f"{status}: {file}: {reason}",
                    metadata={"file": file, "status": status},
                )
            )
    events += [
        dg.AssetMaterialization(
            landing_key(source),
            partition=to_key(month),
            metadata={
                "files": dg.MetadataValue.md(_listed(files)),
                "files_landed": len(files),
            },
        )
        for (source, month), files in by_month.items()
    ]
    refused = {}
    every = refused_files(warehouse)
    for source in catalog().sources:
        files = [(f, why) for f, why in every.get(source, ()) if f in landed]
        refused[source] = fingerprint(files)
        if told.refused.get(source) != refused[source]:
            events.append(_acceptance(source, files))
    newest = max((entry[0] for entry in entries), default=told.delivery)
    lines = [f"{n} {word}" for word, n in counts.items()]
    return events, replace(told, delivery=newest, refused=refused), lines


def _entries_after(warehouse: Warehouse, delivery: int) -> list[Any]:
    """(id, source, file, status, reason, months) of what came to the ledger since."""
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select d.delivery_id, d.source, d.file, d.status, d.reason, "
            "coalesce(array_agg(m.month order by m.month) filter (where m.month is not null), "
            "'{}') from meta.deliveries as d left join meta.delivery_months as m "
            "using (delivery_id) where d.delivery_id > %s and d.source = any(%s) "
            "group by d.delivery_id order by d.delivery_id",
            (delivery, list(catalog().sources)),
        )
        return list(cursor.fetchall())


def refused_files(warehouse: Warehouse) -> dict[str, list[tuple[str, str]]]:
    """Source -> its files whose newest version is refused, and why; the newest first."""
    found: dict[str, list[tuple[str, str]]] = {}
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select source, file, reason from meta.deliveries as d where status = 'rejected' "
            "and not exists (select from meta.deliveries as newer where newer.source = d.source "
            "and newer.file = d.file and newer.delivery_id > d.delivery_id) "
            "order by delivery_id desc"
        )
        for source, file, reason in cursor.fetchall():
            found.setdefault(source, []).append((file, reason))
    return found


def _acceptance(source: str, refused: Sequence[tuple[str, str]]) -> dg.AssetCheckEvaluation:
    """Whether the newest version of every file could be taken in."""
    metadata: dict[str, Any] = {"files_refused": len(refused)}
    if refused:
        metadata["refused"] = dg.MetadataValue.md(_listed(f"{f}: {why}" for f, why in refused))
        metadata["next_step"] = (
            "Land each file corrected, under the same name; or take it out with "
            "`metalayer land --withdraw FILE`"
        )
    first = f"{refused[0][0]}: {refused[0][1]}" if refused else None
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    return dg.AssetCheckEvaluation(
        asset_key=landing_key(source),
        check_name=ACCEPTED,
        passed=not refused,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{first}{more}" if first else "The newest version of every file is taken in",
        metadata=metadata,
    )


def _listed(lines: Iterable[str]) -> str:
    every = list(lines)
    shown = [f"- {line}" for line in every[:_SHOWN]]
    if len(every) > _SHOWN:
        shown.append(f"- and {len(every) - _SHOWN} more")
    return "\n".join(shown)


def acceptance_checks(tables: Catalog) -> list[dg.AssetChecksDefinition]:
    """The check of each source that the sensor reports, to be asked by a click as well."""
    return [_acceptance_check(source) for source in tables.sources]


def _acceptance_check(source: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=landing_key(source),
        name=ACCEPTED,
        description="The newest version of every landed file could be taken in.",
        required_resource_keys={"warehouse"},
    )
    def files_accepted(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        warehouse: Warehouse = context.resources.warehouse
        with step(context):
            refused = refused_files(warehouse).get(source, ())
        landing = warehouse.settings.landing
        there = [(file, why) for file, why in refused if (landing / file).exists()]
        said = _acceptance(source, there)
        return dg.AssetCheckResult(
            passed=said.passed,
            severity=said.severity,
            description=said.description,
            metadata=said.metadata,
        )

    return files_accepted
