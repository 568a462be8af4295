"""Whether a file that could be read is taken: the limits of its contract, and the reason if not.

A refused file leaves everything as it was; an earlier version of it stays in place. The reason is
for a person: how many, why, and ten examples, with personal values as `***`.

Does not belong here: what makes a file unreadable (`reader.py`), or the limits of a built month
(`metalayer.warehouse`).
"""

from __future__ import annotations

from typing import Any

from metalayer.governance.masks import is_open, may_be_shifted
from metalayer.landing.drift import Drift
from metalayer.landing.engine import open_memory
from metalayer.landing.entries import Candidate
from metalayer.landing.reader import Parsed
from metalayer.landing.shape import REPAIRS_COLUMN, Terms, parsed_paths
from metalayer.settings import Settings

_EXAMPLES = 10
_SHOWN_CHARACTERS = 60


def refusal(
    cursor: Any, settings: Settings, candidate: Candidate, parsed: Parsed, changes: Drift
) -> str | None:
    """Why a file that could be read is refused all the same; None if it is taken."""
    return (
        _unknown_columns(candidate.terms, parsed, changes)
        or _too_many_rejects(cursor, settings, candidate, parsed)
        or _shrunk(cursor, candidate, parsed)
    )


def _unknown_columns(terms: Terms, parsed: Parsed, changes: Drift) -> str | None:
    """Columns that the contract does not know, where it takes none."""
    unknown = [name for name in parsed.extra_columns if name != REPAIRS_COLUMN]
    if terms.source.on_new_column != "freeze" or not unknown:
        return None
    told = "".join(f"; {sentence}" for sentence in changes.renamed)
    return (
        f"it has columns that its contract does not know, and takes none: {', '.join(unknown)}"
        f"{told}. Declare them in {terms.contract}, export the file without them, or set "
        'on_new_column = "rescue" there'
    )


def _too_many_rejects(
    cursor: Any, settings: Settings, candidate: Candidate, parsed: Parsed
) -> str | None:
    """More records that cannot be used than the contract allows, or nothing else."""
    spec = candidate.terms.spec
    limit = spec.limit_passed(parsed.rows_rejected, parsed.rows_read)
    if (
        limit is None
        and 0 < parsed.rows_read == parsed.rows_rejected
        and _would_empty(cursor, candidate)
    ):
        limit = "the version before has some that can"
    if limit is None:
        return None
    _, rejects = parsed_paths(
        settings.parsed_dir, candidate.terms.shape, candidate.sha256, candidate.month
    )
    with open_memory() as memory:
        rules = memory.execute(
            "select concat_ws(' ', \"column\", rule), count(*) from read_parquet(?) "
            "group by 1 order by 2 desc, 1 limit 3",
            [str(rejects)],
        ).fetchall()
        examples = memory.execute(
            'select _line, "column", rule, value from read_parquet(?) order by _line '
            f"limit {_EXAMPLES}",
            [str(rejects)],
        ).fetchall()
    told = "; ".join(f"{rule}: {count:,} rows" for rule, count in rules)
    return "\n".join(
        [
            f"{parsed.rows_rejected:,} of {parsed.rows_read:,} rows cannot be used ({limit}): "
            f"{told}. Land it corrected; an earlier version stays in place",
            *(_example(candidate, *example) for example in examples),
        ]
    )


def _would_empty(cursor: Any, candidate: Candidate) -> bool:
    """Whether the file has an earlier version with rows that can be used."""
    cursor.execute(
        "select exists (select from meta.deliveries where source = %s and file = %s "
        "and status = 'loaded' and rows_read > rows_rejected)",
        (candidate.terms.source.name, candidate.landed.name),
    )
    return bool(cursor.fetchone()[0])


def _example(
    candidate: Candidate, line: int, column: str | None, rule: str, value: str | None
) -> str:
    """A record that cannot be used: `file:line column rule 'value'`."""
    spec = candidate.terms.spec
    hidden = [c.name for c in spec.landed if not is_open(c)]
    is_hidden = may_be_shifted(spec) or column in hidden
    shown = "" if value is None else " ***" if is_hidden else f" {value[:_SHOWN_CHARACTERS]!r}"
    return f"{candidate.landed.name}:{line} {column or 'row'} {rule}{shown}"


def _shrunk(cursor: Any, candidate: Candidate, parsed: Parsed) -> str | None:
    """A snapshot with much fewer rows than the one before it: an export that was cut off, say.

    Before it is the newest live one of its month or an earlier month, an earlier version of the
    same file included.
    """
    terms, limit = candidate.terms, candidate.terms.source.max_shrink
    if not terms.is_snapshot or REPAIRS_COLUMN in parsed.extra_columns:
        return None
    cursor.execute(
        "select file, rows_read - rows_rejected from meta.deliveries where source = %s "
        "and status = 'loaded' and not is_repair "
        "and (fallback_month, delivery_id) < (%s, %s) "
        "order by fallback_month desc, delivery_id desc limit 1",
        (terms.source.name, candidate.month, candidate.delivery_id),
    )
    found = cursor.fetchone()
    if found is None:
        return None
    before, rows_before = found
    rows = parsed.rows_read - parsed.rows_rejected
    if rows == 0 < rows_before:
        return (
            f"{candidate.landed.name} has no rows, and the snapshot before it, {before}, has "
            f"{rows_before:,}: it would delete everybody. Land a snapshot that has rows"
        )
    if rows >= (1 - limit) * rows_before:
        return None
    is_its_own = before == candidate.landed.name
    return (
        f"{candidate.landed.name} has {rows:,} rows, and "
        f"{'its earlier version' if is_its_own else f'the snapshot before it, {before},'} has "
        f"{rows_before:,}: more than {limit * 100:g}% are missing (max_shrink). If that is right, "
        f"raise max_shrink in {terms.contract}, or take the one before out with "
        f"`metalayer land --withdraw {before}`{' and land this one again' if is_its_own else ''}"
    )
