"""The command `python -m benchmarks`: contenders in turn, several rounds, on the same exports."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.contender import Contender, Run, Totals
from benchmarks.contenders import CONTENDERS
from benchmarks.exports import Exports, make_exports
from benchmarks.measure import measure
from benchmarks.report import Report, Round, write_report
from benchmarks.totals import compare
from metalayer.errors import MetaLayerError, UsageError
from metalayer.settings import PROJECT_ROOT, Settings
from metalayer.warehouse.server import warehouse_server


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments say; returns the exit code."""
    options = _options(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="metalayer-benchmarks-", dir=options.work) as work:
            _run(options, Path(work))
    except MetaLayerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--rows", type=int, default=1_000_000, help="rows of each source (1,000,000)")
    add("--months", type=int, default=58, help="months they are spread over (58)")
    add("--rounds", type=int, default=3, help="how often each contender has its turn (3)")
    add("--only", default=",".join(CONTENDERS), help="contenders, comma-separated (all)")
    add("--out", type=Path, default=PROJECT_ROOT / "docs", help="where the figures go (docs)")
    add(
        "--work",
        type=Path,
        default=None,
        help="folder for data, exports and servers (a temporary one)",
    )
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace, work: Path) -> None:
    """Run all rounds; after each, what there is so far is reported."""
    contenders = _named(options.only)
    exports = make_exports(work / "exports", options.rows, options.months)
    rounds: list[Round] = []
    expected: tuple[str, Totals] | None = None
    for number in range(1, options.rounds + 1):
        for contender in contenders:
            folder = work / f"{number}-{contender.name}"
            done, totals = _turn(number, contender, exports, folder)
            rounds.append(done)
            print(f"round {number}  {contender.title:20} {done.seconds:8.1f} s", flush=True)
            if totals is not None:
                expected = expected or (contender.title, totals)
                compare(contender.title, totals, *expected)
            shutil.rmtree(folder)
        totals = {} if expected is None else expected[1]
        report = Report.of(options.rows, options.months, exports, rounds, totals)
        print(report.table(), flush=True)
        write_report(report, options.out)


def _turn(
    number: int, contender: Contender, exports: Exports, folder: Path
) -> tuple[Round, Totals | None]:
    """One run of one contender, on a server and in a folder of its own."""
    (folder / "run").mkdir(parents=True)
    settings = Settings(_env_file=None, home=folder / "server", database_url=None)
    with warehouse_server(settings) as server:
        run = Run(folder / "run", exports, server.warehouse_url, _cores())
        steps = contender.prepare(run)
        # What making exports, folders and the server left to be written is not the contender's.
        os.sync()
        busy = psutil.cpu_percent(interval=1.0)
        measured = measure(steps, folder / "log")
        totals = contender.totals(run) if contender.totals is not None else None
    return Round.of(number, contender, measured, exports, busy), totals


def _named(names: str) -> list[Contender]:
    unknown = [name for name in names.split(",") if name not in CONTENDERS]
    if unknown:
        raise UsageError(
            f"There is no contender '{unknown[0]}'", f"Contenders are {', '.join(CONTENDERS)}"
        )
    return [CONTENDERS[name] for name in names.split(",")]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    sys.exit(main())
