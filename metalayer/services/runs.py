"""Runs that nobody works on any more, because their process was killed: marked as failed.

As long as a run counts as going on, its months wait for it. Does not belong here: starting runs.
"""

from __future__ import annotations

import logging

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from metalayer.assets.headless import PROCESS_TAG, is_alive
from metalayer.failure import Failure

_log = logging.getLogger(__name__)

# Not queued ones, which nobody works on yet: a retry has the tags of the run it repeats.
_UNDER_WAY = [s for s in NOT_FINISHED_STATUSES if s is not dg.DagsterRunStatus.QUEUED]
#: On every run that a code server was asked to execute.
_LAUNCHED_TAG = ".dagster/grpc_info"


def close_lost_runs(instance: dg.DagsterInstance, *, launched: bool = False) -> None:
    """Mark runs as failed whose command is gone.

    Args:
        launched: Also every run that a code server was asked to execute: when it has ended, or
            before it starts.
    """
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=_UNDER_WAY)):
        owner = run.tags.get(PROCESS_TAG)
        is_lost = not is_alive(owner) if owner else launched and _LAUNCHED_TAG in run.tags
        if is_lost:
            instance.report_run_failed(run, "The process that worked on this run is gone.")
            lost = Failure(
                "transient", "", "`up` asks for what is left again; otherwise build again."
            )
            facts = {"run": run.run_id, "job": run.job_name, **lost.fields}
            _log.error("run lost: the process that worked on it is gone", extra=facts)
