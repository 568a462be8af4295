"""The generated exports that every contender reads: clean, and made once for a whole run."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.selects import Months
from metalayer.contracts.contract import TableSpec
from metalayer.sample import Generated, generate
from metalayer.sample.calendar import usual_start

_MONTH_AND_SUFFIX = re.compile(r"(_\d{4}-\d{2})?\.csv$")


@dataclass(frozen=True)
class Exports:
    """The files of all sources.

    Attributes:
        folder: where they lie, as in a landing zone.
        files: all of them, with their rows.
        months: what the rows are spread over.
    """

    folder: Path
    files: tuple[Generated, ...]
    months: Months

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(each.rows for each in self.files)

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(each.file.stat().st_size for each in self.files)

    def sampled(self, rows: int) -> int:
        """Rows that there are when of each source at most so many are taken."""
        sources: dict[str, int] = {}
        for each in self.files:
            source = _MONTH_AND_SUFFIX.sub("", str(each.file.relative_to(self.folder)))
            sources[source] = sources.get(source, 0) + each.rows
        return sum(min(rows, count) for count in sources.values())

    def of(self, table: TableSpec) -> list[Path]:
        """The files that feed a silver table, in the order of their names."""
        assert table.source is not None
        pattern = table.source.pattern
        return sorted(
            each.file
            for each in self.files
            if fnmatch.fnmatch(str(each.file.relative_to(self.folder)), pattern)
        )


def make_exports(folder: Path, rows: int, months: int) -> Exports:
    """Generate `rows` rows of each source; the same arguments give the same bytes."""
    files = generate(folder, rows=rows, months=months, dirt=0)
    return Exports(folder, tuple(files), Months.counted(usual_start(months), months))
