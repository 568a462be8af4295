"""What was measured, for people and for programs: a table, a JSON file, a plot and a page's part.

Only figures of one run belong in one report. Nothing is measured here.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.contender import Contender, Totals
from benchmarks.exports import Exports
from benchmarks.measure import Measured
from benchmarks.totals import as_text
from metalayer.errors import UsageError

#: The part of the page that a run replaces, between two comments that stay.
_PART = re.compile(r"(<!-- benchmark -->\n).*?(<!-- /benchmark -->)", re.DOTALL)
_MB = 1024 * 1024
#: A machine whose cores are busier than this before a turn measures others' work as well.
_IDLE_PERCENT = 10


@dataclass(frozen=True)
class Round:
    """One turn of one contender, as in the JSON file.

    Attributes:
        seconds: of the whole; of a sample, extrapolated to it.
        sample_rows: rows of each source that were loaded, where not all were.
        measured_seconds: what the clock said, where `seconds` are extrapolated.
        busy_percent: how busy others kept the machine's cores just before.
    """

    round: int
    contender: str
    title: str
    seconds: float
    peak_mb: float
    phases: dict[str, float]
    busy_percent: float
    sample_rows: int | None = None
    measured_seconds: float | None = None

    @classmethod
    def of(
        cls, number: int, contender: Contender, measured: Measured, exports: Exports, busy: float
    ) -> Round:
        """The round that was measured; what a sample took is extrapolated by rows."""
        phases = {name: round(seconds, 3) for name, seconds in measured.phases.items()}
        same = (number, contender.name, contender.title)
        peak = round(measured.peak_mb, 1)
        if contender.sample_rows is None:
            return cls(*same, round(measured.seconds, 3), peak, phases, busy)
        loading = sum(measured.phases.values())
        factor = exports.rows / exports.sampled(contender.sample_rows)
        whole = measured.seconds - loading + loading * factor
        sample = (contender.sample_rows, round(measured.seconds, 3))
        return cls(*same, round(whole, 3), peak, phases, busy, *sample)


@dataclass(frozen=True)
class Standing:
    """A contender's medians over the rounds; `ratio` is to the first contender's seconds."""

    contender: str
    title: str
    seconds: float
    ratio: float
    peak_mb: float
    phases: dict[str, float]
    sample_rows: int | None


@dataclass(frozen=True)
class Report:
    """A whole run of the benchmark, in the order of the JSON file's keys."""

    measured_on: str
    machine: dict[str, Any]
    rows_per_source: int
    rows: int
    megabytes: float
    months: int
    standings: list[Standing]
    rounds: list[Round]
    totals: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, rows: int, months: int, exports: Exports, rounds: Sequence[Round], totals: Totals
    ) -> Report:
        """Add up the rounds."""
        machine = {
            "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / _MB / 1024, 1),
            "system": platform.platform(),
            "python": platform.python_version(),
            "file_system": _file_system(exports.folder),
        }
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        size = round(exports.bytes / _MB, 1)
        counts = (rows, exports.rows, size, months)
        return cls(today, machine, *counts, _standings(rounds), list(rounds), as_text(totals))

    def table(self) -> str:
        """The standings as a Markdown table, which is also fit for a terminal."""
        first = self.standings[0].title
        head = ("", "seconds", f"ratio to {first}", "peak MB", "bronze / silver / gold, seconds")
        rows = [head, *(_cells(standing) for standing in self.standings)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]

        def line(row: Sequence[str]) -> str:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            return "| " + " | ".join(cells) + " |"

        rule = "|" + "|".join(
            "-" * (width + 2) if i == 0 else "-" * (width + 1) + ":"
            for i, width in enumerate(widths)
        )
        return "\n".join([line(rows[0]), rule + "|", *map(line, rows[1:])])

    def conditions(self) -> str:
        """What was run on what, in a sentence."""
        count = len({each.round for each in self.rounds})
        return (
            f"{self.rows:,} rows ({self.megabytes:,.0f} MB) over {self.months} months; medians of "
            f"{count} round{'s' if count > 1 else ''}. {self.machine['cores']} cores, "
            f"{self.machine['memory_gb']:.0f} GB of memory, {self.machine['file_system']}; "
            f"{self.measured_on}.{self._warning()}"
        )

    def _warning(self) -> str:
        busiest = max(each.busy_percent for each in self.rounds)
        if busiest <= _IDLE_PERCENT:
            return ""
        return (
            f" **The machine was not idle**: before turns its cores were up to {busiest:.0f}% busy "
            "with other work, so these figures only orient."
        )


def write_report(report: Report, out: Path) -> None:
    """Write `performance.json` and the plot, and replace the marked part of `performance.md`.

    Raises:
        UsageError: when there is a page and it has no such part.
    """
    (out / "img").mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(report), indent=2, ensure_ascii=False)
    (out / "performance.json").write_text(text + "\n", encoding="utf-8")
    (out / "img" / "performance.svg").write_text(plot(report), encoding="utf-8")
    page = out / "performance.md"
    if not page.exists():
        return
    before = page.read_text(encoding="utf-8")
    part = f"{report.conditions()}\n\n{report.table()}\n\n{_footnotes(report)}"
    picture = "![Seconds of each contender as bars](img/performance.svg)\n"
    after, replaced = _PART.subn(lambda m: f"{m[1]}{part}{picture}{m[2]}", before)
    if replaced != 1:
        raise UsageError(
            f"{page} has no part between <!-- benchmark --> and <!-- /benchmark -->",
            "Put the two comments where the table shall go",
        )
    page.write_text(after, encoding="utf-8")


def plot(report: Report) -> str:
    """The medians as horizontal bars, in SVG."""
    longest = max(standing.seconds for standing in report.standings)
    label, width, height, gap = 150, 430, 22, 8
    bars = []
    for number, standing in enumerate(report.standings):
        top = 10 + number * (height + gap)
        length = max(1.0, width * standing.seconds / longest)
        fill = "#2563eb" if number == 0 else "#94a3b8"
        fading = ' fill-opacity="0.5"' if standing.sample_rows is not None else ""
        said = f"{standing.seconds:,.1f} s" + (" (extrapolated)" if standing.sample_rows else "")
        middle = top + height / 2 + 4
        bars += [
            f'<text x="{label - 8}" y="{middle:g}" text-anchor="end">'
            f"{escape(standing.title)}</text>",
            f'<rect x="{label}" y="{top}" width="{length:.1f}" height="{height}" '
            f'fill="{fill}"{fading}/>',
            f'<text x="{label + length + 6:.1f}" y="{middle:g}">{said}</text>',
        ]
    size = (label + width + 150, 10 + len(report.standings) * (height + gap) + 2)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" '
            f'width="{size[0]}" height="{size[1]}" font-family="sans-serif" font-size="13">',
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *bars,
            "</svg>\n",
        ]
    )


def _file_system(folder: Path) -> str:
    """Type of the file system that exports, scripts and servers lie on, such as ext4."""
    mounts = psutil.disk_partitions(all=True)
    holding = [each for each in mounts if folder.resolve().is_relative_to(each.mountpoint)]
    return str(max(holding, key=lambda each: len(each.mountpoint)).fstype) if holding else ""


def _standings(rounds: Sequence[Round]) -> list[Standing]:
    names = dict.fromkeys(each.contender for each in rounds)
    turns = {name: [each for each in rounds if each.contender == name] for name in names}
    seconds = {name: median(each.seconds for each in turns[name]) for name in names}
    first = next(iter(seconds.values()))
    return [
        Standing(
            contender=name,
            title=turns[name][0].title,
            seconds=round(seconds[name], 2),
            ratio=round(seconds[name] / first, 3),
            peak_mb=round(median(each.peak_mb for each in turns[name]), 1),
            phases={
                phase: round(median(each.phases[phase] for each in turns[name]), 2)
                for phase in turns[name][0].phases
            },
            sample_rows=turns[name][0].sample_rows,
        )
        for name in names
    ]


def _cells(standing: Standing) -> tuple[str, ...]:
    mark = "" if standing.sample_rows is None else " *"
    phases = standing.phases
    told = (
        ""
        if standing.sample_rows is not None
        else " / ".join(
            f"{seconds:.1f}" + (f" ({name})" if " " in name else "")
            for name, seconds in phases.items()
        )
    )
    return (
        standing.title + mark,
        f"{standing.seconds:,.1f}",
        f"{standing.ratio:.2f}",
        f"{standing.peak_mb:,.0f}",
        told,
    )


def _footnotes(report: Report) -> str:
    sampled = [standing for standing in report.standings if standing.sample_rows is not None]
    return "".join(
        f"\\* {standing.title} makes bronze alone, from {standing.sample_rows:,} rows of each "
        f"source; its seconds are extrapolated to all rows.\n\n"
        for standing in sampled
    )
