"""The first two steps of a build together: months of a table staged and audited.

What comes of it says which months can be published, and what is to be recorded of them; nobody
reads them yet.

Does not belong here: the steps themselves (`stage.py`, `audit.py`), or publishing (`build.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from metalayer.warehouse.audit import MonthAudit, audit_stage, judge
from metalayer.warehouse.ddl import next_month
from metalayer.warehouse.phases import Phase
from metalayer.warehouse.publish import Publication
from metalayer.warehouse.stage import Stage, create_stage, finish_stage
from metalayer.warehouse.state import State
from metalayer.warehouse.sweep import drop_leftovers

if TYPE_CHECKING:
    from metalayer.warehouse.build import Outcome, TableJob


@dataclass(frozen=True)
class Staged:
    """Contiguous months of a table, staged and audited, ready to be published.

    Attributes:
        state: What they were made from.
        audits: Month -> verdict.
        publications: Month -> what is to be recorded of it.
        phases: Each month's share of the seconds it took, by phase.
    """

    job: TableJob
    state: State
    audits: Mapping[date, MonthAudit]
    publications: Mapping[date, Publication]
    phases: Mapping[Phase, float]

    def outcome(self, month: date) -> Outcome:
        """What becomes of the month."""
        if self.audits[month].problem is not None:
            return "failed"
        return "confirmed" if self._is_unchanged(month) else "published"

    def stands_already(self, month: date) -> bool:
        """Whether the published rows need not be replaced.

        Equal rows that another delivery brought are published all the same: their origin is new.
        """
        spec = self.job.spec
        return self._is_unchanged(month) and (spec.layer == "bronze" or not spec.has_provenance)

    def _is_unchanged(self, month: date) -> bool:
        published = self.state.published.get(self.job.spec.full_name, {}).get(month)
        version = self.publications[month].data_version
        return published is not None and published.data_version == version


def stage_months(
    cursor: Any,
    job: TableJob,
    months: Sequence[date],
    state: State,
    run_id: str | None = None,
    fill: Callable[[Any, Stage], None] | None = None,
) -> Staged:
    """Stage and audit months in the caller's transaction: contiguous ones, or as `fill` can.

    Rows and the fingerprints of what they are made from come from one snapshot if the transaction
    has one, in which `state` was read as well: what is registered or published meanwhile makes the
    month stale again, nothing worse.
    """
    began = time.monotonic()
    spec = job.spec
    drop_leftovers(cursor, spec, months)
    stage = create_stage(cursor, spec, months)
    if fill is not None:
        fill(cursor, stage)
    else:
        job.fill(cursor, stage, months[0], next_month(months[-1]))
    filled = time.monotonic()
    audits = audit_stage(cursor, stage)
    judge(cursor, audits, spec)
    finish_stage(cursor, stage)
    ended = time.monotonic()
    phases: dict[Phase, float] = {
        "copy in" if spec.layer == "bronze" else "transform": (filled - began) / len(months),
        "audit": (ended - filled) / len(months),
    }
    publications = {}
    for month, audit in audits.items():
        expected = job.rows_expected(state, month)
        if audit.problem is None and expected is not None and expected != audit.rows:
            audit.problem = (
                f"{expected:,} rows went in, {audit.tally.rows:,} were staged and "
                f"{audit.quarantined:,} quarantined: rows were lost or multiplied by the SELECT"
            )
        publications[month] = Publication(
            month=month,
            leaf=stage.leaves[month],
            data_version=audit.tally.data_version,
            code_version=job.code_version,
            inputs=job.inputs(state, month),
            rows_read=audit.rows,
            rows=audit.tally.rows - audit.tally.superseded,
            rows_quarantined=audit.quarantined,
            rows_superseded=audit.tally.superseded,
            run_id=run_id,
            seconds=sum(phases.values()),
        )
    return Staged(job, state, audits, publications, phases)
