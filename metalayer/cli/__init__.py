"""The `metalayer` command: which commands there are, and what becomes of their errors.

    ask.py        status, ledger, rejects, query: read the warehouse, in well under a second
    build.py      land, build
    plan.py       build --plan
    trace.py      trace
    versions.py   versions, diff, rollback
    audit.py      audit
    migrate.py    migrate
    roles.py      roles
    erase.py      erase, hold
    keys.py       keys
    retain.py     retain
    scan.py       scan
    subject.py    subject
    alerts.py     alerts
    anomalies.py  anomalies
    up.py         up
    metrics.py    metrics
    quality.py    quality
    backup.py     backup, backups, restore, drill
    logs.py       logs
    demo.py       demo
    catalog.py    docs, contracts: what the tables are, without a database
    environments.py  env
    production.py    the option --yes-prod
    tools.py      generate, doctor
    selection.py  `gold.agg_*`, `+gold.fact_sales`: words to tables
    formats.py    values as JSON and CSV

A command turns arguments into calls and results into `metalayer.console`; the work is done
elsewhere. What takes long to import (contracts, Dagster) is imported where a command needs it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from metalayer.cli import (
    alerts,
    anomalies,
    ask,
    audit,
    backup,
    build,
    catalog,
    demo,
    environments,
    erase,
    keys,
    logs,
    metrics,
    migrate,
    quality,
    retain,
    roles,
    scan,
    subject,
    tools,
    trace,
    up,
    versions,
)
from metalayer.console import PROG, print_error
from metalayer.errors import MetaLayerError
from metalayer.failure import failure_of
from metalayer.outages import outage

#: Command, its line in the list of commands, examples.
_COMMANDS: Sequence[tuple[Callable[..., None], str, Sequence[str]]] = (
    (demo.demo, "Build everything from the sample, and show it.", ["demo"]),
    (
        up.up,
        "Run the platform: web interface, sensors, runs.",
        ["up", "up --demo", "up --port 3001"],
    ),
    (
        alerts.alerts,
        "What is wrong just now; tell people by mail or chat.",
        ["alerts", "alerts --test"],
    ),
    (
        anomalies.anomalies,
        "What is unusual in what was published.",
        ["anomalies", 'anomalies --expected 3 --why "price campaign"'],
    ),
    (
        quality.quality,
        "Serve the quality page.",
        ["quality", "quality --port 3201"],
    ),
    (
        metrics.metrics,
        "Serve metrics for Prometheus.",
        ["metrics", "metrics --once", "metrics --port 9465"],
    ),
    (
        backup.backup,
        "Take a backup of everything.",
        ["backup", "backup --full"],
    ),
    (backup.backups, "The backups there are, and the last drill.", ["backups", "backups --json"]),
    (
        backup.restore,
        "Bring everything back as it was at some second.",
        ["restore --into /new/home", "restore --to 2025-07-01T10:30 --into /new/home"],
    ),
    (backup.drill, "Try a recovery, and remove it again.", ["drill", "drill --json"]),
    (
        logs.logs,
        "What was done, by which run, and why something failed.",
        ["logs", "logs --run 3f2a91c0", "logs --table silver.orders --level warning", "logs -f"],
    ),
    (
        build.land,
        "Copy exports into the landing zone.",
        ["land exports/orders_2025-07.csv", "land export.csv --source erp/orders"],
    ),
    (
        build.build,
        "Take in what has landed, build what is out of date.",
        [
            "build",
            "build --plan",
            "build gold --months 2025-01..2025-03",
            "build +gold.fact_sales 'gold.agg_*'",
        ],
    ),
    (
        migrate.migrate,
        "Bring the tables in line with the contracts.",
        ["migrate --plan", "migrate"],
    ),
    (
        roles.roles,
        "Make roles and grants what the contracts say.",
        ["roles apply --plan", "roles apply"],
    ),
    (
        scan.scan,
        "Name landed columns that look personal and are not tagged.",
        ["scan", "scan --region DE --rows 200000"],
    ),
    (
        subject.subject,
        "Everything that is held of one customer, in a file to hand over.",
        ['subject --customer 7 --out person.zip --why "request of 2025-07-01"'],
    ),
    (
        erase.erase,
        "Take one customer out of everything, with a certificate.",
        [
            "erase --customer 7 --dry-run",
            'erase --customer 7 --out certificate.json --why "request of 2025-07-01"',
            "erase --verify certificate.json",
        ],
    ),
    (
        erase.hold,
        "Keep one customer from being erased.",
        ['hold --customer 7 --why "lawsuit 12/2025"', "hold --customer 7 --release"],
    ),
    (
        retain.retain,
        "Take months out that were kept as long as their contracts say.",
        ["retain --plan", "retain"],
    ),
    (
        keys.keys,
        "Keys of encrypted columns; seal everything with a new one.",
        ["keys", "keys new", 'keys rotate --why "yearly change"'],
    ),
    (
        environments.env,
        "List environments; copy months of one to another, masked.",
        ["env", "env copy prod dev --months 3"],
    ),
    (
        ask.status,
        "Each table: months, rows, last published, fresh or not.",
        ["status", "status --json"],
    ),
    (ask.ledger, "Each landed file, and what became of it.", ["ledger", "ledger --json"]),
    (
        ask.rejects,
        "The rows that break a contract, and why.",
        ["rejects", "rejects silver.orders --limit 10"],
    ),
    (
        ask.query,
        "Ask the warehouse in SQL.",
        [
            'query "select month, revenue from gold.agg_monthly_sales"',
            'query "select * from gold.fact_sales" --format csv > sales.csv',
            'query "select count(*) from gold.fact_sales" --as-of 2025-07-01',
        ],
    ),
    (
        trace.trace,
        "Walk a row back to the lines of the landed files.",
        [
            'trace gold.fact_sales --where "sales_id = 7"',
            'trace gold.customer_360 --where "customer_id = 7" --column lifetime_value',
        ],
    ),
    (
        versions.versions,
        "Each kept version of a table's months.",
        ["versions gold.fact_sales", "versions gold.fact_sales 2025-01"],
    ),
    (
        versions.diff,
        "How two versions of a month differ.",
        ["diff gold.fact_sales 2025-01 1 2"],
    ),
    (
        versions.rollback,
        "Bring an earlier version of a month back.",
        ["rollback gold.fact_sales 2025-01 --to 1"],
    ),
    (
        catalog.docs,
        "Write the dictionary, a web site of tables and columns.",
        ["docs", "docs --out site"],
    ),
    (
        catalog.contracts,
        "Write the contracts in a standard form.",
        ["contracts export --format odcs --out contracts"],
    ),
    (
        audit.audit,
        "Who did what, when and why; whether the log is whole.",
        ["audit", "audit --since 2025-07-01 --action rollback", "audit verify"],
    ),
    (
        tools.generate,
        "Write made-up exports of any size.",
        ["generate --rows 100000 --months 24 --dirt 0.02 --seed 7 --out exports"],
    ),
    (
        tools.doctor,
        "Check machine and settings; say how to mend them.",
        ["doctor", "doctor --json"],
    ),
)


def _app() -> typer.Typer:
    app = typer.Typer(
        name="metalayer",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=_epilog(["demo", "COMMAND --help"]),
    )
    app.callback()(_root)
    for command, line, examples in _COMMANDS:
        app.command(short_help=line, epilog=_epilog(examples))(command)
    return app


def _epilog(examples: Sequence[str]) -> str:
    title = "[bold]Example[/bold]" if len(examples) == 1 else "[bold]Examples[/bold]"
    # An empty line between paragraphs is what keeps typer from joining them.
    return "\n\n".join([title, *(f"  [cyan]{PROG} {example}[/cyan]" for example in examples)])


def _show_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"metalayer {tools.version()}\n")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Trusted customer and sales tables in PostgreSQL, from landed CSV exports."""


app = _app()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: what was typed after the program's name; None: `sys.argv`.

    Returns:
        The exit code: 0 done, 1 the job failed, 2 wrong usage, 130 interrupted.
    """
    _quieten()
    code = 0
    try:
        code = app(
            None if arguments is None else list(arguments), prog_name=PROG, standalone_mode=False
        )
    except MetaLayerError as error:
        _log_failure(error)
        print_error(error.message, error.next_step)
        code = error.exit_code
    except TyperException as error:
        code = _wrong_usage(error)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        # Dagster has an exception of its own for Ctrl-C.
        code = 130 if "Interrupted" in type(error).__name__ else _failed(error)
    finally:
        _flush()
    return code or 0


def _quieten() -> None:
    """Keep what libraries say to developers off the user's terminal."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if os.environ.get("METALAYER_DEBUG"):
        return
    warnings.simplefilter("ignore")
    logging.basicConfig(handlers=[logging.NullHandler()])


def _wrong_usage(error: TyperException) -> int:
    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        # Typer has put the help into the message.
        sys.stderr.write(error.format_message() + "\n")
        return error.exit_code
    command = context.command_path if context is not None else PROG
    message = error.format_message().strip()
    print_error(message.removesuffix("."), f"`{command} --help` shows how it is called.")
    return error.exit_code


def _failed(error: Exception) -> int:
    """An error from outside, or one that nobody foresaw."""
    home = None
    with contextlib.suppress(Exception):
        from metalayer.settings import Settings

        home = Settings.load().embedded_home
    _log_failure(error, home)
    known = outage(error, home)
    if known is None:
        return _defect(error)
    print_error(known.message, known.next_step)
    return known.exit_code


def _log_failure(error: Exception, home: Path | None = None) -> None:
    """Log what ended a command, where the command has a log: one that does more than read."""
    if "metalayer.logs.writing" in sys.modules and logging.getLogger("metalayer").handlers:
        found = failure_of(error, home)
        # Others name what was asked for: a customer, say.
        is_outage = found.kind in ("transient", "capacity")
        said = found.line if is_outage else type(error).__name__
        facts = {"error_class": found.kind}
        logging.getLogger(__name__).error("command failed: %s", said, extra=facts)


def _defect(error: Exception) -> int:
    """An error that nobody foresaw: one line for the user, the traceback into a file."""
    if os.environ.get("METALAYER_DEBUG"):
        traceback.print_exception(error)
        return 1
    text = "".join(traceback.format_exception(error))
    name = f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}-{os.getpid()}.txt"
    written = next(
        (path for folder in _error_folders() if (path := _write(folder, name, text))), ""
    )
    first = (str(error).strip().splitlines() or ["no message"])[0]
    print_error(
        f"{type(error).__name__}: {first}",
        f"This is a defect of MetaLayer; please report it with {written}."
        if written
        else "This is a defect of MetaLayer; METALAYER_DEBUG=1 shows where.",
    )
    return 1


def _error_folders() -> list[Path]:
    folders = [Path(tempfile.gettempdir())]
    with contextlib.suppress(Exception):
        from metalayer.settings import Settings

        folders.insert(0, Settings.load().home / "errors")
    return folders


def _write(folder: Path, name: str, text: str) -> Path | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
    except OSError:
        return None
    return path


def _flush() -> None:
    """Write out what is left; a reader that has gone (`| head`) is no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
