"""The command `python -m benchmarks.goals`: what MetaLayer is held to by itself, as ratios.

Every ratio is of two things measured one after the other on the same machine. How it stands beside
its peers is read from the last `performance.json`, and not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import duckdb
import psycopg2

from benchmarks.contender import Step
from benchmarks.contenders.metalayer import build_step
from benchmarks.measure import Measured, measure
from benchmarks.selects import Months
from metalayer.errors import UsageError
from metalayer.sample import generate
from metalayer.sample.calendar import usual_start
from metalayer.settings import PROJECT_ROOT, Settings
from metalayer.warehouse.server import warehouse_server

#: The part of the page that a run replaces, between two comments that stay.
_PART = re.compile(r"(<!-- goals -->\n).*?(<!-- /goals -->)", re.DOTALL)
_STARTS = 5
_MOST_PEAK_MB = 800
#: A file that was changed a moment ago is waited for; one of a minute ago is not.
_STILL_SECONDS = 60


@dataclass(frozen=True)
class Goal:
    """One line of the table: what was measured, what is asked for, and what came of it."""

    work: str
    asked: str
    reached: str
    is_met: bool


@dataclass(frozen=True)
class Home:
    """A home of MetaLayer beside a server of its own, where builds are timed."""

    folder: Path
    url: str
    months: Months

    def build(self, *tables: str, workers: int | None = None, exit_code: int = 0) -> Measured:
        """`metalayer build`, as a process."""
        step = build_step(self.folder, self.url, self.months, workers or _cores())
        step = replace(step, command=[*step.command, *tables], exit_code=exit_code)
        return measure([step], self.folder.with_name("log"))

    def land(self, files: Iterator[Path] | list[Path], exports: Path) -> None:
        """Copy exports into the landing zone, as files that stand still."""
        for file in files:
            target = self.folder / "landing" / file.relative_to(exports)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            then = time.time() - _STILL_SECONDS
            os.utime(target, (then, then))


def main() -> int:
    """Measure all goals, print them and put them into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.goals", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each source (1,000,000)")
    parser.add_argument("--months", type=int, default=58, help="they are spread over (58)")
    parser.add_argument("--out", type=Path, default=PROJECT_ROOT / "docs", help="the page's folder")
    parser.add_argument("--work", type=Path, default=None, help="folder for data and servers")
    options = parser.parse_args()
    goals = list(beside_peers(options.out / "performance.json"))
    with tempfile.TemporaryDirectory(prefix="metalayer-goals-", dir=options.work) as work:
        for goal in alone(Path(work), options.rows, options.months):
            print(f"{goal.work}: {goal.reached} (asked: {goal.asked})", flush=True)
            goals.append(goal)
    write(goals, options.rows, options.months, options.out / "performance.md")
    return 0


def beside_peers(report: Path) -> Iterator[Goal]:
    """The goals that compare with peers, from what `python -m benchmarks` has written."""
    standings = {s["contender"]: s["seconds"] for s in json.loads(report.read_text())["standings"]}
    own = standings["metalayer"]
    for peer, title, most in (
        ("psql", "the psql script", 1.0),
        ("dlt_dbt", "dlt + dbt", 0.5),
        ("pandas", "pandas, bronze only", 0.1),
    ):
        if peer in standings:
            ratio = own / standings[peer]
            yield _goal(f"full load beside {title}", ratio, most)


def alone(work: Path, rows: int, months: int) -> Iterator[Goal]:
    """The goals that compare MetaLayer with itself."""
    start = _seconds_of_start("import metalayer.definitions")
    yield _goal("import of the definitions beside a bare `import dagster`",
                start / _seconds_of_start("import dagster"), 1.3)  # fmt: skip
    clean = _exports(work / "clean", rows, months)
    with _home(work, clean) as home:
        home.land(clean.files, clean.folder)
        full = home.build()
        nothing = home.build().seconds
        home.land(clean.files, clean.folder)
        again = home.build().seconds
        hashing = _seconds(lambda: [_hash(file) for file in clean.files])
        yield Goal(
            "the same files again, copied anew",
            "at most the time to hash them, apart from the process",
            f"{again - nothing:.1f} s more than with nothing to look at; hashing: {hashing:.1f} s",
            again - nothing <= hashing,
        )
        yield from _commands(home)
        yield _masked_scan(home)
    yield Goal(
        f"peak memory at {rows:,} rows a source",
        f"under {_MOST_PEAK_MB} MB",
        f"{full.peak_mb:,.0f} MB",
        full.peak_mb < _MOST_PEAK_MB,
    )
    with _home(work, clean) as home:
        home.land(clean.files, clean.folder)
        yield _goal(
            "1 worker beside 2", home.build(workers=1).seconds / full.seconds, 1.6, least=True
        )
    fewer = _exports(work / "fewer-rows", rows // 5, months)
    yield _goal("rows x 5", full.seconds / _full(work, fewer), 5.5)
    two_years = _exports(work / "two-years", rows, min(24, months))
    with _home(work, two_years) as home:
        home.land(two_years.files, two_years.folder)
        before = home.build().seconds
        home.land([_late_row(work / "late", two_years)], work / "late")
        yield _goal(
            f"one late row in the middle of {min(24, months)} months",
            home.build().seconds / before,
            0.15,
        )
    shorter = _exports(work / "fewer-months", rows, months // 4)
    yield _goal("months x 4 at equal rows", full.seconds / _full(work, shorter), 1.3)
    dirty = _exports(work / "dirty", rows, months, dirt=0.05)
    yield _goal("5% of the rows with something wrong", _full(work, dirty) / full.seconds, 1.15)
    yield from _nothing_but_bad_rows(work, clean)
    monthly = _exports(work / "monthly", rows, months, split=True)
    newest = f"_{max(re.findall(r'[0-9]{4}-[0-9]{2}', ' '.join(map(str, monthly.files))))}"
    with _home(work, monthly) as home:
        home.land([file for file in monthly.files if newest not in file.name], monthly.folder)
        before = home.build().seconds
        home.land([file for file in monthly.files if newest in file.name], monthly.folder)
        yield _goal(
            f"one new month after {months - 1}, the start of the process apart",
            (home.build().seconds - start) / (before - start),
            0.06,
        )


def _nothing_but_bad_rows(work: Path, clean: _Exports) -> Iterator[Goal]:
    """Orders of which every one breaks its contract, beside the clean ones."""
    orders = next(file for file in clean.files if file.match("erp/orders*"))
    bad = work / "bad" / "erp" / orders.name
    bad.parent.mkdir(parents=True)
    duckdb.sql(
        f"copy (select * replace ('-' || quantity as quantity) from "
        f"read_csv('{orders}', all_varchar = true)) to '{bad}' (header)"
    )
    measured = {}
    for file, folder, exit_code in ((orders, clean.folder, 0), (bad, work / "bad", 1)):
        with _home(work, clean) as home:
            home.land([file], folder)
            measured[file] = home.build("bronze.orders", "silver.orders", exit_code=exit_code)
            said = home.folder.with_name("log").read_text(encoding="utf-8")
            assert ("rows break the contract" in said) == (file == bad), said
    ratio = measured[bad].seconds / measured[orders].seconds
    yield _goal("every order bad, beside all clean", ratio, 1.0)
    yield _goal("peak memory of the same", measured[bad].peak_mb / measured[orders].peak_mb, 1.1)


def write(goals: list[Goal], rows: int, months: int, page: Path) -> None:
    """Replace the marked part of the page.

    Raises:
        UsageError: when it has no such part.
    """
    lines = [
        f"{rows:,} rows of each source over {months} months, in one run.",
        "",
        "| work | goal | reached | |",
        "|---|---|---|---|",
        *(
            f"| {g.work} | {g.asked} | {g.reached} | {'met' if g.is_met else 'not met'} |"
            for g in goals
        ),
    ]
    part = "\n".join(lines) + "\n"
    after, replaced = _PART.subn(lambda m: f"{m[1]}{part}{m[2]}", page.read_text(encoding="utf-8"))
    if replaced != 1:
        raise UsageError(
            f"{page} has no part between <!-- goals --> and <!-- /goals -->",
            "Put the two comments where the table shall go",
        )
    page.write_text(after, encoding="utf-8")


def _goal(work: str, ratio: float, bound: float, *, least: bool = False) -> Goal:
    is_met = ratio >= bound if least else ratio <= bound
    return Goal(work, f"{'at least' if least else 'at most'} {bound:g}", f"{ratio:.2f}", is_met)


@dataclass(frozen=True)
class _Exports:
    folder: Path
    files: list[Path]
    months: Months


def _exports(
    folder: Path, rows: int, months: int, *, dirt: float = 0.0, split: bool = False
) -> _Exports:
    made = generate(folder, rows=rows, months=months, dirt=dirt, split="month" if split else "file")
    files = [each.file for each in made]
    return _Exports(folder, files, Months.counted(usual_start(months), months))


def _late_row(folder: Path, exports: _Exports) -> Path:
    """A file with one order of the months' middle, which no other file has."""
    orders = next(file for file in exports.files if "orders" in file.name)
    header, first = orders.read_text(encoding="utf-8").splitlines()[:2]
    fields = dict(zip(header.split(","), first.split(","), strict=True))
    months = exports.months
    middle = months.start + (months.end - months.start) / 2
    fields |= {"order_id": "999999999", "order_date": middle.isoformat()}
    late = folder / "erp" / "orders_late.csv"
    late.parent.mkdir(parents=True)
    late.write_text(f"{header}\n{','.join(fields.values())}\n", encoding="utf-8")
    return late


@contextmanager
def _home(work: Path, exports: _Exports) -> Iterator[Home]:
    """An empty home with a server, gone afterwards."""
    folder = Path(tempfile.mkdtemp(dir=work))
    settings = Settings(_env_file=None, home=folder / "server", database_url=None)
    with warehouse_server(settings) as server:
        url = server.warehouse_url.replace("+psycopg2", "", 1)
        (folder / "home").mkdir()
        os.sync()
        yield Home(folder / "home", url, exports.months)
    shutil.rmtree(folder)


def _full(work: Path, exports: _Exports) -> float:
    with _home(work, exports) as home:
        home.land(exports.files, exports.folder)
        return home.build().seconds


def _commands(home: Home) -> Iterator[Goal]:
    """Commands that only look."""
    for words in (["status"], ["ledger"], ["rejects", "--help"]):
        step = build_step(home.folder, home.url, home.months, _cores())
        step = Step([*step.command[:3], *words], environment=step.environment, folder=step.folder)
        seconds = median(
            measure([step], home.folder.with_name("log")).seconds for _ in range(_STARTS)
        )
        yield Goal(
            f"`metalayer {' '.join(words)}`", "at most 0.5 s", f"{seconds:.2f} s", seconds <= 0.5
        )


def _masked_scan(home: Home) -> Goal:
    """All of `gold.dim_customer` as an analyst is given it, beside what a steward is given."""
    query = "copy (select * from gold.dim_customer) to stdout"
    seconds: dict[str, list[float]] = {"on": [], "off": []}
    with contextlib.closing(psycopg2.connect(home.url)) as connection:
        for _ in range(_STARTS):
            for masked, measured in seconds.items():
                with connection.cursor() as cursor, Path(os.devnull).open("w") as nowhere:
                    cursor.execute("select set_config('metalayer.masked', %s, false)", (masked,))
                    measured.append(_seconds(partial(cursor.copy_expert, query, nowhere)))
    ratio = median(seconds["on"]) / median(seconds["off"])
    return _goal("masked full scan of `gold.dim_customer` beside plain", ratio, 1.1)


def _seconds_of_start(code: str) -> float:
    """Seconds of a Python process that runs `code`: the median of some."""
    step = Step([sys.executable, "-c", code], environment={"PYTHONPATH": str(PROJECT_ROOT)})
    with tempfile.TemporaryDirectory() as folder:
        return median(measure([step], Path(folder) / "log").seconds for _ in range(_STARTS))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    sys.exit(main())
