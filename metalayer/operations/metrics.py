"""What can be measured of a running MetaLayer, as metrics: the one place that names them.

Everything is read, at the moment it is asked for, from where it is kept anyway: the warehouse's
`meta` schema, Dagster's tables, PostgreSQL's statistics, the file system. So nothing is lost with a
process that dies, and a run that was killed counts like any other. Labels are tables, sources,
states and the like: their number depends on the contracts, not on what has been done.

Dagster's tables are read as it makes them, without importing it, so that an exporter starts at once
and stays small.

Does not belong here: answering requests (`exporter.py`), or judging (`monitoring/rules.yml`).
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from metalayer.inspection import table_status
from metalayer.operations.backup_state import load_state
from metalayer.operations.looking import is_there, looking
from metalayer.settings import Settings
from metalayer.warehouse.archiving import SEGMENT, spool_of
from metalayer.warehouse.server import WarehouseServer, standing_server

_log = logging.getLogger(__name__)

#: Several questions that take as long are answered before Prometheus gives up (`scrape_timeout`).
_PATIENCE = 1.5

#: Dagster's words for a run's state, in the order in which a run goes through them.
_RUN_STATES = (
    "queued", "not_started", "managed", "starting", "started", "canceling",
    "success", "failure", "canceled",
)  # fmt: skip
_OVER = ("success", "failure", "canceled")
_DELIVERY_STATES = ("loaded", "duplicate", "superseded", "rejected", "withdrawn")
_RUN_SECONDS = (1, 2, 5, 10, 30, 60, 300, 900, 3600, 14_400)

Rows = Iterable[Sequence[Any]]


class Metrics(Collector):
    """Everything there is to measure, measured anew each time it is asked for.

    What cannot be measured is left out, and counts as failed in `metalayer_scrape_failed`; the rest
    is there.

    Args:
        settings: Which home, and which warehouse.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # One after the other: what is asked twice at once would only take twice as long.
        self._asking = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now."""
        with self._asking:
            yield from self._collected()

    def _collected(self) -> Iterator[Metric]:
        began = time.monotonic()
        failed: dict[str, bool] = {}
        with contextlib.ExitStack() as stack:
            server = self._measured(failed, "server", lambda: standing_server(self._settings))

            def connected(url: str) -> Callable[[], Any]:
                return lambda: stack.enter_context(looking(url, "metrics", _PATIENCE))

            warehouse = dagster = None
            if server is not None:
                warehouse = self._measured(failed, "warehouse", connected(server.warehouse_url))
                dagster = self._measured(failed, "dagster", connected(server.dagster_url))
            yield _gauge(
                "up", "Whether the warehouse's PostgreSQL answers.", [], [(warehouse is not None,)]
            )
            if warehouse is not None:
                for part, measure in (
                    ("tables", lambda: list(self._tables(warehouse))),
                    ("versions", lambda: list(_kept(warehouse))),
                    ("anomalies", lambda: list(_unusual(warehouse))),
                    ("deliveries", lambda: list(_deliveries(warehouse))),
                    ("postgres", lambda: list(_postgres(warehouse, server))),
                ):
                    yield from self._measured(failed, part, measure) or ()
            if dagster is not None:
                for part, measure in (
                    ("runs", lambda: list(_runs(dagster))),
                    ("daemons", lambda: list(_daemons(dagster))),
                ):
                    yield from self._measured(failed, part, measure) or ()
            yield from self._measured(failed, "disks", lambda: list(self._disks())) or ()
            if self._settings.backup_url is not None:
                yield from self._measured(failed, "backups", lambda: list(self._backups())) or ()
        yield _gauge(
            "scrape_failed",
            "Whether a part of these metrics could not be measured.",
            ["part"],
            failed.items(),
        )
        yield _gauge(
            "scrape_duration_seconds",
            "Seconds that measuring took.",
            [],
            [(time.monotonic() - began,)],
        )

    @staticmethod
    def _measured(failed: dict[str, bool], part: str, measure: Callable[[], Any]) -> Any:
        """What `measure` gives; None where it fails, which is noted and logged in a line."""
        failed[part] = False
        try:
            return measure()
        except Exception as error:  # whatever it is, the other metrics are wanted
            lines = str(error).strip().splitlines() or [type(error).__name__]
            _log.warning("%s cannot be measured: %s", part, lines[0])
            failed[part] = True
            return None

    def _tables(self, connection: Any) -> Iterator[Metric]:
        """What is published, quarantined, late and kept, by table."""
        if not _has(connection, "meta.tables"):
            return
        now = datetime.now(UTC)
        found = table_status(connection, self._settings.start_month, now)
        late = {
            t.table: max(0.0, (now - t.late_since).total_seconds()) if t.late_since else 0.0
            for t in found
        }

        def by_table(name: str, told: str, value: Callable[[Any], Any]) -> Metric:
            return _gauge(
                name, told, ["layer", "table"], [(t.layer, t.table, value(t)) for t in found]
            )

        yield by_table("table_rows", "Published rows.", lambda t: t.rows)
        yield by_table(
            "table_rows_read",
            "Rows that the published months were made from: published, quarantined and superseded.",
            lambda t: t.rows_read,
        )
        yield by_table(
            "table_rows_quarantined", "Rows that broke the contract.", lambda t: t.quarantined
        )
        yield by_table(
            "table_rows_superseded", "Rows that a later one replaced.", lambda t: t.superseded
        )
        yield by_table("table_months", "Published months.", lambda t: t.months)
        yield by_table(
            "table_months_failed",
            "Months whose last audit failed, and that were not published since.",
            lambda t: len(t.failed_months),
        )
        yield by_table(
            "table_freshness_lag_seconds",
            "Seconds since a month was last published.",
            lambda t: t.last_published and (now - t.last_published).total_seconds(),
        )
        yield by_table(
            "table_freshness_limit_seconds",
            "Seconds that the contract allows since the last publish.",
            lambda t: t.fresh_within_days * 86_400,
        )
        yield by_table(
            "table_late_seconds",
            "Seconds since the first missing month was due; 0 where none is missing.",
            lambda t: late[t.table],
        )
        yield by_table(
            "table_sla_met",
            "Whether the newest month that is due is there, and the last publish young enough.",
            lambda t: t.late_since is None and t.fresh is not False,
        )
        yield by_table(
            "table_late_itself_seconds",
            "Seconds since the first missing month was due, where all that the table is made from "
            "has the newest that is due; 0 elsewhere.",
            lambda t: late[t.table] if list(t.waits_for) == [t.table] else 0,
        )

    def _disks(self) -> Iterator[Metric]:
        """Room where MetaLayer keeps its files."""
        places = {"home": self._settings.home, "landing": self._settings.landing}
        used = {name: shutil.disk_usage(folder) for name, folder in places.items()
                if folder.is_dir()}  # fmt: skip
        yield _gauge(
            "disk_free_bytes",
            "Bytes that are free where the folder is.",
            ["folder"],
            [(name, usage.free) for name, usage in used.items()],
        )
        yield _gauge(
            "disk_size_bytes",
            "Bytes that the disk has where the folder is.",
            ["folder"],
            [(name, usage.total) for name, usage in used.items()],
        )

    def _backups(self) -> Iterator[Metric]:
        """Backups and drills, where there are any to be."""
        state, settings = load_state(self._settings), self._settings
        spool = spool_of(settings.pgdata)
        for name, told, value in (
            (
                "backup_last_timestamp_seconds",
                "When the last backup that succeeded was begun; 0 where none was.",
                _seconds(state.backup_at),
            ),
            (
                "backup_interval_seconds",
                "Seconds after which the next one is taken.",
                settings.backup_hours * 3600,
            ),
            ("backup_bytes", "Bytes that the last backup takes.", state.backup_bytes),
            ("backup_failing", "Whether the last try failed.", state.failed_at is not None),
            (
                "backup_shipped_timestamp_seconds",
                "When all that was handed over of PostgreSQL's log was last where backups are.",
                _seconds(state.shipped_at),
            ),
            (
                "backup_segments_waiting",
                "Segments of PostgreSQL's log that are not there yet.",
                sum(1 for path in spool.glob("*") if SEGMENT.fullmatch(path.name)),
            ),
            (
                "drill_last_timestamp_seconds",
                "When a recovery was last tried; 0 where none was.",
                _seconds(state.drill_at),
            ),
            ("drill_failed", "Whether that failed.", bool(state.drill_failure)),
            (
                "drill_recovery_point_seconds",
                "Seconds by which what it recovered was behind what was published.",
                state.drill_point_seconds,
            ),
            ("drill_recovery_seconds", "Seconds that it took.", state.drill_seconds),
        ):
            yield _gauge(name, told, [], [(value,)])


def _seconds(at: str | None) -> float:
    return datetime.fromisoformat(at).timestamp() if at else 0.0


def _kept(connection: Any) -> Iterator[Metric]:
    """What the months of each table take: disk, versions, and the time they were built in."""
    if not _has(connection, "meta.versions"):
        return
    rows = _ask(
        connection,
        "select t.layer, t.table_name, count(v.leaf), "
        # By the catalog: who only looks need not be let into the schema of the months.
        "coalesce(sum(pg_total_relation_size(c.oid)), 0), "
        "coalesce(sum(v.seconds) filter (where v.is_current), 0) "
        "from meta.tables as t left join meta.versions as v using (table_name) "
        "left join pg_namespace as n on n.nspname = 'months' "
        "left join pg_class as c on c.relname = v.leaf and c.relnamespace = n.oid group by 1, 2",
    )
    labels = ["layer", "table"]
    yield _gauge(
        "table_versions", "Versions of months that are kept, the current ones included.",
        labels, [(*row[:2], row[2]) for row in rows],
    )  # fmt: skip
    yield _gauge(
        "table_bytes", "Bytes on disk of these, with their indexes.",
        labels, [(*row[:2], row[3]) for row in rows],
    )  # fmt: skip
    yield _gauge(
        "table_build_seconds", "Seconds in which the published months were built, summed.",
        labels, [(*row[:2], row[4]) for row in rows],
    )  # fmt: skip


def _unusual(connection: Any) -> Iterator[Metric]:
    """How much of each table is unusual."""
    if not _has(connection, "meta.anomalies"):
        return
    yield _gauge(
        "table_anomalies_open",
        "Figures of the table that are unusual, and that nobody expected.",
        ["layer", "table"],
        _ask(
            connection,
            "select t.layer, t.table_name, count(a.anomaly_id) filter (where a.state = 'open') "
            "from meta.tables as t left join meta.anomalies as a using (table_name) group by 1, 2",
        ),
    )


def _deliveries(connection: Any) -> Iterator[Metric]:
    """What has landed, by source, and how soon it was taken in."""
    if not _has(connection, "meta.deliveries"):
        return
    found = {
        (source, status): counts
        for source, status, *counts in _ask(
            connection,
            "select source, status, count(*), coalesce(sum(size), 0), "
            "coalesce(sum(rows_read), 0), coalesce(sum(rows_rejected), 0) "
            "from meta.deliveries group by 1, 2",
        )
    }
    sources = sorted({source for source, _ in found})
    by_state = [(s, state) for s in sources for state in _DELIVERY_STATES]
    nothing = [0, 0, 0, 0]
    for place, (name, told) in enumerate(
        (
            ("deliveries", "Versions of landed files, by what became of them."),
            ("delivered_bytes", "Bytes of these."),
            ("delivered_rows", "Records in these."),
            ("delivered_rows_unreadable", "Records in these that could not be read."),
        )
    ):
        rows = [(*of, found.get(of, nothing)[place]) for of in by_state]
        yield _gauge(name, told, ["source", "status"], rows)
    yield _gauge(
        "files_refused",
        "Landed files of which the last version was refused.",
        ["source"],
        _ask(
            connection,
            "select source, count(*) filter (where status = 'rejected') from ("
            "select distinct on (source, file) source, status from meta.deliveries "
            "order by source, file, delivery_id desc) as d group by 1 order by 1",
        ),
    )
    yield _gauge(
        "delivery_lag_seconds",
        "Seconds from the last change of the newest landed file until it was taken in.",
        ["source"],
        _ask(
            connection,
            "select distinct on (source) source, greatest(0, "
            "extract(epoch from registered_at) - mtime_ns / 1e9) "
            "from meta.deliveries order by source, delivery_id desc",
        ),
    )
    yield _gauge(
        "last_delivery_timestamp_seconds",
        "When a file was last taken in.",
        ["source"],
        _ask(
            connection,
            "select source, extract(epoch from max(registered_at)) "
            "from meta.deliveries group by 1 order by 1",
        ),
    )


def _postgres(connection: Any, server: WarehouseServer) -> Iterator[Metric]:
    """What the server has in use."""
    databases = sorted({url.database for url in _parsed(server) if url.database})
    yield _gauge(
        "database_bytes",
        "Bytes on disk of the database.",
        ["database"],
        _ask(
            connection,
            "select datname, pg_database_size(oid) from pg_database where datname = any(%s)",
            databases,
        ),
    )
    yield _gauge(
        "connections",
        "Connections to these databases, by what they do.",
        ["state"],
        _ask(
            connection,
            "select state, coalesce(n, 0) from unnest(array['active', 'idle', "
            "'idle in transaction', 'unknown']) as state left join (select "
            "coalesce(replace(state, ' (aborted)', ''), 'unknown') as state, count(*) as n "
            "from pg_stat_activity where datname = any(%s) group by 1) "
            "as a using (state)",
            databases,
        ),
    )
    yield _gauge(
        "connections_used",
        "Connections to all databases of the server.",
        [],
        _ask(connection, "select count(*) from pg_stat_activity where datname is not null"),
    )
    yield _gauge(
        "connections_limit",
        "Connections that the server allows to all its databases, but for superusers.",
        [],
        _ask(
            connection,
            "select current_setting('max_connections')::int "
            "- current_setting('superuser_reserved_connections')::int",
        ),
    )
    yield _gauge(
        "oldest_transaction_seconds",
        "Seconds since the oldest open transaction in these databases began.",
        [],
        _ask(
            connection,
            "select coalesce(max(extract(epoch from now() - xact_start)), 0) "
            "from pg_stat_activity where datname = any(%s) and pid <> pg_backend_pid()",
            databases,
        ),
    )


def _runs(connection: Any) -> Iterator[Metric]:
    """Dagster's runs: how many are in which state, how long they waited and took."""
    if not _has(connection, "runs"):
        return
    counts = {state.lower(): n for state, n in _ask(
        connection, "select status, count(*) from runs group by 1")}  # fmt: skip
    yield _gauge(
        "runs",
        "Runs in each state. One whose process was killed is a failure.",
        ["status"],
        [(state, counts.get(state, 0)) for state in _RUN_STATES],
    )
    yield _gauge(
        "run_oldest_seconds",
        "Seconds since the oldest run that is in the state was created, or has started where that "
        "is its state; 0 where none is.",
        ["status"],
        _ask(
            connection,
            # Dagster leaves the time to the server, which puts it in the zone of its sessions.
            "select state, coalesce(extract(epoch from now() - min(coalesce("
            "case when state = 'started' then to_timestamp(r.start_time) end, r.create_timestamp "
            "at time zone (select reset_val from pg_settings where name = 'TimeZone')))), 0) "
            "from unnest(array['queued', 'starting', 'started']) "
            "as state left join runs as r on r.status = upper(state) group by 1",
        ),
    )
    yield _gauge(
        "run_last_end_timestamp_seconds",
        "When a run of a job last ended so; 0 where none has.",
        # Prometheus has a label `job` of its own.
        ["dagster_job", "status"],
        _ask(
            connection,
            "select j.pipeline_name, state, coalesce(max(r.end_time), 0) "
            "from (select distinct pipeline_name from runs) as j cross join unnest(%s) as state "
            "left join runs as r on r.status = upper(state) and r.pipeline_name = j.pipeline_name "
            "group by 1, 2",
            list(_OVER),
        ),
    )
    buckets = ", ".join(f"count(*) filter (where s <= {limit})" for limit in _RUN_SECONDS)
    found = {
        status: values
        for status, *values in _ask(
            connection,
            # The limits are constants of this module.
            f"select lower(status), {buckets}, count(*), sum(s) from "  # noqa: S608
            "(select status, greatest(0, end_time - start_time) as s from runs "
            "where end_time is not null and start_time is not null) as r group by 1",
        )
    }
    family = HistogramMetricFamily(
        "metalayer_run_duration_seconds",
        "Seconds that runs which are over took, from their start.",
        labels=["status"],
    )
    for status in _OVER:
        *within, count, total = found.get(status) or [0] * (len(_RUN_SECONDS) + 2)
        limits = [(str(float(s)), n) for s, n in zip(_RUN_SECONDS, within, strict=True)]
        family.add_metric([status], [*limits, ("+Inf", count)], float(total or 0))
    yield family


def _daemons(connection: Any) -> Iterator[Metric]:
    """Whether Dagster's daemon lives, and its sensors and schedules look."""
    if _has(connection, "daemon_heartbeats"):
        yield _gauge(
            "daemon_heartbeat_timestamp_seconds",
            "When a part of Dagster's daemon last said that it lives.",
            ["daemon"],
            _ask(
                connection,
                "select lower(daemon_type), extract(epoch from timestamp at time zone 'utc') "
                "from daemon_heartbeats order by 1",
            ),
        )
    if _has(connection, "job_ticks") and _has(connection, "instigators"):
        # What was switched off is not expected to look.
        rows = _ask(
            connection,
            "select distinct on (kind, name) kind, name, status, at from (select "
            "case i.instigator_type when 'SCHEDULE' then 'schedule' else 'sensor' end as kind, "
            "t.tick_body::jsonb ->> 'job_name' as name, lower(t.status) as status, "
            "extract(epoch from t.timestamp at time zone 'utc') as at from instigators "
            "as i cross join lateral (select tick_body, status, timestamp from job_ticks as t "
            "where t.selector_id = i.selector_id order by t.timestamp desc limit 1) as t "
            "where i.status <> 'STOPPED') as t where name is not null "
            # What is in the code no longer does not look any more, and stands here for a day.
            "and at > extract(epoch from now()) - 86400 "
            "order by kind, name, at desc",
        )
        yield _gauge(
            "sensor_last_tick_timestamp_seconds",
            "When a sensor or schedule that is on last began to look.",
            ["kind", "sensor"],
            [(kind, name, at) for kind, name, _, at in rows],
        )
        yield _gauge(
            "sensor_last_tick_failed",
            "Whether that look failed.",
            ["kind", "sensor"],
            [(kind, name, status == "failure") for kind, name, status, _ in rows],
        )


def _gauge(name: str, told: str, labels: Sequence[str], rows: Rows) -> Metric:
    """A metric of values that may fall; rows are labels and a value, None for none."""
    family = GaugeMetricFamily(f"metalayer_{name}", told, labels=list(labels))
    for *of, value in rows:
        if value is not None:
            family.add_metric([str(label) for label in of], float(value))
    return family


def _parsed(server: WarehouseServer) -> list[Any]:
    from sqlalchemy.engine import make_url

    return [make_url(url) for url in (server.warehouse_url, server.dagster_url)]


def _ask(connection: Any, query: str, *values: object) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(query, values or None)
        return list(cursor.fetchall())


def _has(connection: Any, name: str) -> bool:
    with connection.cursor() as cursor:
        return is_there(cursor, name)
