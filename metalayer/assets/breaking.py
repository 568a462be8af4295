"""What becomes of a step that breaks off: its class and the next step, and whether it goes again.

    the exception --> its class --> transient: the step is tried again, a few times
                                --> all others: it fails at once

Either way Dagster's event has the class and the next step as metadata. What is tried again is asked
for here and not by a `RetryPolicy`: with one, Dagster 1.13 takes Ctrl-C and an ended run for
failures that are to be tried again.

A table whose months fail their audit fails by its type (`types.py`), which Dagster never tries
again. Does not belong here: of what class an exception is (`metalayer.failure`).
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import dagster as dg
from dagster import DagsterError

from metalayer.failure import Failure, as_ours, failure_of
from metalayer.logs.writing import telling

#: How often a step is tried again, and after how many seconds: up to 1, 3 and 7.
RETRIES = dg.RetryPolicy(
    max_retries=3, delay=1, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.FULL
)
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def step(context: Any, **about: str) -> Iterator[None]:
    """Around all that a step does: an exception becomes what Dagster is to make of it.

    Args:
        context: The step's.
        about: What it is about, for logs: `table="silver.orders"`.

    Raises:
        dagster.RetryRequested: for what may pass, as long as there are tries left.
        dagster.Failure: for everything else; the error is its cause.
    """
    with telling(**about):
        try:
            yield
        except (DagsterError, dg.Failure, dg.RetryRequested):
            raise
        except Exception as error:
            home = context.resources.warehouse.settings.embedded_home
            found = failure_of(error, home)
            failure = _as_dagster_has_it(found)
            # What PostgreSQL says may quote a row, and Dagster keeps and shows causes.
            cause = as_ours(error, home) or error
            tried = getattr(context, "op_execution_context", context).retry_number
            facts: dict[str, Any] = {**found.fields, "tries": tried + 1}
            if found.kind != "transient" or tried >= RETRIES.max_retries:
                _log.error("step failed: %s", found.line, extra=facts)
                raise failure from cause
            wait = RETRIES.calculate_delay(tried + 1)
            facts |= {"wait_seconds": round(wait, 1)}
            _log.warning("step is tried again: %s", found.line, extra=facts)
            failure.__cause__ = cause
            raise dg.RetryRequested(RETRIES.max_retries, wait) from failure


def _as_dagster_has_it(found: Failure) -> dg.Failure:
    return dg.Failure(
        description=found.message,
        metadata=found.fields,
        allow_retries=False,
    )
